"""From a pattern to a deterministic automaton over classes of characters.

The position automaton (Glushkov 1961; McNaughton and Yamada 1960) of the pattern is made deterministic by the subset
construction. Both count their work and stop when it would take more than a few seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from redraft.constraints.automata.byte_automaton import MAX_STATES
from redraft.constraints.automata.patterns import (
    Chain,
    Choice,
    Listed,
    Members,
    Node,
    Ranges,
    Repeat,
    Set,
    UnsupportedPattern,
)

MAX_POSITIONS = 50_000  # character sets of a pattern once its repetitions are written out
MAX_WORK = 20_000_000  # elements of the sets of positions that are read or written: seconds

Positions = frozenset[int]
_NONE: Positions = frozenset()


@dataclass(frozen=True)
class _Part:
    """What is known of a part of a pattern: may it be empty, and its possible first and last positions."""

    empty: bool
    first: Positions = _NONE
    last: Positions = _NONE


@dataclass
class _Budget:
    """Counts work, so that its bound does not depend on the speed of the machine."""

    left: int = MAX_WORK

    def spend(self, work: int) -> None:
        """Raises UnsupportedPattern if nothing is left."""
        self.left -= work
        if self.left < 0:
            raise UnsupportedPattern("it is too large", "Give its repetitions smaller bounds.")


@dataclass
class _PositionAutomaton:
    """The position automaton of a pattern. Its positions are the character sets of the pattern.

    Fields:
        follow: the sets of positions that may follow each position. The sets are shared, and never copied.
    """

    budget: _Budget
    sets: list[Ranges] = field(default_factory=list)
    follow: list[list[Positions]] = field(default_factory=list)

    def build(self, node: Node) -> _Part:
        """Add a node.

        Raises:
            UnsupportedPattern: the pattern is too large.
        """
        self.budget.spend(1)
        if isinstance(node, Set):
            return self.one(node)
        if isinstance(node, Choice):
            built = [self.build(part) for part in node.parts]
            return _Part(
                any(part.empty for part in built),
                self.union(part.first for part in built),
                self.union(part.last for part in built),
            )
        if isinstance(node, Repeat):
            return self.repeat(node)
        if isinstance(node, Listed):
            return self.listed(node)
        if isinstance(node, Members):
            return self.members(node)
        assert isinstance(node, Chain)
        done = _Part(True)
        for part in node.parts:
            done = self.chain(done, self.build(part))
        return done

    def one(self, node: Set) -> _Part:
        """A character of a set."""
        if not node.ranges:
            return _Part(False)
        if len(self.sets) >= MAX_POSITIONS:
            raise UnsupportedPattern("it is too large", "Give its repetitions smaller bounds.")
        own = frozenset((len(self.sets),))
        self.sets.append(node.ranges)
        self.follow.append([])
        return _Part(False, own, own)

    def union(self, parts: Iterable[Positions]) -> Positions:
        """The union of some sets of positions."""
        held = [part for part in parts if part]
        if len(held) < 2:
            return held[0] if held else _NONE
        self.budget.spend(sum(map(len, held)))
        return _NONE.union(*held)

    def join(self, last: Positions, first: Positions) -> None:
        """Let the positions ``first`` follow the positions ``last``."""
        if first:
            self.budget.spend(len(last))
            for position in last:
                self.follow[position].append(first)

    def chain(self, a: _Part, b: _Part) -> _Part:
        """The combination of ``a`` followed by ``b``."""
        self.join(a.last, b.first)
        first = self.union((a.first, b.first)) if a.empty else a.first
        last = self.union((a.last, b.last)) if b.empty else b.last
        return _Part(a.empty and b.empty, first, last)

    def repeat(self, node: Repeat) -> _Part:
        """x{2,4} is x x (x (x)?)?, and x{2,} is x x*. If x may be empty, x{2,4} is the same as x{0,4}."""
        done = part = self.build(node.part) if node.high != 0 else _Part(True)
        low = 0 if part.empty else node.low
        for _ in range(low - 1):
            part = self.build(node.part)
            done = self.chain(done, part)
        if node.high is None:
            self.join(part.last, part.first)
            return _Part(True, done.first, done.last) if low == 0 else done
        begin, first = (done, part.first) if low else (_Part(True), part.first)
        lasts = [] if low else [part.last]
        for count in range(max(low, 1), node.high):
            before, part = part, self.build(node.part)
            if low and count == low:
                first = part.first
            else:  # each optional copy needs the one before it
                self.join(before.last, part.first)
            lasts.append(part.last)
        return self.chain(begin, _Part(True, first, self.union(lasts))) if lasts else begin

    def listed(self, node: Listed) -> _Part:
        """x (, x)*: an unbounded list needs one copy of its item, so that nested lists don't double at every level."""
        if node.high == 0:
            return _Part(True)
        done = item = self.build(node.item)
        count = 1
        ends = [item.last] if count >= node.low else []
        while node.high is None and count < node.low or node.high is not None and count < node.high:
            separator = self.build(node.separator)
            self.join(item.last, separator.first)
            item = self.build(node.item)
            self.join(separator.last, item.first)
            count += 1
            ends += [item.last] if count >= node.low else []
        if node.high is None:
            separator = self.build(node.separator)
            self.join(item.last, separator.first)
            self.join(separator.last, item.first)
        return _Part(node.low == 0, done.first, self.union(ends))

    def members(self, node: Members) -> _Part:
        """Members in order, some of which may be left out: one copy of each, and a separator after each."""
        built = [self.build(part) for part in node.parts]
        needed = [at for at, required in enumerate(node.required) if required]
        for at, part in enumerate(built[:-1]):
            separator = self.build(node.separator)
            self.join(part.last, separator.first)
            until = next((index for index in needed if index > at), len(built) - 1)
            self.join(separator.last, self.union(each.first for each in built[at + 1 : until + 1]))
        lead = needed[0] if needed else len(built) - 1
        end = needed[-1] if needed else 0
        first = self.union(part.first for part in built[: lead + 1])
        return _Part(not needed, first, self.union(part.last for part in built[end:]))


