"""Glancing: mask more of the sequences that the network already predicts well, to need fewer sampling steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.objectives.base import Rollout, RolloutPass
from redraft.objectives.masked import Masked, MaskedBatch, choose_positions
from redraft.objectives.shared import noise as noise
from redraft.objectives.shared import times as times
from redraft.objectives.shared.vocabulary import likeliest
from redraft.types import Batch, Spec


@dataclass(frozen=True)
class Glancing(Masked):
    """Masked diffusion whose noise level depends on the network (GLAT, Qian et al. 2021, arXiv:2008.07905).

    The network first predicts a fully masked row, without gradient. If d of the n tokens are wrong, ``ratio`` d random
    tokens are revealed, and the network is trained on the others. Difficult sequences are trained with many tokens
    visible, and easy ones with none. This noise is not that of the bound: the reported nats are those of the bound,
    and training minimises the mean over the masked tokens (``weight = flat``).

    Fields:
        ratio: revealed tokens per wrong token. (The paper lowers it from 0.5 to 0.3.)
        share: share of the rows with this noise; the others have the noise of ``Masked``, which is needed for sampling
            in many steps.
    """

    ratio: float = 0.5
    share: float = 0.5

    needs_rollout = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ratio", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"objective glancing: {name} = {getattr(self, name)} must be between 0 and 1.")
        if self.steps or self.complementary or self.weight != "uniform":
            raise UserError(
                "objective glancing: weight = 'bound', steps and complementary are not supported.",
                "Set weight = 'uniform', and leave out steps and complementary.",
            )

    def scoring(self) -> Masked:
        """The bound of masked diffusion."""
        return self.plain()

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[MaskedBatch]:
        if spec.network.timed:
            raise UserError("objective glancing: time conditioning is not supported.", "Set timed = false.")
        schedule, rows, where = noise.rescaled_schedule(spec), batch.ids.shape[0], batch.ids.device
        can = noise.noisable(batch, spec)
        t = self.t_min + (self.t_max - self.t_min) * times.continuous(rows, generator, where)
        count = can.sum(1)
        size = torch.ceil((1 - schedule.alpha(t)) * count)
        glanced = torch.rand(rows, generator=generator, device=generator.device).to(where) < self.share
        all_masked = self.request(batch, spec, can, torch.ones_like(t), t)
        predicted = yield RolloutPass(all_masked.request, reduce=partial(likeliest, forbidden=all_masked.forbidden))
        revealed = torch.ceil(self.ratio * _errors(predicted, all_masked, can))
        size = torch.where(glanced, count - revealed, size).clamp_(min=1).minimum(count)
        weight = -schedule.dalpha(t) * count / size.clamp(min=1)
        return self.request(batch, spec, choose_positions(can, size, generator), weight, t)


def _errors(predicted: Tensor, prepared: MaskedBatch, can: Tensor) -> Tensor:
    """Number [B] of tokens in each row whose most likely prediction, ``predicted`` [N], is wrong."""
    wrong = predicted.cpu() != prepared.target
    if prepared.is_length is not None:
        wrong &= ~prepared.is_length
    return torch.zeros(len(can), device=can.device).index_add_(0, prepared.row, wrong.float())
