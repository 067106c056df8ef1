"""Languages as deterministic automata over bytes. Every kind of constraint is compiled to one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.errors import UserError

MAX_STATES = 60_000  # larger automata are rejected: their tables would need gigabytes
MAX_MINIMISED = 2_048  # larger automata are not minimised: it would take seconds and save little


@dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """A deterministic automaton over bytes with S states. From every state some text is accepted.

    Fields:
        table: [S, 256] int32, the next state, -1 for none. accept: [S] bool. State 0 is the start.
    """

    table: np.ndarray
    accept: np.ndarray

    @property
    def states(self) -> int:
        """The number of states."""
        return len(self.table)

    def accepts(self, text: bytes) -> bool:
        """Is this text in the language?"""
        state = 0
        for byte in text:
            state = int(self.table[state, byte])
            if state < 0:
                return False
        return bool(self.accept[state])


def anything() -> ByteAutomaton:
    """The language of all texts."""
    return ByteAutomaton(np.zeros((1, 256), dtype=np.int32), np.ones(1, dtype=bool))


def check_size(states: int) -> None:
    """Check the number of states of an automaton under construction.

    Raises:
        UserError: it is too large.
    """
    if states > MAX_STATES:
        raise UserError(
            f"The constraint needs more than {MAX_STATES} states.", "Give its repetitions smaller bounds, or split it."
        )


def intersection(a: ByteAutomaton, b: ByteAutomaton) -> ByteAutomaton:
    """The texts in both languages: the reachable part of the product automaton.

    Raises:
        UserError: no text is in both, or the product is too large.
    """
    known = np.full(a.states * b.states, -1, dtype=np.int64)
    known[0] = 0
    order, front, rows = [np.zeros(1, dtype=np.int64)], np.zeros(1, dtype=np.int64), []
    count = 1
    while len(front):
        left, right = a.table[front // b.states], b.table[front % b.states]
        target = np.where((left >= 0) & (right >= 0), left.astype(np.int64) * b.states + right, -1)
        fresh = np.unique(target[target >= 0])
        fresh = fresh[known[fresh] < 0]
        known[fresh] = count + np.arange(len(fresh))
        count += len(fresh)
        check_size(count)
        rows.append(target)
        order.append(fresh)
        front = fresh
    target, pair = np.concatenate(rows), np.concatenate(order)
    table = np.where(target >= 0, known[target], -1).astype(np.int32)
    return trimmed(table, a.accept[pair // b.states] & b.accept[pair % b.states])


def with_leading_space(a: ByteAutomaton) -> ByteAutomaton:
    """The language for a tokenizer whose decoder drops one leading space.

    It holds the texts of ``a`` with one leading space, and those that don't begin with a space unchanged.
    """
    table = np.where(a.table >= 0, a.table + 1, -1)
    first = table[:1].copy()
    first[0, ord(" ")] = 1
    return trimmed(np.concatenate([first, table]).astype(np.int32), np.concatenate([a.accept[:1], a.accept]))


def trimmed(table: np.ndarray, accept: np.ndarray) -> ByteAutomaton:
    """An automaton without unreachable states and dead ends, minimised.

    Args:
        table: [S, 256] the next state, -1 for none. accept: [S] bool.
    Raises:
        UserError: no text is accepted.
    """
    source, byte = np.nonzero(table >= 0)
    target = table[source, byte]
    useful = _closure(accept.copy(), target, source) & _closure(_only(0, len(table)), source, target)
    if not useful[0]:
        raise UserError("No text satisfies the constraint.", "Remove parts that contradict each other.")
    number = np.where(useful, np.cumsum(useful) - 1, -1)
    table = np.where(table >= 0, number[table], -1)[useful]
    return _minimal(table.astype(np.int32), accept[useful])


def _only(state: int, states: int) -> np.ndarray:
    found = np.zeros(states, dtype=bool)
    found[state] = True
    return found


def _closure(found: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """All states that can be reached from ``found`` along edges source -> target."""
    edges = np.unique(source.astype(np.int64) * len(found) + target)
    source, target = edges // len(found), edges % len(found)
    begin = np.searchsorted(source, np.arange(len(found) + 1))
    front = np.flatnonzero(found)
    while len(front):
        count = begin[front + 1] - begin[front]
        before = np.cumsum(count) - count  # number of edges of the states before each one
        reached = target[np.arange(int(count.sum())) + np.repeat(begin[front] - before, count)]
        front = np.unique(reached[~found[reached]])
        found[front] = True
    return found


def _minimal(table: np.ndarray, accept: np.ndarray) -> ByteAutomaton:
    """Merge equivalent states (Moore's refinement).

    Blocks of states are compared by 64-bit hashes of their moves. The result is then checked exactly; if the moves of
    two merged states differ, the automaton is returned unchanged.
    """
    states = len(table)
    if states > MAX_MINIMISED:
        return ByteAutomaton(table, accept)
    columns = np.unique(table, axis=1)  # bytes with the same moves in all states count once
    factors = np.random.default_rng(0).integers(1, 1 << 62, size=columns.shape[1] + 1, dtype=np.uint64) * 2 + 1
    block, count = accept.astype(np.int64), len(np.unique(accept))
    while count < states:
        number = np.append(block, -1)  # missing moves form a block
        moves = _mixed(number[columns]) @ factors[1:] + block.astype(np.uint64) * factors[0]
        _, block = np.unique(moves, return_inverse=True)
        if (fresh := int(block.max()) + 1) <= count:
            break
        count = fresh
    _, first = np.unique(block, return_index=True)
    moves = np.append(block, -1)[table]
    if count == states or not (moves == moves[first][block]).all() or not (accept == accept[first][block]).all():
        return ByteAutomaton(table, accept)
    order = np.argsort(first, kind="stable")  # the start state stays first
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    merged = np.where(moves[first] >= 0, rank[moves[first]], -1)[order]
    return ByteAutomaton(merged.astype(np.int32), accept[first][order])


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, so that sums of multiples don't cancel."""
    z = (values + 2).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return z ^ (z >> np.uint64(27))
