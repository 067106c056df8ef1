"""Embedding-space diffusion: gaussian noise on learned token embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from redraft.data.tokenizer import Tokenizer
from redraft.families import _gaussian
from redraft.families._vocabulary import vocabulary
from redraft.models.embedding_transformer import Config
from redraft.objectives.embedding import Embedding as Objective
from redraft.samplers.ddim import Ddim
from redraft.types import Attend, Continuous, Spec


@dataclass(frozen=True)
class Embedding:
    """Diffusion-LM (Li et al. 2022, arXiv:2205.14217) and Plaid (Gulrajani & Hashimoto 2023, arXiv:2305.18619).

    Embeddings are learned with the rest and have a fixed length. The network predicts tokens, and the clean vector is
    their mean (CDCD, Dieleman et al. 2022, arXiv:2211.15089). Training minimises the cross-entropy of the tokens, or
    with ``weight = "bound"`` the variational bound, which is what is reported. Prompt and length as in ``Masked``.
    """

    citation = "arXiv:2205.14217, arXiv:2305.18619, arXiv:2211.15089"
    summary = "gaussian noise on learned token embeddings; every token sharpens from step to step"

    width: int = 32  # Z, of an embedding
    weight: Literal["flat", "bound"] = "flat"  # what is minimised: cross-entropy at every noise level, or the bound
    schedule: _gaussian.Variance = "cosine"
    scale: float = 0.5  # of the signal: tokens are easy to tell, so most of the noise worth learning from is heavy
    cleanest: float = 8.0  # log-SNR at t = 0
    noisiest: float = -8.0  # and at t = 1
    self_condition: float = 0.5  # share of updates that show the network its own prediction
    length_head: bool = True
    length_weight: float = 0.1
    label_smoothing: float = 0.0

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            **vocabulary(tokenizer),
            attend=Attend("full"),
            isolate_prompt=True,
            length_head=self.length_head,
            shift=0,
            timed=False,
            schedule=_gaussian.variance(self.schedule),
            process="gaussian",
            continuous=Continuous(self.width, 1, True, self.cleanest, self.noisiest, self.scale),
        )

    def shape(self, base: Any) -> Any:
        return _gaussian.shape(base, Config, width=self.width)

    def objective(self) -> Objective:
        return Objective(length_weight=self.length_weight)

    def training(self) -> Objective:
        return replace(
            self.objective(),
            weight=self.weight,
            self_condition=self.self_condition,
            label_smoothing=self.label_smoothing,
        )

    def sampler(self) -> Ddim:
        return Ddim()
