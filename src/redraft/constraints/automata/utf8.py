"""From automata over characters to automata over UTF-8 bytes."""

from __future__ import annotations

import numpy as np

from redraft.constraints.automata.byte_automaton import ByteAutomaton, check_size, trimmed
from redraft.constraints.automata.patterns import LAST_CODE_POINT, Ranges


def over_bytes(moves: np.ndarray, accept: np.ndarray, classes: list[Ranges]) -> ByteAutomaton:
    """Replace each move by a character by moves by its UTF-8 bytes. Surrogates have no encoding.

    The encodings of all characters form one tree, shared by all states. A state of the result is a state and a node of
    that tree.

    Args:
        moves: [S, K] the next state for each class of characters, -1 for none. accept: [S] bool.
        classes: the characters of each class.
    Raises:
        UserError: the automaton is too large, or accepts no text.
    """
    tree = _tree(classes)
    root = len(tree) - 1
    below = np.zeros((len(tree), len(classes)), dtype=bool)  # classes that can be reached from a node
    for at, entries in enumerate(tree):
        for child in set(entries[entries >= 0].tolist()):
            below[at] |= below[child]
        below[at, -2 - np.unique(entries[entries < -1])] = True
    number = np.full((len(moves), len(tree)), -1, dtype=np.int32)  # of each state of the result
    number[:, root] = np.arange(len(moves))
    states, nodes_at = [np.arange(len(moves))], [np.full(len(moves), root)]
    count = len(moves)
    for node, held in enumerate(below[:-1]):
        live = np.flatnonzero((moves[:, held] >= 0).any(1))
        if len(live):  # states with the same moves from here on are merged
            _, first, which = np.unique(moves[live][:, held], axis=0, return_index=True, return_inverse=True)
            number[live, node] = count + which.ravel()
            states.append(live[first])
            nodes_at.append(np.full(len(first), node))
            count += len(first)
            check_size(count)
    state, node_at = np.concatenate(states), np.concatenate(nodes_at)
    nodes = np.stack(tree)[node_at]  # [states, 256]
    table = np.full(nodes.shape, -1, dtype=np.int64)
    row, byte = np.nonzero(nodes >= 0)
    table[row, byte] = number[state[row], nodes[row, byte]]
    row, byte = np.nonzero(nodes < -1)
    table[row, byte] = moves[state[row], -2 - nodes[row, byte]]  # at the root, the number is that of the state
    return trimmed(table.astype(np.int32), (node_at == root) & accept[state])


def _tree(classes: list[Ranges]) -> list[np.ndarray]:
    """The UTF-8 encodings of all characters as a tree of nodes [256], children before parents, the root last.

    An entry is a child (>= 0), -2 - class if the byte completes a character of that class, or -1.
    """
    of = np.full(LAST_CODE_POINT + 1, -1, dtype=np.int32)
    for k, ranges in enumerate(classes):
        for first, last in ranges:
            of[first : last + 1] = -2 - k
    of[0xD800:0xE000] = -1
    nodes: list[np.ndarray] = []

    def grown(rows: np.ndarray) -> np.ndarray:
        """Nodes that read one continuation byte: entries [N, 64] -> nodes [N], -1 for rows without entries."""
        known = {np.full(64, -1, dtype=rows.dtype).tobytes(): -1}
        numbers = np.empty(len(rows), dtype=np.int64)
        even = (rows == rows[:, :1]).all(1)  # most rows repeat one entry: a node for each distinct one suffices
        _, first, which = np.unique(rows[even, 0], return_index=True, return_inverse=True)
        ones, others = np.flatnonzero(even)[first], np.flatnonzero(~even)
        for at in [*ones.tolist(), *others.tolist()]:
            numbers[at] = known.setdefault(rows[at].tobytes(), len(nodes))
            if numbers[at] == len(nodes):
                nodes.append(np.concatenate([np.full(0x80, -1), rows[at], np.full(0x40, -1)]))
        numbers[even] = numbers[ones][which]
        return numbers

    one = grown(of.reshape(-1, 64))
    pairs = one.reshape(-1, 64).copy()
    pairs[0, :32] = -1  # overlong encodings are invalid
    two = grown(pairs)
    triples = np.full(5 * 64, -1)
    triples[16 : len(two)] = two[16:]
    three = grown(triples.reshape(-1, 64))
    root = np.full(256, -1)
    root[:0x80], root[0xC2:0xE0], root[0xE0:0xF0], root[0xF0:0xF5] = of[:0x80], one[2:32], two[:16], three
    return [*nodes, root]
