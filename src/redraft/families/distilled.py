"""A masked model made to need fewer steps: it learns to write in one pass what it used to write in several."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from redraft.families.masked import Masked
from redraft.objectives.distill import Distill


@dataclass(frozen=True)
class Distilled(Masked):
    """SDTT (Deschenaux & Gulcehre 2024, arXiv:2410.21035). Training begins with a masked model and keeps it as the
    teacher: ``redraft finetune --from MODEL --set family.name=distilled``. The result may be distilled once more.
    """

    citation = "arXiv:2410.21035"
    summary = "a masked model, taught by itself to write in one pass what took it several"

    teacher_steps: int = 8  # passes in which the teacher writes an answer
    text: Literal["teacher", "data"] = "teacher"  # whose answers
    order: Literal["confidence", "random"] = "confidence"  # in which the teacher writes

    def objective(self) -> Distill:
        return Distill(
            **asdict(super().objective()),
            teacher_steps=self.teacher_steps,
            text=self.text,
            order=self.order,
        )
