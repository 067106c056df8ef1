"""Diffusion-of-Thought: masked diffusion of a solution and its answer, whole or thought by thought."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families.masked import Masked
from redraft.objectives.thought import Thought as Objective
from redraft.samplers.thought import Thought as ThoughtSampler
from redraft.types import Sampler, Spec


@dataclass(frozen=True)
class Thought(Masked):
    """Ye et al. 2024 (arXiv:2402.07754). Targets are a chain of thought and, in the last line, the answer.

    Without a ``border`` the chain is denoised in parallel (DoT). With one, such as ``"\\n"`` or ``" +"``, thought by
    thought (DoT-MP): each is written in parallel, given those before it.
    """

    citation = "arXiv:2402.07754"
    summary = "masked diffusion of a chain of thought, whole or one thought after the other"

    scheduled: float = 0.0  # share of training rows that see the network's own predictions
    coupled: float = 0.0  # thought by thought: share of rows whose earlier thoughts are noised too
    border: str = ""  # what ends a thought

    def spec(self, tokenizer: Tokenizer) -> Spec:
        spec = super().spec(tokenizer)
        if not self.border:
            return spec
        mark = self.border.encode()
        borders = tuple(i for i, text in enumerate(tokenizer.token_bytes) if text is not None and mark in text)
        if not borders:
            raise UserError(
                f"family thought: no token of the vocabulary holds the border {self.border!r}.",
                "Take one that is never cut in two, such as a newline.",
            )
        return replace(spec, borders=borders)

    def objective(self) -> Objective:
        return Objective(**asdict(super().objective()), scheduled=self.scheduled, coupled=self.coupled)

    def sampler(self) -> Sampler:
        return ThoughtSampler() if self.border else super().sampler()
