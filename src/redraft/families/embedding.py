"""Embedding-space diffusion: gaussian noise on learned token embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from redraft.data.tokenizer import Tokenizer
from redraft.families.base import Family
from redraft.families.shared import gaussian
from redraft.families.shared.vocabulary import vocabulary
from redraft.models.embedding_transformer import Config
from redraft.noise.gaussian import Gaussian
from redraft.objectives.embedding import Embedding as Objective
from redraft.samplers.ddim import Ddim
from redraft.types import AttentionPattern, Continuous, FamilyFacts, NetworkFacts, Spec


@dataclass(frozen=True)
class Embedding(Family):
    """Diffusion-LM (Li et al. 2022, arXiv:2205.14217) and Plaid (Gulrajani & Hashimoto 2023, arXiv:2305.18619).

    Embeddings are trained with the network and have a fixed length. The network predicts tokens, and the clean vector
    is their expected embedding (CDCD, Dieleman et al. 2022, arXiv:2211.15089). Training minimises the cross-entropy of
    the tokens, or with ``weight = "bound"`` the variational bound. The reported nats are those of the bound. Prompt and
    length are treated as in ``Masked``.
    """

    citation = "arXiv:2205.14217, arXiv:2305.18619, arXiv:2211.15089"
    summary = "gaussian noise on learned token embeddings; all tokens are refined in every step"

    width: int = 32  # width Z of an embedding
    weight: Literal["uniform", "bound"] = (
        "uniform"  # what is minimised: the cross-entropy at all noise levels, or the bound
    )
    schedule: gaussian.Variance = "cosine"
    scale: float = 0.5  # scale of the signal: tokens are easy to tell apart, so most useful noise levels are high
    cleanest: float = 8.0  # log-SNR at t = 0
    noisiest: float = -8.0  # log-SNR at t = 1
    self_condition: float = 0.5  # share of updates with self-conditioning
    length_head: bool = True
    length_weight: float = 0.1
    label_smoothing: float = 0.0

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            tokens=vocabulary(tokenizer),
            network=NetworkFacts(attention=AttentionPattern("full"), prompt_encoder=True, length_head=self.length_head),
            family=FamilyFacts(
                schedule=gaussian.variance(self.schedule),
                continuous=Continuous(self.width, 1, True, self.cleanest, self.noisiest, self.scale),
                process=Gaussian(),
            ),
        )

    def network_config(self, base: Any) -> Any:
        return gaussian.network_config(base, Config, width=self.width)

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
