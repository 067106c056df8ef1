"""Diffusion-of-Thought: a chain of thought denoised in parallel or thought by thought, used to its own mistakes."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.objectives import _noise as noise
from redraft.objectives import _times as times
from redraft.objectives.masked import Masked, choose, size_of
from redraft.types import Batch, Forward, Prepared, Spec


@dataclass(frozen=True)
class Thought(Masked):
    """Masked diffusion of a solution (Ye et al. 2024, arXiv:2402.07754), with what makes training resemble sampling.

    With ``scheduled`` and ``coupled`` 0 and a spec without borders it is ``Masked``, bit for bit, and scored as such.

    Fields:
        scheduled: share of rows that see predictions of the network itself. At time u > t more is hidden than at t;
            what only u hides is filled by what the network takes for likeliest, right or wrong, and stands there at
            time t in place of the truth. One more pass, over these rows, without gradient.
        coupled: thought by thought, the share of rows whose earlier thoughts are noised too, so that a mistake in one
            of them does not spoil the next.

    **Thought by thought** (DoT-MP): where the spec names ``borders``, one thought of each row, drawn at random, is
    noised and learnt. The thoughts before it are there, those after it are hidden and do not count. It is scored as it
    writes: -log p of a solution, given where its thoughts end, is at most the sum of the bounds of each thought given
    those before it, and k times that of one of the k, drawn at random, has this sum as its mean.
    """

    scheduled: float = 0.0
    coupled: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scheduled", "coupled"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"objective thought: {name} = {getattr(self, name)} is no share.", "0 turns it off.")

    def scoring(self) -> Thought:
        """The bound of what is written, without its own mistakes."""
        return replace(self, scheduled=0.0, coupled=0.0)

    def ahead(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Generator[Forward, Tensor, Prepared]:
        """What training asks and learns (see ``types.Objective``)."""
        if not self.scheduled and not spec.borders:
            return self.prepare(batch, spec, generator)
        if self.steps or spec.timed or self.complementary:
            raise UserError(
                "scheduled rows and borders take none of steps, timed and complementary.", "Leave them out."
            )
        schedule, rows, where = noise.stretched(spec), batch.ids.shape[0], batch.ids.device
        can, later = noise.noisable(batch, spec), torch.zeros_like(batch.target)
        total = torch.ones(rows, dtype=torch.int64, device=where)
        if spec.borders:
            can, later, total = self._one_thought(batch, can, spec, generator)
        t = self.low + (self.high - self.low) * times.continuous(rows, generator, where)
        count = can.sum(1)
        size = size_of(1 - schedule.alpha(t), count)
        hidden = choose(can, size, generator)
        weight = -schedule.dalpha(t) * count / size.clamp(min=1) * total
        prepared = self.request(batch, spec, hidden, weight, t)
        x = prepared.ask.x.masked_fill(later, spec.mask_id)
        if self.scheduled:
            u = t + (1 - t) * _uniform(rows, generator, where)
            taken = _uniform(rows, generator, where) < self.scheduled
            more = choose(can & ~hidden, size_of(1 - schedule.alpha(u), count) - size, generator) & taken[:, None]
            if bool(more.any()):
                x = yield from _predicted(prepared.ask, x, more, spec)
        return replace(prepared, ask=replace(prepared.ask, x=x))

    def _one_thought(
        self, batch: Batch, can: Tensor, spec: Spec, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L] what noise may touch: a thought of each row, or all up to it; [B, L] what is not there yet; [B] how
        many thoughts it was drawn from."""
        number = thoughts(batch, spec)
        rows, where = batch.ids.shape[0], batch.ids.device
        total = number.masked_fill(~can, -1).amax(1).clamp(min=0) + 1
        at = (_uniform(rows, generator, where) * total).long()[:, None]
        together = _uniform(rows, generator, where) < self.coupled
        return can & ((number == at) | (number < at) & together[:, None]), can & (number > at), total


def thoughts(batch: Batch, spec: Spec) -> Tensor:
    """[B, L] number of the thought that each target position belongs to, from 0; its border is its last token."""
    ends = torch.isin(batch.ids, torch.tensor(spec.borders, device=batch.ids.device)) & batch.target
    return ends.long().cumsum(1) - ends.long()


def _predicted(ask: Forward, x: Tensor, more: Tensor, spec: Spec) -> Generator[Forward, Tensor, Tensor]:
    """``x`` with the likeliest tokens at ``more`` [B, L], as the network sees it with masks there."""
    rows = more.any(1).nonzero()[:, 0]
    shown = x[rows].masked_fill(more[rows], spec.mask_id)
    prompt = None if ask.prompt is None else ask.prompt[rows]
    want = torch.where(more[rows], ask.pos[rows], -1)
    logits = yield Forward(x=shown, pos=ask.pos[rows], want=want, attend=ask.attend, prompt=prompt)
    forbidden = torch.tensor(sorted({*spec.forbidden, spec.mask_id}), device=logits.device)
    token = logits.index_fill(1, forbidden, -torch.inf).argmax(-1)
    return x.masked_scatter(more, token.to(x))


def _uniform(rows: int, generator: torch.Generator, where: torch.device) -> Tensor:
    return torch.rand(rows, generator=generator, device=generator.device, dtype=torch.float64).to(where)
