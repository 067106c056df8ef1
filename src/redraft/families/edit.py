"""Edit: a text is written by insertions, deletions and substitutions, and has the length that it comes to."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.data.tokenizer import Tokenizer
from redraft.families._vocabulary import vocabulary
from redraft.objectives.edit import Edit as Objective
from redraft.registry import find
from redraft.samplers.edit_flow import EditFlow
from redraft.types import Attend, Spec


@dataclass(frozen=True)
class Edit:
    """Edit Flows (Havasi et al. 2025, arXiv:2506.09018): the network gives rates of edits, in continuous time.

    No masks and no length: a text begins empty (or as ``start`` random tokens), and is finished when no edit is
    expected any more. The network isn't told the time unless ``timed``, as in the other families.
    """

    citation = "arXiv:2506.09018"
    summary = "rates of insertions, deletions and substitutions; no masks, and any length"

    noise: float = 0.25  # share of training rows that begin as random tokens; the others begin empty
    clamp: float = 20.0  # greatest weight of a time
    start: int = 0  # random tokens that a text begins with
    schedule: str = "cubic"
    timed: bool = False
    isolate_prompt: bool = True

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            **vocabulary(tokenizer),
            attend=Attend("full"),
            isolate_prompt=self.isolate_prompt,
            length_head=False,
            shift=0,
            timed=self.timed,
            schedule=find("noise.schedules", self.schedule)(),
            process="edit",
            score=True,
        )

    def objective(self) -> Objective:
        return Objective(clamp=self.clamp)

    def training(self) -> Objective:
        return Objective(self.noise, self.clamp)

    def sampler(self) -> EditFlow:
        return EditFlow()
