"""Countdown: generated problems of numbers that are combined to a target, ``countdown:4``."""

from __future__ import annotations

from typing import Any

from redraft.data.generated import Dice, GeneratedSource

_LARGEST = 100  # of the numbers and of the target


class Countdown(GeneratedSource):
    """``countdown:N`` combines N = 3, 4 or 5 numbers to a target. Columns: ``question`` (``15,44,79=50``), ``answer``
    (one solution as steps, ``44-15=29,79-29=50``), ``numbers`` and ``target``, in the form of Dream's test rows (Ye et
    al. 2025, arXiv:2508.15487). No test row has the numbers and the target of a training row.
    """

    name, kinds, example = "countdown", "[345]", "countdown:4"

    def draw(self, dice: Dice, kind: str) -> dict[str, Any]:
        while True:
            numbers = [1 + dice.below(_LARGEST - 1) for _ in range(int(kind))]
            steps, left = [], list(numbers)
            while len(left) > 1:
                a, b = (left.pop(dice.below(len(left))) for _ in range(2))
                a, b = max(a, b), min(a, b)
                possible = [("+", a + b), ("-", a - b), ("*", a * b)] + ([("/", a // b)] if b and a % b == 0 else [])
                sign, result = possible[dice.below(len(possible))]
                steps.append(f"{a}{sign}{b}={result}")
                left.append(result)
            if 0 < left[0] < _LARGEST:
                question = f"{','.join(map(str, numbers))}={left[0]}"
                return {"question": question, "answer": ",".join(steps), "numbers": numbers, "target": left[0]}

    def key(self, values: dict[str, Any]) -> str:
        """Numbers in order and the target: rows of two splits share no steps, and no question in another order."""
        return f"{sorted(values['numbers'])}={values['target']}"
