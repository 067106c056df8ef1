"""Diffusion-of-Thought: a chain of thought denoised in parallel or thought by thought, trained on its own errors."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.objectives.base import Rollout, RolloutPass
from redraft.objectives.masked import Masked, MaskedBatch, choose_positions, mask_count
from redraft.objectives.shared import noise as noise
from redraft.objectives.shared import times as times
from redraft.objectives.shared.vocabulary import likeliest
from redraft.types import Batch, Forward, Spec


@dataclass(frozen=True)
class Thought(Masked):
    """Masked diffusion of a solution (Ye et al. 2024, arXiv:2402.07754), with options that match training to sampling.

    With ``scheduled`` and ``coupled`` 0 and a spec without ``segment_end_ids``, it equals ``Masked`` bit for bit.

    Fields:
        scheduled: share of rows with scheduled sampling. At a time u > t, more tokens are masked than at t. The
            positions masked only at u are filled with the network's most likely tokens, right or wrong, and the network
            is trained at time t with them in place of the true tokens. It takes one more forward pass over these rows,
            without gradient.
        coupled: thought by thought, the share of rows whose earlier thoughts are masked too, so that the network learns
            to recover from errors in them.

    **Thought by thought** (DoT-MP): if the spec has ``segment_end_ids``, one random thought of each row is masked and
    trained. The thoughts before it are visible; those after it are masked and not part of the loss. The score follows
    the same factorisation: -log p of a solution, given where its thoughts end, is at most the sum of the bounds of each
    thought given those before it. The bound of one of the k thoughts, drawn at random, times k is an unbiased estimate.
    """

    scheduled: float = 0.0
    coupled: float = 0.0

    needs_rollout = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scheduled", "coupled"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"objective thought: {name} = {getattr(self, name)} must be between 0 and 1.",
                    "Use 0 to turn it off.",
                )

    def scoring(self) -> Thought:
        """The bound, without scheduled sampling and coupling."""
        return replace(self, scheduled=0.0, coupled=0.0)

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[MaskedBatch]:
        if not self.scheduled and not spec.tokens.segment_end_ids:
            return self.prepare(batch, spec, generator)
        if self.steps or spec.network.timed or self.complementary:
            raise UserError(
                "objective thought: scheduled and segment_end can't be combined with steps, timed or complementary.",
                "Leave out steps, timed and complementary.",
            )
        schedule, rows, where = noise.rescaled_schedule(spec), batch.ids.shape[0], batch.ids.device
        can, later = noise.noisable(batch, spec), torch.zeros_like(batch.target)
        total = torch.ones(rows, dtype=torch.int64, device=where)
        if spec.tokens.segment_end_ids:
            can, later, total = self._one_thought(batch, can, spec, generator)
        t = self.t_min + (self.t_max - self.t_min) * times.continuous(rows, generator, where)
        count = can.sum(1)
        size = mask_count(1 - schedule.alpha(t), count)
        hidden = choose_positions(can, size, generator)
        weight = -schedule.dalpha(t) * count / size.clamp(min=1) * total
        prepared = self.request(batch, spec, hidden, weight, t)
        x = prepared.request.tokens.masked_fill(later, spec.tokens.mask_id)
        if self.scheduled:
            u = t + (1 - t) * _uniform(rows, generator, where)
            selected = _uniform(rows, generator, where) < self.scheduled
            more = (
                choose_positions(can & ~hidden, mask_count(1 - schedule.alpha(u), count) - size, generator)
                & selected[:, None]
            )
            if bool(more.any()):
                x = yield from _predicted(prepared.request, x, more, spec)
        return replace(prepared, request=replace(prepared.request, tokens=x))

    def _one_thought(
        self, batch: Batch, can: Tensor, spec: Spec, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose a thought of each row.

        Returns:
            [B, L] the positions that may be masked: of this thought, or of all up to it; [B, L] the positions of later
            thoughts; [B] the number of thoughts.
        """
        number = thoughts(batch, spec)
        rows, where = batch.ids.shape[0], batch.ids.device
        total = number.masked_fill(~can, -1).amax(1).clamp(min=0) + 1
        at = (_uniform(rows, generator, where) * total).long()[:, None]
        coupled = _uniform(rows, generator, where) < self.coupled
        return can & ((number == at) | (number < at) & coupled[:, None]), can & (number > at), total


def thoughts(batch: Batch, spec: Spec) -> Tensor:
    """The index [B, L] of the thought of each target position, from 0; a thought includes its end token."""
    ends = torch.isin(batch.ids, torch.tensor(spec.tokens.segment_end_ids, device=batch.ids.device)) & batch.target
    return ends.long().cumsum(1) - ends.long()


def _predicted(request: Forward, x: Tensor, more: Tensor, spec: Spec) -> Generator[RolloutPass, Tensor, Tensor]:
    """``x`` [B, L] with the most likely tokens at ``more`` [B, L], predicted with masks at these positions."""
    rows = more.any(1).nonzero()[:, 0]
    masked = x[rows].masked_fill(more[rows], spec.tokens.mask_id)
    prompt = None if request.prompt is None else request.prompt[rows]
    targets = torch.where(more[rows], request.positions[rows], -1)
    forward = Forward(masked, request.positions[rows], targets, request.attention, prompt)
    token = yield RolloutPass(forward, reduce=partial(likeliest, forbidden=noise.forbidden_ids(spec)))
    return x.masked_scatter(more, token.to(x))


def _uniform(rows: int, generator: torch.Generator, where: torch.device) -> Tensor:
    return torch.rand(rows, generator=generator, device=generator.device, dtype=torch.float64).to(where)
