"""WINO: draft boldly, and in the same pass verify what was drafted before."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.samplers import _open
from redraft.types import DRAFT, FREE, SEALED, Canvas, Forward, Output, Spec, Step

_FIRST = 30  # positions that count as written before the first pass


@dataclass(frozen=True)
class State:
    """What is known of each row's draft."""

    conf: Tensor  # [B, L] log-probability of each token when it was written
    free: Tensor  # [B] free positions before the last pass, -1: there was none in this block
    back: Tensor  # [B] positions that the last pass masked again


@dataclass(frozen=True)
class Wino:
    """Wide-in, narrow-out (Hong et al. 2025, arXiv:2507.18578).

    *Wide in*: each pass writes the free positions of the block with p(x) > ``threshold``, at most 70 % of them (but at
    least 5, and at most 20 in all), and the most certain one in any case. *Narrow out*: for every drafted position a
    shadow runs along, a mask at the same position that sees all but the draft's own token. Where it gives that token
    less than ``verify``, the position is masked again; never more of them than were written in the pass before, less
    one, so that it gets on by a position a pass. A block is final when nothing in it is free.

    The shadows are queries of their own, so that a pass costs as many more positions as are being verified, and sees
    no cache while there are any. Here a shadow doesn't see other shadows; in the authors' code they do.
    ``block`` as in ``Confidence``.
    """

    threshold: float = 0.6
    verify: float = 0.9
    block: int = 0

    exact = False
    retracts = True
    width = 1
    tries = {"threshold": (0.4, 0.6, 0.8), "verify": (0.6, 0.9)}

    def start(self, canvas: Canvas, spec: Spec) -> State:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        _open.check_share("threshold", self.threshold)
        _open.check_share("verify", self.verify)
        return State(torch.zeros(canvas.ids.shape), torch.full_like(canvas.step, -1), torch.zeros_like(canvas.step))

    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Forward]:
        mine = _open.in_block(canvas, canvas.open, self.block)
        asks = _open.ask_for(canvas, spec, mine & (canvas.status == FREE), self.block)
        if not asks or not bool((mine & (canvas.status == DRAFT)).any()):
            return asks
        ask = asks[0]
        assert ask.rows is not None
        return [_with_shadows(ask, _positions((mine & (canvas.status == DRAFT))[ask.rows]), canvas, spec)]

    def apply(
        self, canvas: Canvas, state: State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[State, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None
        rows = ask.rows
        left = (canvas.status == FREE)[rows].sum(1)
        # As it landed: a constraint may have dropped some of it.
        written = state.free[rows] - left + state.back[rows]
        last = torch.where(state.free[rows] < 0, _FIRST, written)
        shadow = ask.want >= canvas.ids.shape[1]
        free = (ask.want >= 0) & ~shadow
        at = _places(ask, canvas.ids.shape[1])

        fresh = out.conf.masked_fill(~free, -torch.inf)
        cap = (free.sum(1).double() * 0.7).long().clamp(min=5, max=20)
        bold = fresh > math.log(self.threshold)
        taken = torch.where((bold.sum(1) > cap)[:, None], _open.best(fresh, cap), bold)
        taken |= _open.best(fresh, free.any(1).long())

        token, count = torch.where(free, out.token, canvas.ids[rows].gather(1, at)), taken.sum(1)
        real = ask.want >= 0
        chance = _open.rectangle(out.log_p.gather(1, token[real][:, None].to(out.log_p.device))[:, 0], ask, 0.0)
        doubtful = shadow & (chance < math.log(self.verify)) & (count > 1)[:, None]
        least = _open.best((-chance).masked_fill(~shadow, -torch.inf), last - 1)
        back = torch.where((doubtful.sum(1) >= last)[:, None], doubtful & least, doubtful)

        done = free.sum(1) - count + back.sum(1) == 0
        memory, before, masked = state.conf.clone(), state.free.clone(), state.back.clone()
        conf = torch.where(free, out.conf, state.conf[rows].gather(1, at))
        row, column = (taken | back | (shadow & done[:, None])).nonzero(as_tuple=True)
        pos = at[row, column]
        memory[rows[row], pos] = conf[row, column]
        before[rows], masked[rows] = torch.where(done, -1, left), back.sum(1)
        token = torch.where(back, spec.mask_id, token)
        status = torch.where(back, FREE, torch.where(done[:, None], SEALED, DRAFT))
        return State(memory, before, masked), Step(
            rows[row], pos, token[row, column], status[row, column], conf[row, column]
        )


def _positions(chosen: Tensor) -> Tensor:
    """[R, S] the positions marked in ``chosen`` [R, L], -1 where a row has fewer than the most."""
    first = torch.sort((~chosen).to(torch.int8), dim=1, stable=True).indices[:, : int(chosen.sum(1).max())]
    return torch.where(chosen.gather(1, first), first, -1)


def _places(ask: Forward, length: int) -> Tensor:
    """[R, W] the canvas position of each wanted one: a shadow's is its twin's. 0 where nothing was wanted."""
    count = 0 if ask.cell is None else int((ask.cell >= length).any(0).sum())
    own, twins = ask.want[:, : ask.want.shape[1] - count], ask.pos[:, ask.pos.shape[1] - count :]
    return torch.cat([own, twins], 1).clamp(min=0)


def _with_shadows(ask: Forward, twins: Tensor, canvas: Canvas, spec: Spec) -> Forward:
    """The same request, with a mask at each of the positions ``twins`` [R, S] that doesn't see the token there."""
    count, width = twins.shape[1], ask.x.shape[1]
    number = torch.arange(count)
    name = torch.where(twins >= 0, canvas.ids.shape[1] + number, -1)  # beyond all positions
    pos = torch.cat([ask.pos, twins], 1)
    stage, real = ask.attend.stage(pos, ask.prompt), pos >= 0
    mask = (stage[:, None] <= stage[:, :, None]) & real[:, None]
    mask[:, :, width:] = torch.eye(width + count, dtype=torch.bool)[:, width:]  # a shadow is seen by itself alone
    mask[torch.arange(len(twins))[:, None], width + number, twins.clamp(min=0)] = False
    mask |= ~real[:, :, None]  # padding sees something: no NaN
    return replace(
        ask,
        x=torch.cat([ask.x, torch.full_like(twins, spec.mask_id)], 1),
        pos=pos,
        cell=torch.cat([ask.pos, name], 1),
        want=torch.cat([ask.want, name], 1),
        mask=mask,
    )
