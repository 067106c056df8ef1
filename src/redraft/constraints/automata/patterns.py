"""Regular expressions as trees of nodes: parsing, rewriting, and sets of characters.

The pattern is parsed by Python's own parser, so it means the same as in ``re.fullmatch``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from redraft.constraints.automata import case_folding
from redraft.constraints.automata.case_folding import LAST_CODE_POINT, Ranges, joined


@dataclass(frozen=True)
class Set:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True)
class Chain:
    """Parts one after the other."""

    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Choice:
    """One of several parts."""

    parts: tuple[Any, ...]


@dataclass(frozen=True)
class Repeat:
    """A part repeated ``low`` to ``high`` times; ``high`` None: no upper bound."""

    part: Any
    low: int
    high: int | None


@dataclass(frozen=True)
class Listed:
    """``low`` to ``high`` items with separators between them; ``high`` None: no upper bound. No item is empty."""

    item: Any
    separator: Any
    low: int
    high: int | None


@dataclass(frozen=True)
class Members:
    """Parts in order with separators between them. Those that are not ``required`` may be left out. None is empty."""

    parts: tuple[Any, ...]
    required: tuple[bool, ...]
    separator: Any


@dataclass(frozen=True)
class Anchor:
    """The beginning or the end of the text (``^`` or ``$``)."""

    begin: bool


Node = Set | Chain | Choice | Repeat | Listed | Members | Anchor
_DEPTH = 100  # nested groups of a pattern
_LONGEST = 100_000  # characters of a pattern


class UnsupportedPattern(Exception):
    """A pattern that can't be compiled. The message completes "can't be compiled: ...".

    Args:
        what: the reason.
        remedy: what to do about it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


def parse(pattern: str, narrow: bool = False) -> Node:
    r"""Parse a pattern in Python's syntax.

    Args:
        narrow: ``\d`` and ``\w`` match ASCII only (as in JSON Schema), while ``\D`` and ``\W`` still exclude all
            Unicode digits and letters, so that a match satisfies both readings of the pattern.
    Raises:
        UnsupportedPattern: it is not a regular expression, or uses look-around, word boundaries or back-references.
    """
    from re import _parser  # type: ignore[attr-defined]

    if len(pattern) > _LONGEST:
        raise UnsupportedPattern(f"it is too large ({len(pattern)} characters)", f"Use at most {_LONGEST}.")
    try:
        tree = _parser.parse(pattern)
    except re.error as error:
        remedy = "Close every bracket; write a backslash before a character that stands for itself: \\[."
        raise UnsupportedPattern(f"it is not a valid regular expression ({error})", remedy) from None
    except (OverflowError, RecursionError) as error:
        raise UnsupportedPattern(f"it is too large ({error})", "Use fewer parts and repetitions.") from None
    return _Reader(narrow).sequence(tree, tree.state.flags, 0)


def text(literal: str) -> Node:
    """The pattern of one text."""
    return Chain(tuple(Set(((ord(character), ord(character)),)) for character in literal))


