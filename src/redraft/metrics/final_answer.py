"""Final answer: a solution is correct if its final answer is correct, whatever its reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.metrics import Mean

_MARK = "####"  # precedes the answer in GSM8K (Cobbe et al. 2021, arXiv:2110.14168)


def final_answer(text: str) -> str:
    """The text after the last ``####``, or else the last line.

    Spaces, commas, a leading dollar sign, a final dot, case, and zeros at the end of a decimal fraction are ignored:
    ``$1,250.50.`` becomes ``1250.5``.
    """
    lines = text.rpartition(_MARK)[2].strip().splitlines()
    found = "".join((lines[0] if _MARK in text else lines[-1]).split()) if lines else ""
    found = found.replace(",", "").removeprefix("$").removesuffix(".").casefold()
    whole, dot, fraction = found.partition(".")
    if dot and whole.removeprefix("-").isdigit() and fraction.isdigit():
        return f"{whole}.{fraction}".rstrip("0").rstrip(".")
    return found


@dataclass(frozen=True)
class FinalAnswer(Mean):
    """Per cent of rows whose final answer equals that of a reference."""

    name = "final_answer"
    label = "correct answers %"
    decides = True

    def row(self, hypothesis: str, references: Sequence[str]) -> float:
        ours = final_answer(hypothesis)
        return float(bool(ours) and any(ours == final_answer(r) for r in references))
