"""Latent diffusion: a text autoencoder, and gaussian diffusion of its vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families.base import Family
from redraft.families.shared import gaussian
from redraft.families.shared.vocabulary import vocabulary
from redraft.models.latent_transformer import Config
from redraft.noise.gaussian import Gaussian
from redraft.objectives.base import TrainingPhase
from redraft.objectives.latent import Latent as Objective
from redraft.objectives.shared.autoencoder import Autoencoder
from redraft.samplers.dpm_solver import DpmSolver
from redraft.types import AttentionPattern, Continuous, FamilyFacts, NetworkFacts, Spec


@dataclass(frozen=True)
class Latent(Family):
    """LD4LG (Lovelace et al. 2022, arXiv:2212.09462), with an autoencoder trained from scratch, not a pretrained one.

    Training has two phases. The first one, a share ``autoencoder`` of the budget, trains the autoencoder under noise
    down to a log-SNR of ``noise``. The second one trains the denoiser, by v-prediction and self-conditioning, with a
    frozen autoencoder. The prompt is isolated: its keys and values are computed once for all steps.
    """

    citation = "arXiv:2212.09462, arXiv:2107.00630"
    summary = "a text autoencoder, and gaussian diffusion of its vectors, each of which encodes several tokens"

    width: int = 64  # width Z of a vector
    ratio: int = 4  # tokens per vector
    window: int = 16  # tokens that the autoencoder processes together
    auto_dim: int = 80  # width of the autoencoder
    auto_layers: int = 1
    autoencoder: float = 0.4  # share of the training budget for the autoencoder
    noise: float = 2.0  # lowest log-SNR at which the autoencoder is trained
    schedule: gaussian.Variance = "cosine"
    scale: float = 0.5  # scale of the signal: vectors are easy to tell apart, so most useful noise levels are high
    cleanest: float = 10.0  # log-SNR at t = 0
    noisiest: float = -10.0  # log-SNR at t = 1
    self_condition: float = 0.5  # share of updates with self-conditioning
    length_head: bool = True
    length_weight: float = 0.1

    def __post_init__(self) -> None:
        for name in ("autoencoder", "self_condition"):
            if not 0 <= getattr(self, name) <= 1 or (name == "autoencoder" and getattr(self, name) in (0, 1)):
                bounds = "strictly between 0 and 1" if name == "autoencoder" else "between 0 and 1"
                raise UserError(f"family latent: {name} = {getattr(self, name)} must be {bounds}.", "For example 0.4.")

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            tokens=vocabulary(tokenizer),
            network=NetworkFacts(
                attention=AttentionPattern("full"), prompt_encoder=True, length_head=self.length_head, outputs="vectors"
            ),
            family=FamilyFacts(
                schedule=gaussian.variance(self.schedule),
                continuous=Continuous(self.width, self.ratio, False, self.cleanest, self.noisiest, self.scale),
                process=Gaussian(),
            ),
        )

    def network_config(self, base: Any) -> Any:
        """A denoiser with one layer less than the preset, about the size of the autoencoder."""
        own = {name: getattr(self, name) for name in ("width", "ratio", "window", "auto_dim", "auto_layers")}
        return gaussian.network_config(base, Config, **own, layers=max(1, base.layers - 1))

    def objective(self) -> Objective:
        return Objective(length_weight=self.length_weight)

    def phases(self) -> tuple[TrainingPhase, TrainingPhase]:
        denoising = replace(self.objective(), weight="uniform", self_condition=self.self_condition)
        first = TrainingPhase(self.autoencoder, Autoencoder(self.noise), ("autoencoder.",))
        names = ("embedding", "blocks", "norm", "answer", "time", "read", "again", "write")
        return first, TrainingPhase(1 - self.autoencoder, denoising, names)

    def sampler(self) -> DpmSolver:
        return DpmSolver()
