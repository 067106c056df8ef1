"""Anneal: from causal attention to the family's own, pair by pair of positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.courses import check_share
from redraft.errors import UserError
from redraft.types import Attend, Batch, Forward, Objective, Prepared, Spec


@dataclass(frozen=True)
class Anneal:
    """Attention-mask annealing (DiffuLLaMA, Gong et al. 2024, arXiv:2410.17891, section 3.3).

    A position sees what an autoregressive network would let it see, and every other position that the family shows it
    with probability ``progress / until``, drawn anew for every pair, row and update. At first the network computes what
    it computed before; from ``until`` on, what it will compute from then on. ``until = 0`` is the abrupt change.

    Pairs that were drawn need their own mask: attention is dense, and its fast causal form does not apply meanwhile.
    """

    until: float = 0.5  # share of training

    def __post_init__(self) -> None:
        check_share("anneal", "until", self.until)

    def prepare(
        self, objective: Objective, batch: Batch, spec: Spec, progress: float, generator: torch.Generator
    ) -> Prepared:
        prepared = objective.prepare(batch, spec, generator)
        if progress >= self.until:
            return prepared
        if prepared.ask.clean is not None:
            raise UserError(
                "course anneal: this objective runs a clean text beside the noisy one.", "Take the course 'blocks'."
            )
        mask = sight(prepared.ask, progress / self.until, generator)
        return replace(prepared, ask=replace(prepared.ask, mask=mask))


def sight(ask: Forward, share: float, generator: torch.Generator) -> Tensor:
    """[R, Q, Q] bool: causal attention, and a ``share`` of all else that the request's own attention shows."""
    rows, width = ask.pos.shape
    own, causal = _sees(ask), _sees(replace(ask, attend=Attend("causal")))
    drawn = torch.rand(rows, width, width, generator=generator, device=generator.device).to(own.device) < share
    return own & (causal | drawn) | (ask.pos < 0)[:, :, None]  # padding sees everything: no empty row


def _sees(ask: Forward) -> Tensor:
    stage = ask.stage(ask.pos)
    return (stage[:, None] <= stage[:, :, None]) & (ask.pos >= 0)[:, None]
