"""The answer within a text, and the number that an answer is."""

from __future__ import annotations

import re
from fractions import Fraction

_OPEN, _CLOSE, _MARK = "<answer>", "</answer>", "####"  # the last one precedes the answer in GSM8K, arXiv:2110.14168
_NUMBER = re.compile(r"(?<![\d.])[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:/\d+)?", re.ASCII)
_LONGEST = 64  # characters of a number


def tagged(text: str) -> str | None:
    """What stands after the last ``<answer>``, up to ``</answer>`` or the end; None without the tag."""
    _, tag, rest = text.rpartition(_OPEN)
    return rest.partition(_CLOSE)[0].strip() if tag else None


def answer(text: str) -> str:
    """What the tag ``<answer>`` holds, else the whole text."""
    found = tagged(text)
    return text.strip() if found is None else found


def final(text: str) -> str:
    """What the tag ``<answer>`` holds, else the line after the last ``####``, else the last line."""
    found = tagged(text)
    if found is not None:
        return found
    lines = text.rpartition(_MARK)[2].strip().splitlines()
    return (lines[0] if _MARK in text else lines[-1]).strip() if lines else ""


def number(text: str) -> Fraction | None:
    """The last number of a text: ``$1,250.50.`` is 1250.5, ``3/4`` is three quarters; None if it has none."""
    found = _NUMBER.findall(text.replace("\u2212", "-"))
    if not found or len(found[-1]) > _LONGEST:
        return None
    whole, _, divisor = found[-1].replace(",", "").partition("/")
    if not divisor:
        return Fraction(whole)
    return Fraction(whole) / int(divisor) if int(divisor) else None
