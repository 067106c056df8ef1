"""Final answer: a solution is right if it ends in the right answer, however it got there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.metrics import Mean

_MARK = "####"  # what stands before the answer in GSM8K (Cobbe et al. 2021, arXiv:2110.14168)


def final_answer(text: str) -> str:
    """What follows the last ``####``, else the last line.

    Spaces, commas, a dollar sign, a last dot and case are no part of an answer, and neither are the zeros at the end of
    a decimal fraction: ``$1,250.50.`` is ``1250.5``.
    """
    lines = text.rpartition(_MARK)[2].strip().splitlines()
    found = "".join((lines[0] if _MARK in text else lines[-1]).split()) if lines else ""
    found = found.replace(",", "").removeprefix("$").removesuffix(".").casefold()
    whole, dot, fraction = found.partition(".")
    if dot and whole.removeprefix("-").isdigit() and fraction.isdigit():
        return f"{whole}.{fraction}".rstrip("0").rstrip(".")
    return found


@dataclass(frozen=True)
class Answer(Mean):
    """Per cent of rows whose final answer is that of a reference."""

    name = "answer"
    label = "right answers %"

    def row(self, hypothesis: str, references: Sequence[str]) -> float:
        ours = final_answer(hypothesis)
        return float(bool(ours) and any(ours == final_answer(r) for r in references))
