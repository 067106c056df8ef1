"""Latent diffusion: a text autoencoder, and gaussian diffusion of its few vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families import _gaussian
from redraft.families._vocabulary import vocabulary
from redraft.models.latent_transformer import Config
from redraft.objectives._autoencoder import Autoencoder
from redraft.objectives.latent import Latent as Objective
from redraft.samplers.dpm_solver import DpmSolver
from redraft.types import Attend, Continuous, Spec, Stage


@dataclass(frozen=True)
class Latent:
    """LD4LG (Lovelace et al. 2022, arXiv:2212.09462), with an autoencoder of our own in place of a pretrained one.

    Two stages of one training: the first ``autoencoder`` of the budget teaches text -> vectors -> text, under noise up
    to a log-SNR of ``noise``; what is left teaches the denoiser, by v-prediction and self-conditioning, while the
    autoencoder stands still. The prompt is isolated: its keys and values are computed once for all steps.
    """

    citation = "arXiv:2212.09462, arXiv:2107.00630"
    summary = "a text autoencoder, and gaussian diffusion of its vectors, a few for many tokens"

    width: int = 64  # Z, of a vector
    ratio: int = 4  # tokens a vector
    window: int = 16  # tokens that the autoencoder sees together
    auto_dim: int = 80  # width of the autoencoder
    auto_layers: int = 1
    autoencoder: float = 0.4  # share of the budget that its training takes
    noise: float = 2.0  # lowest log-SNR at which it is trained to decode
    schedule: _gaussian.Variance = "cosine"
    scale: float = 0.5  # of the signal: vectors are easy to tell, so most of what there is to learn is in heavy noise
    cleanest: float = 10.0  # log-SNR at t = 0
    noisiest: float = -10.0  # and at t = 1
    self_condition: float = 0.5  # share of updates that show the network its own prediction
    length_head: bool = True
    length_weight: float = 0.1

    def __post_init__(self) -> None:
        for name in ("autoencoder", "self_condition"):
            if not 0 <= getattr(self, name) <= 1 or (name == "autoencoder" and getattr(self, name) in (0, 1)):
                raise UserError(f"family latent: {name} = {getattr(self, name)} is no share.", "For example 0.4.")

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
            continuous=Continuous(self.width, self.ratio, False, self.cleanest, self.noisiest, self.scale),
        )

    def shape(self, base: Any) -> Any:
        """The network of a preset: a denoiser of one layer less, which about pays for the autoencoder."""
        own = {name: getattr(self, name) for name in ("width", "ratio", "window", "auto_dim", "auto_layers")}
        return _gaussian.shape(base, Config, **own, layers=max(1, base.layers - 1))

    def objective(self) -> Objective:
        return Objective(length_weight=self.length_weight)

    def stages(self) -> tuple[Stage, Stage]:
        taught = replace(self.objective(), weight="flat", self_condition=self.self_condition)
        first = Stage(self.autoencoder, Autoencoder(self.noise), ("autoencoder.",))
        names = ("embedding", "blocks", "norm", "answer", "time", "read", "again", "write")
        return first, Stage(1 - self.autoencoder, taught, names)

    def sampler(self) -> DpmSolver:
        return DpmSolver()
