"""Expand: masked diffusion whose canvas grows and shrinks while it is filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from redraft.data.tokenizer import EXTRAS, Tokenizer
from redraft.families._vocabulary import vocabulary
from redraft.objectives.expand import Expand as Objective
from redraft.registry import find
from redraft.samplers.confidence import Confidence
from redraft.types import Attend, Spec


@dataclass(frozen=True)
class Expand:
    """DreamOn (Wu et al. 2026, arXiv:2602.01326): a mask may turn into two masks, or into nothing.

    Any sampler that fills masks and never takes back can be used; the length follows from what is predicted
    (``samplers._resizing``). A text begins with ``start`` masks, or with as many as the length head says.
    """

    citation = "arXiv:2602.01326"
    summary = "masked diffusion that finds the length while it writes: a mask may become two, or none"
    specials: ClassVar[tuple[str, ...]] = EXTRAS

    merge: float = 0.9  # greatest probability of merging two neighbouring masks in training
    surplus: int = 8  # most masks too many in training
    start: int = 8  # masks that a text begins with where nothing else says how many
    schedule: str = "linear"
    isolate_prompt: bool = True
    length_head: bool = True
    length_weight: float = 0.1
    label_smoothing: float = 0.0

    @property
    def spare(self) -> int:
        """Positions that training needs beyond the length of a text."""
        return self.surplus + 1

    def spec(self, tokenizer: Tokenizer) -> Spec:
        tokenizer = tokenizer.having(self.specials)
        own = tokenizer.expand_id, tokenizer.delete_id
        fields = vocabulary(tokenizer)
        return Spec(
            **{**fields, "forbidden": tuple(i for i in fields["forbidden"] if i not in own)},
            attend=Attend("full"),
            isolate_prompt=self.isolate_prompt,
            length_head=self.length_head,
            shift=0,
            timed=False,
            schedule=find("noise.schedules", self.schedule)(),
            expand_id=own[0],
            delete_id=own[1],
        )

    def objective(self) -> Objective:
        return Objective(length_weight=self.length_weight, label_smoothing=self.label_smoothing)

    def training(self) -> Objective:
        return Objective(self.merge, self.surplus, self.length_weight, self.label_smoothing)

    def sampler(self) -> Confidence:
        return Confidence()
