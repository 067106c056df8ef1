"""Regular expressions as automata over bytes, within bounds that are kept.

Python's own parser reads the pattern, so it means what ``re.fullmatch`` says it means; the position automaton
(Glushkov 1961; McNaughton and Yamada 1960) of the parsed pattern is made deterministic over classes of characters, and
every character then becomes its bytes in UTF-8. (outlines-core, the usual library, keeps the order of alternatives: it
drops "ab" from ``a|ab``, and ``Das .{5,40} ist gut`` takes it minutes and no bound can be set.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from redraft.constraints._bytes import Automaton, check_size, trimmed
from redraft.errors import UserError

_LAST = 0x10FFFF
_MOST_POSITIONS = 50_000  # characters of a pattern once its repetitions are written out
_MOST_WORK = 4_000_000  # steps of making it deterministic: seconds

Ranges = tuple[tuple[int, int], ...]  # code points, rising, disjoint


@dataclass(frozen=True)
class Set:
    """One character out of some."""

    ranges: Ranges


@dataclass(frozen=True)
class Chain:
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Choice:
    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Repeat:
    part: Any
    low: int
    high: int | None


@dataclass(frozen=True)
class Edge:
    """The beginning or the end of the text."""

    begin: bool


Node = Set | Chain | Choice | Repeat | Edge


def from_regex(pattern: str) -> Automaton:
    """The texts that a regular expression matches from beginning to end.

    Raises:
        UserError: not a regular expression, one beyond automata (look-around, back-references), or too large.
    """
    try:
        return automaton(parse(pattern))
    except Beyond as error:
        raise UserError(f"the regular expression {_shown(pattern)} can't be followed: {error}.", error.remedy) from None


def automaton(node: Node) -> Automaton:
    """The automaton over bytes of a parsed pattern."""
    return _bytes(*_deterministic(whole(node, None)))


class Beyond(Exception):
    """A pattern that can't be followed, and what to do about it."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


# ---- reading


def parse(pattern: str, narrow: bool = False) -> Node:
    r"""Parse a pattern in Python's syntax. ``narrow``: ``\d \w`` are ASCII (as in JSON Schema), while ``\D \W`` still
    exclude every digit and letter, so that both readings of the pattern agree with it.

    Raises:
        Beyond: it is none, or has look-around, word boundaries, back-references.
    """
    from re import _parser  # type: ignore[attr-defined]

    try:
        tree = _parser.parse(pattern)
    except re.error as error:
        remedy = "Close what is open; a backslash takes the next character as it stands: \\[."
        raise Beyond(f"it is no regular expression ({error})", remedy) from None
    except (OverflowError, RecursionError) as error:
        raise Beyond(f"it is too large ({error})", "Write it with fewer parts and repetitions.") from None
    return _Reader(narrow).sequence(tree, tree.state.flags)


@dataclass(frozen=True)
class _Reader:
    narrow: bool

    def sequence(self, items: Any, flags: int) -> Node:
        parts = [self.item(str(name), value, flags) for name, value in items]
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def item(self, name: str, value: Any, flags: int) -> Node:
        if name in ("LITERAL", "NOT_LITERAL", "IN"):
            return self.characters(name, value, flags)
        if name == "ANY":
            return Set(((0, _LAST),) if flags & re.DOTALL else ((0, 9), (11, _LAST)))
        if name == "BRANCH":
            return Choice(tuple(self.sequence(part, flags) for part in value[1]))
        if name == "SUBPATTERN":
            return self.sequence(value[3], (flags | value[1]) & ~value[2])
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, part = value
            return Repeat(self.sequence(part, flags), int(low), None if str(high) == "MAXREPEAT" else int(high))
        if name == "AT" and str(value) in ("AT_BEGINNING", "AT_BEGINNING_STRING", "AT_END", "AT_END_STRING"):
            return Edge("BEGINNING" in str(value))
        names = {"AT": "word boundaries", "ASSERT": "look-around", "ASSERT_NOT": "look-around"}
        names |= {"GROUPREF": "back-references", "GROUPREF_EXISTS": "back-references"}
        raise Beyond(f"it has {names.get(name, 'possessive or atomic parts')}", "Write it without them.")

    def characters(self, name: str, value: Any, flags: int) -> Set:
        items = value if name == "IN" else [("LITERAL", value)]
        negated = name == "NOT_LITERAL" or str(items[0][0]) == "NEGATE"
        found: list[tuple[int, int]] = []
        for kind, what in items:
            if str(kind) == "LITERAL":
                found.append((what, what))
            elif str(kind) == "RANGE":
                found.append(what)
            elif str(kind) == "CATEGORY":
                found += self.category(str(what), bool(flags & re.ASCII), negated)
        ranges = joined(found)
        if flags & re.IGNORECASE:
            ranges = _either_case(ranges)
        return Set(inverted(ranges) if negated else ranges)

    def category(self, name: str, ascii_only: bool, negated: bool) -> Ranges:
        letter = name.removeprefix("CATEGORY_").removeprefix("UNI_").removeprefix("NOT_")[0].lower()
        inverse = "NOT_" in name
        everything = not ascii_only and (not self.narrow or inverse != negated)
        ranges = _category(letter, everything)
        return inverted(ranges) if inverse else ranges


