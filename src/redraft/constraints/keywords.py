"""Keywords: the text contains each of some words, in any order, possibly inside longer words."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from redraft.constraints.automata.byte_automaton import ByteAutomaton, check_size, trimmed
from redraft.constraints.shared.kind import Kind
from redraft.errors import UserError


@dataclass(frozen=True)
class Keywords(Kind):
    """``keywords=cat,garden wall``: the text contains each of them, spelled exactly so, possibly inside a longer word.

    The automaton of Aho and Corasick (1975, doi:10.1145/360825.360855), extended by the set of words seen so far. Its
    number of states grows with 2^words, so it is meant for a few words.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, value: Any) -> Keywords:
        """Create the constraint from words separated by commas, or from a list of words.

        Raises:
            UserError: there are no words, or one of them is empty.
        """
        parts = value.split(",") if isinstance(value, str) else list(value)
        words = tuple(part.strip() if isinstance(value, str) else part for part in parts)
        if not words or not all(isinstance(word, str) and word for word in words):
            raise UserError(
                f"keywords: {value!r} has no words, or an empty one.", "Separate words by commas: keywords=cat,dog"
            )
        return cls(tuple(dict.fromkeys(words)))

    def automaton(self) -> ByteAutomaton:
        """The language of the texts that contain all words.

        Raises:
            UserError: there are too many words.
        """
        move, seen = _search([word.encode() for word in self.words])
        nodes, everything = len(move), (1 << len(self.words)) - 1
        check_size(nodes << len(self.words))
        had = np.arange(everything + 1)[:, None, None]
        target = move[None]  # [1, nodes, 256]
        table = (had | seen[target]) * nodes + target
        return trimmed(table.reshape(-1, 256).astype(np.int32), np.repeat(had.ravel() == everything, nodes))


def _search(words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The moves [nodes, 256] of the search automaton, and the words that end in each node, as bits [nodes]."""
    children: list[dict[int, int]] = [{}]
    ends = [0]
    for number, word in enumerate(words):
        node = 0
        for byte in word:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                ends.append(0)
            node = children[node][byte]
        ends[node] |= 1 << number
    move = np.zeros((len(children), 256), dtype=np.int64)
    fallback, queue = [0] * len(children), deque(children[0].values())
    for byte, child in children[0].items():
        move[0, byte] = child
    while queue:
        node = queue.popleft()
        ends[node] |= ends[fallback[node]]
        move[node] = move[fallback[node]]
        for byte, child in children[node].items():
            fallback[child] = int(move[node, byte])
            move[node, byte] = child
            queue.append(child)
    return move, np.array(ends)
