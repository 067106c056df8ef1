"""Sets of characters, and which characters a set matches if case is ignored."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache

LAST_CODE_POINT = 0x10FFFF

Ranges = tuple[tuple[int, int], ...]  # code points (first, last), ascending and disjoint


def joined(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """The union of some ranges: sorted and disjoint."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return tuple(found)


def either_case(ranges: Ranges, ascii_only: bool = False) -> Ranges:
    """The characters that a set of characters matches in Python's ``re`` with IGNORECASE.

    A character matches if it is in the same class as one of the set. Besides upper and lower case, a few characters
    share a class: k, K and the Kelvin sign; s, S and the long s.

    Args:
        ascii_only: with the flag ASCII, only the letters A to Z have two cases.
    """
    begins = [first for first, _ in ranges]

    def inside(character: int) -> bool:
        at = bisect_right(begins, character) - 1
        return at >= 0 and character <= ranges[at][1]

    classes = _ASCII_CLASSES if ascii_only else _classes()
    more = [(one, one) for members in classes if any(map(inside, members)) for one in members]
    return joined([*ranges, *more])


_ASCII_CLASSES = tuple((capital, capital + 32) for capital in range(ord("A"), ord("Z") + 1))


@cache
def _classes() -> tuple[tuple[int, ...], ...]:
    """The classes of several characters that differ in case only, by the tables of Python's ``re``.

    They are ``re``'s own tables, so that a constraint means the same as ``re.fullmatch``.
    """
    from _sre import unicode_tolower  # type: ignore[import-not-found]
    from re._casefix import _EXTRA_CASES  # type: ignore[import-not-found]

    members: dict[int, set[int]] = {}
    for character in range(LAST_CODE_POINT + 1):
        if (lower := unicode_tolower(character)) != character:
            members.setdefault(lower, {lower}).add(character)
    for lower, others in _EXTRA_CASES.items():
        whole = set().union(*(members.get(one, {one}) for one in (lower, *others)))
        for one in (lower, *others):
            members[one] = whole
    return tuple(sorted({tuple(sorted(whole)) for whole in members.values()}))
