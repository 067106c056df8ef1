"""Languages as automata over bytes: what every kind of constraint is compiled to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.errors import UserError

MOST_STATES = 60_000  # a larger automaton is refused: its tables would take gigabytes
MOST_MERGED = 2_048  # a larger one is taken as it is: joining equivalent states would take seconds and win little


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton over bytes without dead ends, S states.

    Fields:
        table: [S, 256] int32, the next state, -1 for none. accept: [S] bool. State 0 is the first.
    """

    table: np.ndarray
    accept: np.ndarray

    @property
    def states(self) -> int:
        return len(self.table)

    def accepts(self, text: bytes) -> bool:
        """Is this text in the language?"""
        state = 0
        for byte in text:
            state = int(self.table[state, byte])
            if state < 0:
                return False
        return bool(self.accept[state])


def anything() -> Automaton:
    """All texts."""
    return Automaton(np.zeros((1, 256), dtype=np.int32), np.ones(1, dtype=bool))


def check_size(states: int) -> None:
    """Raises UserError for an automaton that is too large."""
    if states > MOST_STATES:
        raise UserError(
            f"the constraint has more than {MOST_STATES} states.", "Bound it more tightly, or ask for less at once."
        )


def both(a: Automaton, b: Automaton) -> Automaton:
    """The texts in both languages: the product, as far as it can be reached.

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


def spaced(a: Automaton) -> Automaton:
    """The same texts for a tokenizer whose decoder drops one leading space: with it, or without where none begins."""
    table = np.where(a.table >= 0, a.table + 1, -1)
    first = table[:1].copy()
    first[0, ord(" ")] = 1
    return trimmed(np.concatenate([first, table]).astype(np.int32), np.concatenate([a.accept[:1], a.accept]))


def trimmed(table: np.ndarray, accept: np.ndarray) -> Automaton:
    """Without the states from which nothing is accepted or which can't be reached; equivalent states joined.

    Raises:
        UserError: nothing is accepted.
    """
    source, byte = np.nonzero(table >= 0)
    target = table[source, byte]
    useful = _closure(accept.copy(), target, source) & _closure(_only(0, len(table)), source, target)
    if not useful[0]:
        raise UserError("no text at all satisfies the constraint.", "Check it for parts that contradict each other.")
    number = np.where(useful, np.cumsum(useful) - 1, -1)
    table = np.where(table >= 0, number[table], -1)[useful]
    return _minimal(table.astype(np.int32), accept[useful])


def _only(state: int, states: int) -> np.ndarray:
    found = np.zeros(states, dtype=bool)
    found[state] = True
    return found


def _closure(found: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Everything that can be reached from ``found`` along source -> target."""
    edges = np.unique(source.astype(np.int64) * len(found) + target)
    source, target = edges // len(found), edges % len(found)
    begin = np.searchsorted(source, np.arange(len(found) + 1))
    front = np.flatnonzero(found)
    while len(front):
        count = begin[front + 1] - begin[front]
        behind = np.cumsum(count) - count  # edges of the states before each one
        reached = target[np.arange(int(count.sum())) + np.repeat(begin[front] - behind, count)]
        front = np.unique(reached[~found[reached]])
        found[front] = True
    return found


def _minimal(table: np.ndarray, accept: np.ndarray) -> Automaton:
    """Join states that no text tells apart (Moore's refinement). Blocks are told apart by 64-bit hashes of their
    moves, and the outcome is checked: states are joined only where their moves agree in truth."""
    states = len(table)
    if states > MOST_MERGED:
        return Automaton(table, accept)
    columns = np.unique(table, axis=1)  # bytes that always do the same count once
    factors = np.random.default_rng(0).integers(1, 1 << 62, size=columns.shape[1] + 1, dtype=np.uint64) * 2 + 1
    block, count = accept.astype(np.int64), len(np.unique(accept))
    while count < states:
        number = np.append(block, -1)  # a missing move is a block of its own
        moves = _mixed(number[columns]) @ factors[1:] + block.astype(np.uint64) * factors[0]
        _, block = np.unique(moves, return_inverse=True)
        if (fresh := int(block.max()) + 1) <= count:
            break
        count = fresh
    _, first = np.unique(block, return_index=True)
    moves = np.append(block, -1)[table]
    if count == states or not (moves == moves[first][block]).all() or not (accept == accept[first][block]).all():
        return Automaton(table, accept)
    order = np.argsort(first, kind="stable")  # the first state stays the first
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    merged = np.where(moves[first] >= 0, rank[moves[first]], -1)[order]
    return Automaton(merged.astype(np.int32), accept[first][order])


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, so that sums of multiples do not cancel."""
    z = (values + 2).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return z ^ (z >> np.uint64(27))
