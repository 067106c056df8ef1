"""Hybrid: an autoregressive model that drafts for itself by diffusion."""

from __future__ import annotations

from dataclasses import dataclass, replace

from redraft.data.tokenizer import Tokenizer
from redraft.families._vocabulary import vocabulary
from redraft.noise.schedules.linear import Linear
from redraft.objectives.hybrid import Hybrid as Objective
from redraft.samplers.draft_verify import DraftVerify
from redraft.types import Attend, Spec


@dataclass(frozen=True)
class Hybrid:
    """TiDAR (Liu et al. 2025, arXiv:2511.08923): one network, trained to go on left to right and to fill in blocks.

    It writes what its autoregressive half would write, token for token, and in fewer passes the better its drafts are.
    An autoregressive checkpoint can be fine-tuned into one.
    """

    citation = "arXiv:2511.08923"
    summary = "one network, autoregressive and block diffusion; drafts in parallel, verifies left to right"

    block: int = 8
    diffusion: float = 0.3  # weight of the diffusion loss beside the autoregressive one
    low: float = 0.5  # masking rates met in training: (low, 1]
    isolate_prompt: bool = True
    label_smoothing: float = 0.0

    def spec(self, tokenizer: Tokenizer) -> Spec:
        spec = Spec(
            **vocabulary(tokenizer),
            attend=Attend("causal"),
            isolate_prompt=self.isolate_prompt,
            length_head=False,
            shift=1,
            timed=False,
            schedule=None,
        )
        return replace(spec, drafter=replace(spec, shift=0, schedule=Linear()))

    def objective(self) -> Objective:
        return Objective(block=self.block, diffusion=self.diffusion, low=self.low, label_smoothing=self.label_smoothing)

    def sampler(self) -> DraftVerify:
        return DraftVerify(block=self.block)
