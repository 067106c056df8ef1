"""Countdown: an expression of given numbers has a given value."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from redraft.options import check, setting
from redraft.rewards.base import Answer, Reward
from redraft.rewards.shared.answers import answer as answer_of

_TOKEN = re.compile(r"\s*(\d{1,9}|[-+*/()])")
_STEP = re.compile(r"(?P<a>-?\d{1,9})\s*(?P<operator>[-+*/])\s*(?P<b>-?\d{1,9})\s*=\s*(?P<result>-?\d{1,12})", re.ASCII)
_LONGEST = 512  # characters of an expression
_RANK = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True)
class Countdown(Reward):
    """1 if the answer is an expression with the value ``target`` in which each of ``numbers`` occurs exactly once.

    An expression has numbers, ``+ - * /`` and brackets, is computed in fractions, and may be followed by ``=`` and
    its value. Instead, the answer may be steps, ``44-15=29,79-29=50``, each of two numbers that are left, of which its
    result takes the place (Ye et al. 2025, arXiv:2410.14157). The answer is what ``<answer>`` holds, else the last
    line.

    Fields:
        numbers, target: columns with the numbers (a list, or a text with spaces or commas) and the value.
        wrong: the reward of an expression of the right numbers with another value; 0 for everything else.
    """

    numbers: str = setting("numbers", "Column of the numbers.")
    target: str = setting("target", "Column of the value.")
    wrong: float = setting(0.1, "Reward of the right numbers with another value.", least=0, most=1)

    def __post_init__(self) -> None:
        check(self)

    def problem(self, reference: str, row: Mapping[str, Any]) -> str:
        """It needs the two columns."""
        try:
            self._row(row)
        except (KeyError, ValueError, TypeError) as error:
            return f"its columns '{self.numbers}' and '{self.target}' are not whole numbers and a number ({error})"
        return ""

    def _row(self, row: Mapping[str, Any]) -> tuple[Counter[int], Fraction]:
        given = row[self.numbers]
        numbers = given.replace(",", " ").split() if isinstance(given, str) else given
        return Counter(int(number) for number in numbers), Fraction(str(row[self.target]))

    def score(self, answer: Answer) -> float:
        """1, ``wrong`` or 0."""
        lines = answer_of(answer.text).splitlines()
        numbers, target = self._row(answer.row)
        if lines and lines[-1].count("=") > 1:
            return self._steps(lines[-1], numbers, target)
        found = evaluate(lines[-1].partition("=")[0]) if lines else None
        if found is None or found[0] != numbers:
            return 0.0
        return 1.0 if found[1] == target else self.wrong

    def _steps(self, text: str, numbers: Counter[int], target: Fraction) -> float:
        left = follow(text, numbers)
        if left is None or len(left) != 1:
            return 0.0
        return 1.0 if left[0] == target else self.wrong


def follow(text: str, numbers: Counter[int]) -> list[Fraction] | None:
    """The numbers that are left after steps ``a+b=c,c*d=e``; None if a step is wrong, or takes a number that is not
    there."""
    left = Counter({Fraction(number): count for number, count in numbers.items()})
    steps = text.strip().rstrip(",.").split(",")
    for step in steps if len(text) <= _LONGEST else [""]:
        match = _STEP.fullmatch(step.strip())
        if match is None:
            return None
        a, b, result = (Fraction(match[group]) for group in ("a", "b", "result"))
        values: list[Fraction | None] = [a, b]
        _apply(match["operator"], values)
        left.subtract([a, b])
        if values != [result] or min(left[a], left[b]) < 0:
            return None
        left[result] += 1
    return sorted(left.elements())


def evaluate(text: str) -> tuple[Counter[int], Fraction | None] | None:
    """The numbers of an expression and its value; the value is None after a division by zero. None: no expression."""
    tokens = _tokens(text)
    if not _is_expression(tokens):
        return None
    values: list[Fraction | None] = []
    operators: list[str] = []  # that wait for their second number (the shunting yard)
    for token in ["(", *tokens, ")"]:
        if token.isdigit():
            values.append(Fraction(int(token)))
            continue
        while token != "(" and operators[-1] != "(" and _RANK.get(operators[-1], 0) >= _RANK.get(token, 0):
            _apply(operators.pop(), values)
        if token == ")":
            operators.pop()
        else:
            operators.append(token)
    return Counter(int(token) for token in tokens if token.isdigit()), values[0]


def _is_expression(tokens: list[str]) -> bool:
    """Do numbers and operators alternate, and do the brackets match?"""
    depth, wants_number = 0, True
    for token in tokens:
        opens = token.isdigit() or token == "("  # stands where a number may stand
        if opens != wants_number:
            return False
        depth += (token == "(") - (token == ")")
        wants_number = token == "(" or token in _RANK
        if depth < 0:
            return False
    return not wants_number and depth == 0


def _tokens(text: str) -> list[str]:
    """The tokens of an expression; empty if the text has anything else."""
    text, found, at = text.strip(), list[str](), 0
    if len(text) > _LONGEST:
        return []
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return []
        found.append(match[1])
        at = match.end()
    return found


def _apply(operator: str, values: list[Fraction | None]) -> None:
    """Replace the last two values by what an operator makes of them."""
    b, a = values.pop(), values.pop()
    if a is None or b is None or (operator == "/" and b == 0):
        values.append(None)
    elif operator in "+-":
        values.append(a + b if operator == "+" else a - b)
    else:
        values.append(a * b if operator == "*" else a / b)