def determinise(node: Node) -> tuple[np.ndarray, np.ndarray, list[Ranges]]:
    """The deterministic automaton of a pattern, over classes of characters (subset construction).

    Returns:
        The next state [S, K] for each class (-1: none), which states accept [S], and the classes.
    Raises:
        UnsupportedPattern: the automaton would be too large.
    """
    budget = _Budget()
    positions = _PositionAutomaton(budget)
    whole = positions.build(node)
    sets = sorted(set(positions.sets))
    classes, of_set = _classes(sets, budget)
    number = {ranges: at for at, ranges in enumerate(sets)}
    set_of = [number[ranges] for ranges in positions.sets]
    # A state is the set of positions that may come next, and whether the text may end here.
    known = {(whole.first, whole.empty): 0}
    queue, moves = [(whole.first, whole.empty)], []
    for following, _ in queue:
        row = np.full(len(classes), -1, dtype=np.int32)
        for columns, readers in _by_class(following, set_of, of_set, budget):
            after = _after(readers, positions.follow, budget)
            state = after, not whole.last.isdisjoint(readers)
            if state not in known:
                known[state] = len(known)
                queue.append(state)
            row[columns] = known[state]
        budget.spend(100 + len(classes))  # of one state
        if len(known) > MAX_STATES:
            raise UnsupportedPattern("it is too large", "Give its repetitions smaller bounds.")
        moves.append(row)
    accept = np.array([final for _, final in queue])
    return np.array(moves, dtype=np.int32).reshape(len(queue), len(classes)), accept, classes


def _by_class(
    following: Positions, set_of: Sequence[int], of_set: Sequence[np.ndarray], budget: _Budget
) -> list[tuple[list[int] | np.ndarray, Positions | list[int]]]:
    """The classes of characters that lead on, in groups with the same positions that read them, by first class."""
    budget.spend(len(following))
    by_set: dict[int, list[int]] = {}
    for position in following:
        by_set.setdefault(set_of[position], []).append(position)
    if len(by_set) == 1:
        ((one, held),) = by_set.items()
        return [(of_set[one], held)]
    readers: dict[int, list[int]] = {}  # of each class: the sets that contain it
    for one in sorted(by_set):
        budget.spend(len(of_set[one]))
        for column in of_set[one].tolist():
            readers.setdefault(column, []).append(one)
    groups: dict[tuple[int, ...], list[int]] = {}
    for column in sorted(readers):
        groups.setdefault(tuple(readers[column]), []).append(column)
    return [(columns, [at for one in key for at in by_set[one]]) for key, columns in groups.items()]


def _after(readers: Iterable[int], follow: Sequence[Sequence[Positions]], budget: _Budget) -> Positions:
    """The positions that may follow after some positions."""
    budget.spend(sum(len(follow[position]) for position in readers))
    parts = {id(part): part for position in readers for part in follow[position]}
    if len(parts) == 1:
        return next(iter(parts.values()))
    budget.spend(sum(map(len, parts.values())))
    return _NONE.union(*parts.values())


def _classes(sets: list[Ranges], budget: _Budget) -> tuple[list[Ranges], list[np.ndarray]]:
    """The classes of characters that are in the same sets, and the classes of each set.

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
        budget.spend(len(held))
        if held:
            found.setdefault(frozenset(held), []).append((edge, following - 1))
    of_set: list[list[int]] = [[] for _ in sets]
    for column, members in enumerate(found):
        for number in members:
            of_set[number].append(column)
    return [tuple(ranges) for ranges in found.values()], [np.array(columns, dtype=np.int64) for columns in of_set]