@dataclass(frozen=True)
class _Reader:
    """Converts the parse tree of Python's ``re`` to nodes."""

    narrow: bool

    def sequence(self, items: Any, flags: int, depth: int) -> Node:
        if depth > _DEPTH:
            raise UnsupportedPattern(f"it has more than {_DEPTH} nested groups", "Write it with fewer.")
        parts = [self.item(str(name), value, flags, depth + 1) for name, value in items]
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def item(self, name: str, value: Any, flags: int, depth: int) -> Node:
        if name in ("LITERAL", "NOT_LITERAL", "IN"):
            return self.characters(name, value, flags)
        if name == "ANY":
            return Set(((0, LAST_CODE_POINT),) if flags & re.DOTALL else ((0, 9), (11, LAST_CODE_POINT)))
        if name == "BRANCH":
            return Choice(tuple(self.sequence(part, flags, depth) for part in value[1]))
        if name == "SUBPATTERN":
            return self.sequence(value[3], (flags | value[1]) & ~value[2], depth)
        if name in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, part = value
            return Repeat(self.sequence(part, flags, depth), int(low), None if str(high) == "MAXREPEAT" else int(high))
        if name == "AT" and str(value) in ("AT_BEGINNING", "AT_BEGINNING_STRING", "AT_END", "AT_END_STRING"):
            return Anchor("BEGINNING" in str(value))
        names = {"AT": "word boundaries", "ASSERT": "look-around", "ASSERT_NOT": "look-around"}
        names |= {"GROUPREF": "back-references", "GROUPREF_EXISTS": "back-references"}
        raise UnsupportedPattern(
            f"it uses {names.get(name, 'possessive or atomic parts')}", "Write the pattern without them."
        )

    def characters(self, name: str, value: Any, flags: int) -> Set:
        items = value if name == "IN" else [("LITERAL", value)]
        negated = name == "NOT_LITERAL" or str(items[0][0]) == "NEGATE"
        found: list[tuple[int, int]] = []
        categories: list[tuple[int, int]] = []
        for kind, item in items:
            if str(kind) == "LITERAL":
                found.append((item, item))
            elif str(kind) == "RANGE":
                found.append(item)
            elif str(kind) == "CATEGORY":
                categories += self.category(str(item), bool(flags & re.ASCII), negated)
        if flags & re.IGNORECASE:
            found = list(case_folding.either_case(joined(found), bool(flags & re.ASCII)))
        ranges = joined([*found, *categories])
        return Set(inverted(ranges) if negated else ranges)

    def category(self, name: str, ascii_only: bool, negated: bool) -> Ranges:
        letter = name.removeprefix("CATEGORY_").removeprefix("UNI_").removeprefix("NOT_")[0].lower()
        inverse = "NOT_" in name
        everything = not ascii_only and (not self.narrow or inverse != negated)
        ranges = _category(letter, everything)
        return inverted(ranges) if inverse else ranges


@cache
def _category(letter: str, everything: bool) -> Ranges:
    r"""Characters of \d, \w or \s; ``everything``: also beyond ASCII."""
    tests: dict[str, Callable[[str], bool]] = {
        "d": str.isdecimal,
        "w": lambda character: character.isalnum() or character == "_",
        "s": str.isspace,
    }
    return joined([(c, c) for c in range(LAST_CODE_POINT + 1 if everything else 128) if tests[letter](chr(c))])


def inverted(ranges: Ranges) -> Ranges:
    """All other characters."""
    edges = [-1, *(edge for first, last in ranges for edge in (first, last)), LAST_CODE_POINT + 1]
    return tuple((edges[at] + 1, edges[at + 1] - 1) for at in range(0, len(edges), 2) if edges[at] + 1 < edges[at + 1])


def common(a: Ranges, b: Ranges) -> Ranges:
    """The characters that are in both."""
    return inverted(joined([*inverted(a), *inverted(b)]))


def without_anchors(node: Node, around: Node | None) -> Node:
    """An equivalent pattern without anchors.

    Args:
        around: None: the pattern matches the whole text, so anchors at the ends of an alternative change nothing.
            Otherwise the pattern may match any part of a text of ``around``, except where an anchor fixes it.
    Raises:
        UnsupportedPattern: an anchor is inside the pattern.
    """
    if isinstance(node, Choice):
        return Choice(tuple(without_anchors(part, around) for part in node.parts))
    parts = list(node.parts) if isinstance(node, Chain) else [node]
    begins, ends = parts and parts[0] == Anchor(True), False
    if begins:
        parts = parts[1:]
    if parts and parts[-1] == Anchor(False):
        parts, ends = parts[:-1], True
    if len(parts) == 1 and isinstance(parts[0], Choice) and (around is None or not (begins or ends)):
        return without_anchors(parts[0], around)
    if any(isinstance(part, Anchor) for part in _descendants(parts)):
        raise UnsupportedPattern(
            "'^' or '$' stands inside it", "Use them only at the beginning and at the end of an alternative."
        )
    if around is not None:
        parts = [*([] if begins else [around]), *parts, *([] if ends else [around])]
    return Chain(tuple(parts))


def _descendants(parts: Sequence[Node]) -> Iterator[Node]:
    for part in parts:
        yield part
        if isinstance(part, Chain | Choice):
            yield from _descendants(part.parts)
        elif isinstance(part, Repeat):
            yield from _descendants([part.part])


def with_sets(node: Node, change: Callable[[Ranges], Node]) -> Node:
    """The same pattern with every set of characters replaced."""
    if isinstance(node, Set):
        return change(node.ranges)
    if isinstance(node, Repeat):
        return Repeat(with_sets(node.part, change), node.low, node.high)
    if isinstance(node, Chain | Choice):
        return type(node)(tuple(with_sets(part, change) for part in node.parts))
    return node