@cache
def _category(letter: str, everything: bool) -> Ranges:
    r"""Characters of \d, \w or \s; ``everything``: beyond ASCII too."""
    tests: dict[str, Callable[[str], bool]] = {
        "d": str.isdecimal,
        "w": lambda sign: sign.isalnum() or sign == "_",
        "s": str.isspace,
    }
    return joined([(c, c) for c in range(_LAST + 1 if everything else 128) if tests[letter](chr(c))])


def _either_case(ranges: Ranges) -> Ranges:
    """With the other case of each character; very large sets stay as they are."""
    if sum(last - first + 1 for first, last in ranges) > 5_000:
        return ranges
    signs = [chr(c) for first, last in ranges for c in range(first, last + 1)]
    others = [other for sign in signs for other in (sign.lower(), sign.upper()) if len(other) == 1]
    return joined([*ranges, *((ord(other), ord(other)) for other in others)])


def joined(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Sorted, and without overlaps."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return tuple(found)


def inverted(ranges: Ranges) -> Ranges:
    """All other characters."""
    edges = [-1, *(edge for first, last in ranges for edge in (first, last)), _LAST + 1]
    return tuple((edges[at] + 1, edges[at + 1] - 1) for at in range(0, len(edges), 2) if edges[at] + 1 < edges[at + 1])


def common(a: Ranges, b: Ranges) -> Ranges:
    """Characters in both."""
    return inverted(joined([*inverted(a), *inverted(b)]))


# ---- rewriting


def whole(node: Node, around: Node | None) -> Node:
    """Without its edges. ``around`` None: the whole text must match, so edges at the ends of an alternative say nothing
    more. Else the pattern may match any part of a text of ``around``, save where an edge ties it down.

    Raises:
        Beyond: an edge inside.
    """
    if isinstance(node, Choice):
        return Choice(tuple(whole(part, around) for part in node.parts))
    parts = list(node.parts) if isinstance(node, Chain) else [node]
    begins, ends = parts and parts[0] == Edge(True), False
    if begins:
        parts = parts[1:]
    if parts and parts[-1] == Edge(False):
        parts, ends = parts[:-1], True
    if len(parts) == 1 and isinstance(parts[0], Choice) and (around is None or not (begins or ends)):
        return whole(parts[0], around)
    if any(isinstance(part, Edge) for part in _all(parts)):
        raise Beyond("'^' or '$' stands inside", "Write whole texts, where they are not needed.")
    if around is not None:
        parts = [*([] if begins else [around]), *parts, *([] if ends else [around])]
    return Chain(tuple(parts))


def _all(parts: Sequence[Node]) -> Iterator[Node]:
    for part in parts:
        yield part
        if isinstance(part, Chain | Choice):
            yield from _all(part.parts)
        elif isinstance(part, Repeat):
            yield from _all([part.part])


def within(node: Node, ranges: Ranges) -> Node:
    """The same pattern over fewer characters."""
    if isinstance(node, Set):
        return Set(common(node.ranges, ranges))
    if isinstance(node, Repeat):
        return Repeat(within(node.part, ranges), node.low, node.high)
    if isinstance(node, Edge):
        return node
    return type(node)(tuple(within(part, ranges) for part in node.parts))


def text(node: Node) -> str:
    """A pattern that says the same."""
    if isinstance(node, Set):
        shown = "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in node.ranges)
        return f"[{shown}]" if shown else r"[^\s\S]"
    if isinstance(node, Repeat):
        return f"(?:{text(node.part)}){{{node.low},{'' if node.high is None else node.high}}}"
    if isinstance(node, Edge):
        return "^" if node.begin else "$"
    parts = [text(part) for part in node.parts]
    return f"(?:{'|'.join(parts)})" if isinstance(node, Choice) else "".join(parts)


# ---- positions


@dataclass
class _Positions:
    """Every character of a pattern is a position; sets of positions are the bits of an integer."""

    sets: list[Ranges]
    follow: list[int]

    def build(self, node: Node) -> tuple[bool, int, int]:
        """May it be empty, where may it begin, where may it end?"""
        if isinstance(node, Set):
            if not node.ranges:
                return False, 0, 0
            if len(self.sets) >= _MOST_POSITIONS:
                raise Beyond("it is too large", "Bound its repetitions more tightly.")
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
            done = self.after(done, self.build(part))
        return done

    def after(self, a: tuple[bool, int, int], b: tuple[bool, int, int]) -> tuple[bool, int, int]:
        self.join(a[2], b[1])
        return a[0] and b[0], a[1] | b[1] if a[0] else a[1], a[2] | b[2] if b[0] else b[2]

    def join(self, last: int, first: int) -> None:
        for place in _bits(last):
            self.follow[place] |= first

    def repeat(self, node: Repeat) -> tuple[bool, int, int]:
        """x{2,4} is x x (x (x)?)?, and x{2,} is x x*."""
        done, part = (True, 0, 0), (True, 0, 0)
        for _ in range(node.low):
            part = self.build(node.part)
            done = self.after(done, part)
        if node.high is None:
            if node.low == 0:
                part = self.build(node.part)
                done = True, part[1], part[2]
            self.join(part[2], part[1])
            return done
        first, last = 0, 0  # of the optional copies, each of which asks for the one before it
        for count in range(node.high - node.low):
            before, part = part, self.build(node.part)
            if count == 0:
                first = part[1]
            else:
                self.join(before[2], part[1])
            last |= part[2]
        return self.after(done, (True, first, last))


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


# ---- making it deterministic


def _deterministic(node: Node) -> tuple[np.ndarray, np.ndarray, list[Ranges]]:
    """Moves [S, K] over classes of characters (-1: none), which states accept [S], and the classes."""
    positions = _Positions([], [])
    empty, first, last = positions.build(node)
    sets = sorted(set(positions.sets))
    classes, members = _classes(sets)
    reads = [0] * len(classes)  # the positions that read a character of each class
    by_set = {ranges: [k for k, held in enumerate(members) if at in held] for at, ranges in enumerate(sets)}
    for place, ranges in enumerate(positions.sets):
        for k in by_set[ranges]:
            reads[k] |= 1 << place
    # A state is what may come next, and whether the text may end here.
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
            for place in _bits(now):
                after |= positions.follow[place]
            state = after, bool(now & last)
            if state not in known:
                known[state] = len(known)
                queue.append(state)
            row.append(known[state])
            work += 1 + now.bit_count()
        moves.append(row)
        if work > _MOST_WORK:
            raise Beyond("it is too large", "Bound its repetitions more tightly.")
    accept = np.array([final for _, final in queue])
    return np.array(moves, dtype=np.int32).reshape(len(queue), len(classes)), accept, classes


def _classes(sets: list[Ranges]) -> tuple[list[Ranges], list[frozenset[int]]]:
    """Characters that are in the same sets form a class; those in none are left out. Which sets, too."""
    edges = sorted({edge for ranges in sets for first, last in ranges for edge in (first, last + 1)})
    change: dict[int, list[int]] = {edge: [] for edge in edges}
    for number, ranges in enumerate(sets):
        for first, last in ranges:
            change[first].append(number)
            change[last + 1].append(number)
    found: dict[frozenset[int], list[tuple[int, int]]] = {}
    held: set[int] = set()
    for edge, following in zip(edges, [*edges[1:], 0], strict=False):  # nothing is held after the last edge
        for number in change[edge]:
            held ^= {number}
        if held:
            found.setdefault(frozenset(held), []).append((edge, following - 1))
    return [tuple(ranges) for ranges in found.values()], list(found)


# ---- characters as bytes


def _bytes(moves: np.ndarray, accept: np.ndarray, classes: list[Ranges]) -> Automaton:
    """Every move by a character becomes moves by its UTF-8 bytes. Halves of surrogate pairs have none.

    The tree of the encoding is the same for all states: a state of the result is a state and a place in that tree.
    """
    tree = _tree(classes)
    root = len(tree) - 1
    below = np.zeros((len(tree), len(classes)), dtype=bool)  # classes that can be reached from a node
    for at, entries in enumerate(tree):
        for child in set(entries[entries >= 0].tolist()):
            below[at] |= below[child]
        below[at, -2 - np.unique(entries[entries < -1])] = True
    number = np.full((len(moves), len(tree)), -1, dtype=np.int64)  # of a state of the result
    number[:, root] = np.arange(len(moves))
    states, places = [np.arange(len(moves))], [np.full(len(moves), root)]
    count = len(moves)
    for node, held in enumerate(below[:-1]):
        live = np.flatnonzero((moves[:, held] >= 0).any(1))
        if len(live):  # states that do the same from here on are one
            _, first, which = np.unique(moves[live][:, held], axis=0, return_index=True, return_inverse=True)
            number[live, node] = count + which.ravel()
            states.append(live[first])
            places.append(np.full(len(first), node))
            count += len(first)
    check_size(count)
    state, place = np.concatenate(states), np.concatenate(places)
    nodes = np.stack(tree)[place]  # [states, 256]
    table = np.full(nodes.shape, -1, dtype=np.int64)
    row, byte = np.nonzero(nodes >= 0)
    table[row, byte] = number[state[row], nodes[row, byte]]
    row, byte = np.nonzero(nodes < -1)
    table[row, byte] = moves[state[row], -2 - nodes[row, byte]]  # the number of a state at the root is its own
    return trimmed(table.astype(np.int32), (place == root) & accept[state])


def _tree(classes: list[Ranges]) -> list[np.ndarray]:
    """The UTF-8 bytes of all characters as nodes [256], children before parents and the root last.

    An entry is a child (>= 0), -2 - class where the byte completes a character of that class, or -1.
    """
    of = np.full(_LAST + 1, -1, dtype=np.int32)
    for k, ranges in enumerate(classes):
        for first, last in ranges:
            of[first : last + 1] = -2 - k
    of[0xD800:0xE000] = -1
    nodes: list[np.ndarray] = []

    def grown(rows: np.ndarray) -> np.ndarray:
        """Nodes of which each reads a continuation byte: [N, 64] entries -> [N] nodes, -1 for those without entries."""
        known = {np.full(64, -1, dtype=rows.dtype).tobytes(): -1}
        numbers = np.empty(len(rows), dtype=np.int64)
        even = (rows == rows[:, :1]).all(1)  # most rows hold one entry 64 times: one of a kind will do
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
    pairs[0, :32] = -1  # shorter encodings must be used where they exist
    two = grown(pairs)
    triples = np.full(5 * 64, -1)
    triples[16 : len(two)] = two[16:]
    three = grown(triples.reshape(-1, 64))
    root = np.full(256, -1)
    root[:0x80], root[0xC2:0xE0], root[0xE0:0xF0], root[0xF0:0xF5] = of[:0x80], one[2:32], two[:16], three
    return [*nodes, root]


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")
