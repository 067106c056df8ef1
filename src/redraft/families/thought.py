"""Diffusion-of-Thought: masked diffusion of a chain of thought and its answer, in parallel or thought by thought."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families.masked import Masked
from redraft.objectives.thought import Thought as Objective
from redraft.samplers.base import Sampler
from redraft.samplers.thought import Thought as ThoughtSampler
from redraft.types import Spec


@dataclass(frozen=True)
class Thought(Masked):
    """Ye et al. 2024 (arXiv:2402.07754). Targets are a chain of thought, with the answer in the last line.

    Without a ``segment_end`` the chain is denoised in parallel (DoT). With one such as ``"\\n"`` or ``" +"``, it is
    generated thought by thought (DoT-MP): the tokens of a thought in parallel, given the thoughts before it.
    """

    citation = "arXiv:2402.07754"
    summary = "masked diffusion of a chain of thought, in parallel or thought by thought"

    scheduled: float = 0.0  # share of training rows with scheduled sampling: they contain predictions of the network
    coupled: float = 0.0  # thought by thought: share of rows whose earlier thoughts are masked too
    segment_end: str = ""  # text that ends a thought

    def spec(self, tokenizer: Tokenizer) -> Spec:
        spec = super().spec(tokenizer)
        if not self.segment_end:
            return spec
        mark = self.segment_end.encode()
        borders = tuple(i for i, text in enumerate(tokenizer.token_bytes) if text is not None and mark in text)
        if not borders:
            raise UserError(
                f"family thought: no token of the vocabulary contains the segment_end {self.segment_end!r}.",
                "Choose a segment_end that is never split between tokens, such as a newline.",
            )
        return spec.with_tokens(segment_end_ids=borders)

    def objective(self) -> Objective:
        return Objective(**asdict(super().objective()), scheduled=self.scheduled, coupled=self.coupled)

    def sampler(self) -> Sampler:
        return ThoughtSampler() if self.segment_end else super().sampler()
