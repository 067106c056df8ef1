"""WINO: draft many positions, and verify earlier drafts in the same pass."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.options import setting
from redraft.runtime import upload
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common
from redraft.types import DRAFT, FREE, SEALED, Canvas, Output, QueryMask, Request, Spec, Step

_FIRST = 30  # number of positions that count as written before the first pass


@dataclass(frozen=True)
class WinoState:
    """Data about the drafts of each row."""

    conf: Tensor  # [B, L] log-probability of each token when it was written
    free: Tensor  # [B] number of free positions before the last pass; -1: this block had no pass yet
    remasked: Tensor  # [B] number of positions that the last pass masked again


@dataclass(frozen=True)
class Wino(Sampler):
    """Wide-in, narrow-out (Hong et al. 2025, arXiv:2507.18578).

    *Wide in*: each pass writes the free positions of the block with p(x) > ``threshold``, at most 70 % of them (at most
    20 in total, but the limit is never below 5), and always the most confident one. *Narrow out*: for every draft the
    pass runs a shadow, which is a mask at the same position that attends to everything except the draft. If the shadow
    gives the draft's token a probability below ``verify``, the position is masked again. Fewer positions are masked
    than the pass before wrote, so that each pass gains at least one position. A block is final when it has no free
    position.

    Shadows are additional queries, so a pass runs one more position for each draft, without a cache. Here a shadow does
    not attend to other shadows; in the authors' code it does. ``block`` as in ``Confidence``.
    """

    threshold: float = setting(0.6, "Confidence above which a position is written.", above=0, most=1)
    verify: float = setting(0.9, "Confidence below which a written token is masked again.", above=0, most=1)
    block: int = block_option()

    retracts = True
    tries = {"threshold": (0.4, 0.6, 0.8), "verify": (0.6, 0.9)}

    def start(self, canvas: Canvas, spec: Spec) -> WinoState:
        common.check_diffusion(spec)
        return WinoState(torch.zeros(canvas.ids.shape), torch.full_like(canvas.step, -1), torch.zeros_like(canvas.step))

    def plan(self, canvas: Canvas, state: WinoState, spec: Spec) -> list[Request]:
        in_block = common.in_block(canvas, canvas.open, self.block)
        requests = common.requests_for(canvas, spec, in_block & (canvas.status == FREE), self.block)
        drafts = in_block & (canvas.status == DRAFT)
        if not requests or not bool(drafts.any()):
            return requests
        request = requests[0]
        return [_with_shadows(request, common.marked_positions(drafts[request.rows]), canvas, spec)]

    def apply(
        self, canvas: Canvas, state: WinoState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[WinoState, Step]:
        request, out = requests[0], outputs[0]
        rows = request.rows
        free_count = (canvas.status == FREE)[rows].sum(1)
        # Positions that the last pass wrote, read from the canvas because a constraint may have dropped some.
        written = state.free[rows] - free_count + state.remasked[rows]
        last = torch.where(state.free[rows] < 0, _FIRST, written)
        shadow = request.targets >= canvas.ids.shape[1]
        free = (request.targets >= 0) & ~shadow
        at = _canvas_positions(request, canvas.ids.shape[1])

        fresh = out.conf.masked_fill(~free, -torch.inf)
        cap = (free.sum(1).double() * 0.7).long().clamp(min=5, max=20)
        confident = fresh > math.log(self.threshold)
        chosen = torch.where((confident.sum(1) > cap)[:, None], common.best(fresh, cap), confident)
        chosen |= common.best(fresh, free.any(1).long())

        token, count = torch.where(free, out.token, canvas.ids[rows].gather(1, at)), chosen.sum(1)
        real = request.targets >= 0
        chance = common.rectangle(
            out.log_p.gather(1, upload(token[real], out.log_p.device)[:, None])[:, 0], request, 0.0
        )
        doubtful = shadow & (chance < math.log(self.verify)) & (count > 1)[:, None]
        least = common.best((-chance).masked_fill(~shadow, -torch.inf), last - 1)
        remasked = torch.where((doubtful.sum(1) >= last)[:, None], doubtful & least, doubtful)

        done = free.sum(1) - count + remasked.sum(1) == 0
        all_conf, all_free, all_remasked = state.conf.clone(), state.free.clone(), state.remasked.clone()
        conf = torch.where(free, out.conf, state.conf[rows].gather(1, at))
        row, column = (chosen | remasked | (shadow & done[:, None])).nonzero(as_tuple=True)
        pos = at[row, column]
        all_conf[rows[row], pos] = conf[row, column]
        all_free[rows], all_remasked[rows] = torch.where(done, -1, free_count), remasked.sum(1)
        token = torch.where(remasked, spec.tokens.mask_id, token)
        status = torch.where(remasked, FREE, torch.where(done[:, None], SEALED, DRAFT))
        step = Step(rows[row], pos, token[row, column], status[row, column], conf[row, column])
        return WinoState(all_conf, all_free, all_remasked), step


def _canvas_positions(request: Request, length: int) -> Tensor:
    """[R, W] the canvas position of each target; that of its draft for a shadow; 0 where there is no target."""
    query = request.find(QueryMask)
    count = 0 if query is None or query.query_ids is None else int((query.query_ids >= length).any(0).sum())
    own = request.targets[:, : request.targets.shape[1] - count]
    drafts = request.positions[:, request.positions.shape[1] - count :]
    return torch.cat([own, drafts], 1).clamp(min=0)


def _with_shadows(request: Request, drafts: Tensor, canvas: Canvas, spec: Spec) -> Request:
    """The request with a shadow for each position in ``drafts`` [R, S]: a mask that does not attend to the draft."""
    count, width = drafts.shape[1], request.tokens.shape[1]
    number = torch.arange(count)
    query_ids = torch.where(drafts >= 0, canvas.ids.shape[1] + number, -1)  # larger than all positions
    positions = torch.cat([request.positions, drafts], 1)
    group, real = request.attention.group(positions, request.prompt), positions >= 0
    mask = (group[:, None] <= group[:, :, None]) & real[:, None]
    mask[:, :, width:] = torch.eye(width + count, dtype=torch.bool)[:, width:]  # only the shadow itself attends to it
    mask[torch.arange(len(drafts))[:, None], width + number, drafts.clamp(min=0)] = False
    mask |= ~real[:, :, None]  # padding attends to something, because a softmax over no keys is not a number
    return replace(
        request.with_extra(QueryMask(mask, torch.cat([request.positions, query_ids], 1))),
        tokens=torch.cat([request.tokens, torch.full_like(drafts, spec.tokens.mask_id)], 1),
        positions=positions,
        targets=torch.cat([request.targets, query_ids], 1),
    )
