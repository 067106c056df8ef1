"""From a pattern to a deterministic automaton over classes of characters.

The position automaton (Glushkov 1961; McNaughton and Yamada 1960) of the pattern is made deterministic by the subset
construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from redraft.constraints.automata.patterns import Chain, Choice, Node, Ranges, Repeat, Set, UnsupportedPattern

MAX_POSITIONS = 50_000  # character sets of a pattern once its repetitions are written out
MAX_STEPS = 4_000_000  # steps of the subset construction: seconds


@dataclass
class _Positions:
    """The position automaton of a pattern. Character sets are positions; sets of positions are bits of an integer."""

    sets: list[Ranges]
    follow: list[int]

    def build(self, node: Node) -> tuple[bool, int, int]:
        """Add a node. Returns whether it matches the empty text, and its possible first and last positions."""
        if isinstance(node, Set):
            if not node.ranges:
                return False, 0, 0
            if len(self.sets) >= MAX_POSITIONS:
                raise UnsupportedPattern("it is too large", "Give its repetitions smaller bounds.")
            self.sets.append(node.ranges)
            self.follow.append(0)
            bit = 1 << (len(self.sets) - 1)
            return False, bit, bit
        if isinstance(node, Choice):
            built = [self.build(part) for part in node.parts]
            return any(b[0] for b in built), _union(b[1] for b in built), _union(b[2] for b in built)
        if isinstance(node, Repeat):
            return self.repeat(node)
        assert isinstance(node, Chain)
        done = True, 0, 0
        for part in node.parts:
            done = self.chain(done, self.build(part))
        return done

    def chain(self, a: tuple[bool, int, int], b: tuple[bool, int, int]) -> tuple[bool, int, int]:
        """The combination of ``a`` followed by ``b``."""
        self.join(a[2], b[1])
        return a[0] and b[0], a[1] | b[1] if a[0] else a[1], a[2] | b[2] if b[0] else b[2]

    def join(self, last: int, first: int) -> None:
        """Let the positions ``first`` follow the positions ``last``."""
        for position in _bits(last):
            self.follow[position] |= first

    def repeat(self, node: Repeat) -> tuple[bool, int, int]:
        """x{2,4} is x x (x (x)?)?, and x{2,} is x x*."""
        done, part = (True, 0, 0), (True, 0, 0)
        for _ in range(node.low):
            part = self.build(node.part)
            done = self.chain(done, part)
        if node.high is None:
            if node.low == 0:
                part = self.build(node.part)
                done = True, part[1], part[2]
            self.join(part[2], part[1])
            return done
        first, last = 0, 0  # of the optional copies, each of which needs the one before it
        for count in range(node.high - node.low):
            before, part = part, self.build(node.part)
            if count == 0:
                first = part[1]
            else:
                self.join(before[2], part[1])
            last |= part[2]
        return self.chain(done, (True, first, last))


def _union(masks: Iterator[int]) -> int:
    found = 0
    for mask in masks:
        found |= mask
    return found


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def determinise(node: Node) -> tuple[np.ndarray, np.ndarray, list[Ranges]]:
    """The deterministic automaton of a pattern, over classes of characters (subset construction).

    Returns:
        The next state [S, K] for each class (-1: none), which states accept [S], and the classes.
    Raises:
        UnsupportedPattern: the automaton would be too large.
    """
    positions = _Positions([], [])
    empty, first, last = positions.build(node)
    sets = sorted(set(positions.sets))
    classes, members = _classes(sets)
    reads = [0] * len(classes)  # the positions that read a character of each class
    by_set = {ranges: [k for k, held in enumerate(members) if at in held] for at, ranges in enumerate(sets)}
    for position, ranges in enumerate(positions.sets):
        for k in by_set[ranges]:
            reads[k] |= 1 << position
    # A state is the set of positions that may come next, and whether the text may end here.
    known = {(first, empty): 0}
    queue, moves, work = [(first, empty)], [], 0
    for following, _ in queue:
        row = []
        for readers in reads:
            now = following & readers
            if not now:
                row.append(-1)
                continue
            after = 0
            for position in _bits(now):
                after |= positions.follow[position]
            state = after, bool(now & last)
            if state not in known:
                known[state] = len(known)
                queue.append(state)
            row.append(known[state])
            work += 1 + now.bit_count()
        moves.append(row)
        if work > MAX_STEPS:
            raise UnsupportedPattern("it is too large", "Give its repetitions smaller bounds.")
    accept = np.array([final for _, final in queue])
    return np.array(moves, dtype=np.int32).reshape(len(queue), len(classes)), accept, classes


def _classes(sets: list[Ranges]) -> tuple[list[Ranges], list[frozenset[int]]]:
    """The classes of characters that are in the same sets, and the sets of each class.

    Characters in no set are left out.
    """
    edges = sorted({edge for ranges in sets for first, last in ranges for edge in (first, last + 1)})
    change: dict[int, list[int]] = {edge: [] for edge in edges}
    for number, ranges in enumerate(sets):
        for first, last in ranges:
            change[first].append(number)
            change[last + 1].append(number)
    found: dict[frozenset[int], list[tuple[int, int]]] = {}
    held: set[int] = set()
    for edge, following in zip(edges, [*edges[1:], 0], strict=False):  # after the last edge no set is open
        for number in change[edge]:
            held ^= {number}
        if held:
            found.setdefault(frozenset(held), []).append((edge, following - 1))
    return [tuple(ranges) for ranges in found.values()], list(found)
