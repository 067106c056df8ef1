"""Autoregressive: p(x) = prod_i p(x_i | x_<i). The peer every diffusion family is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.data.tokenizer import Tokenizer
from redraft.families._vocabulary import vocabulary
from redraft.objectives.autoregressive import Autoregressive as Objective
from redraft.samplers.autoregressive import Autoregressive as Sampler
from redraft.types import Attend, Spec


@dataclass(frozen=True)
class Autoregressive:
    """Left-to-right language model (Radford et al. 2019): exact likelihood, one token a pass, KV cache."""

    citation = "Radford et al. 2019"
    summary = "left to right, exact likelihood; the baseline"

    isolate_prompt: bool = True  # the prompt sees itself whole, as in an encoder-decoder; False: causal throughout
    label_smoothing: float = 0.0

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            **vocabulary(tokenizer),
            attend=Attend("causal"),
            isolate_prompt=self.isolate_prompt,
            length_head=False,
            shift=1,
            timed=False,
            schedule=None,
        )

    def objective(self) -> Objective:
        return Objective(label_smoothing=self.label_smoothing)

    def sampler(self) -> Sampler:
        return Sampler()
