"""Draft and verify: diffusion drafts several tokens in one pass, the autoregressive model checks them in another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.canvas import joined
from redraft.errors import UserError
from redraft.length import length_request
from redraft.samplers import _open
from redraft.types import DRAFT, FREE, SEALED, Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class State:
    """How long each answer will be in the drafter's eyes."""

    length: Tensor  # [B] tokens, end-of-text included; 0: not asked yet. Of drafters that predict a length


@dataclass(frozen=True)
class DraftVerify:
    """Speculative decoding (Leviathan et al. 2023, arXiv:2211.17192) with a parallel drafter (DiffuSpec, Li et al.
    2025, arXiv:2510.02358; TiDAR, Liu et al. 2025, arXiv:2511.08923).

    The drafter fills ``block`` masks behind the text in one pass. One causal pass over the drafts gives the
    autoregressive model's own token after each of them. Drafts are kept as long as they are those very tokens, and the
    first one that is not is replaced by it: at least one token, at most ``block`` + 1, for two passes.

    So the text is the autoregressive one, token for token, at temperature 0 and at any other: a token is drawn by
    inverse CDF from one uniform keyed by (seed, position), and drafts are only ever compared with that draw. Drafts
    are drawn from the same uniform, which makes them agree more often the closer the two distributions are. (Rounding
    may break a tie the other way: a pass over several positions adds in another order than one over a single one.)

    Who drafts is ``Spec.drafter``: another model (``Model.draft_with``, ``--drafter``), or the same network where it
    was trained for both (family ``hybrid``).
    """

    block: int = 8

    exact = True
    retracts = True  # drafts, never what was sealed
    width = 1
    tries = {"block": (2, 4, 8, 16)}

    def start(self, canvas: Canvas, spec: Spec) -> State:
        if spec.drafter is None:
            raise UserError(
                "this sampler needs a diffusion model to draft for an autoregressive one.",
                "Name one by --drafter (Model.draft_with), or use a model of family hybrid.",
            )
        if self.block < 1:
            raise UserError(f"block = {self.block} must be at least 1.")
        return State(torch.zeros_like(canvas.step))

    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Forward]:
        """Rows with drafts have them verified, the others get new ones; a lone last position needs no draft."""
        assert spec.drafter is not None
        begin, run = _frontier(canvas)
        drafts = canvas.status == DRAFT
        drafted = _in_a_row(drafts, begin)  # a constraint may have dropped some of them
        live = run > 0
        verify = live & (drafts.any(1) | (run == 1))
        asks = []
        if bool(verify.any()):
            asks.append(_verification(canvas, spec, verify, begin, torch.minimum(drafted + 1, run)))
        draft = live & ~verify
        unknown = draft & (state.length == 0) if spec.drafter.length_head else torch.zeros_like(draft)
        if bool(unknown.any()):
            asks.append(_length(canvas, spec.drafter, unknown.nonzero()[:, 0]))
        elif bool(draft.any()):
            count = (run - 1).clamp(max=self.block)  # the verifier adds one of its own
            asks.append(self._draft(canvas, state, spec.drafter, draft, begin, count))
        return asks

    def _draft(
        self, canvas: Canvas, state: State, drafter: Spec, live: Tensor, begin: Tensor, count: Tensor
    ) -> Forward:
        """Ask for tokens at the ``count`` [B] positions from ``begin`` [B] on."""
        rows = live.nonzero()[:, 0]
        start = begin[rows]
        end = stop = start + count[rows]
        columns = torch.arange(canvas.ids.shape[1])
        x = canvas.ids[rows].masked_fill(columns >= start[:, None], drafter.mask_id)
        prompt = canvas.prompt[rows] if drafter.isolate_prompt else None
        if drafter.length_head:
            # It was taught on answers whose closing end-of-text stands: it stands where the answer should end, or
            # right behind the drafts of an answer that has gone on longer.
            end = canvas.prompt[rows] + state.length[rows]
            end = torch.where(end > start + 1, end, stop + 1)
            stop = torch.minimum(stop, end - 1)
            x[columns == end[:, None] - 1] = drafter.eos_id
        if drafter.attend.kind == "block":  # the rest of its block, whole, and no further
            stage = drafter.attend.stage(columns.expand_as(x), prompt)
            end = (stage <= stage.gather(1, start[:, None])).sum(1)
            stop = torch.minimum(stop, end)
        answer = end - canvas.prompt[rows]
        width = int(end.max())
        return Forward(
            x=x[:, :width],
            pos=torch.where(columns < end[:, None], columns, -1)[:, :width],
            want=_listed((columns >= start[:, None]) & (columns < stop[:, None])),
            attend=drafter.attend,
            prompt=prompt,
            t=_open.time_of_share(drafter, (end - start) / answer) if drafter.timed else None,
            net=drafter.net,
            rows=rows,
            stamp=torch.zeros_like(rows),  # the uniform of the position, the verifier's own
            shift=drafter.shift,
            whole=start if drafter.attend.kind == "causal" else None,
        )

    def apply(
        self, canvas: Canvas, state: State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[State, Step]:
        steps = []
        for ask, out in zip(asks, outs, strict=True):
            if ask.number:
                state = _measured(canvas, state, ask, out)
            elif ask.shift is None:  # the network's own: left to right
                steps.append(_verified(canvas, spec, ask, out))
            else:
                steps.append(_open.write(ask, out, ask.want >= 0, DRAFT))
        return state, joined(steps)


def _in_a_row(marked: Tensor, begin: Tensor) -> Tensor:
    """[B] how many ``marked`` [B, L] positions follow one another from ``begin`` [B] on."""
    columns = torch.arange(marked.shape[1] + 1)
    other = torch.cat([~marked, torch.ones_like(marked[:, :1])], 1) & (columns >= begin[:, None])
    return other.to(torch.int8).argmax(1) - begin


def _frontier(canvas: Canvas) -> tuple[Tensor, Tensor]:
    """[B] the leftmost open position, and [B] how many open ones stand there in a row (0: none is left)."""
    closed = torch.cat([~canvas.open, torch.ones_like(canvas.step)[:, None].bool()], 1)
    columns = torch.arange(closed.shape[1])
    begin = torch.where(closed, len(columns) - 1, columns).amin(1)
    end = torch.where(closed & (columns >= begin[:, None]), columns, len(columns) - 1).amin(1)
    return begin, end - begin


def _verification(canvas: Canvas, spec: Spec, live: Tensor, begin: Tensor, count: Tensor) -> Forward:
    """Ask the autoregressive model for its tokens at ``count`` [B] positions from ``begin`` [B] on."""
    rows = live.nonzero()[:, 0]
    start, stop = begin[rows], (begin + count)[rows]
    columns = torch.arange(int(stop.max()))
    width = max(1, int(stop.max()) - 1)  # the last one wanted is seen by none
    return Forward(
        x=canvas.ids[rows, :width],
        pos=torch.where(columns < stop[:, None] - 1, columns, -1)[:, :width],
        want=_listed((columns >= start[:, None]) & (columns < stop[:, None])),
        attend=spec.attend,
        prompt=canvas.prompt[rows] if spec.isolate_prompt else None,
        net=spec.net,
        rows=rows,
        stamp=torch.zeros_like(rows),  # as the autoregressive sampler draws
    )


def _verified(canvas: Canvas, spec: Spec, ask: Forward, out: Output) -> Step:
    """Seal the drafts that are the verifier's own tokens, then the first of its tokens that isn't; free the rest.

    Nothing is sealed behind an end-of-text: the autoregressive model would not have gone on.
    """
    assert ask.rows is not None
    rows, real = ask.rows, ask.want >= 0
    at = rows[:, None], ask.want.clamp(min=0)
    right = real & (canvas.status[at] == DRAFT) & (out.token == canvas.ids[at])
    stops = ~right | (out.token == spec.eos_id)
    before = torch.cat([torch.zeros_like(stops[:, :1]), stops[:, :-1]], 1)
    sealed = real & ~before.cumsum(1).bool()
    back = canvas.status[rows] == DRAFT  # whatever of the drafts isn't sealed, also what was not asked about
    row, column = sealed.nonzero(as_tuple=True)
    back[row, ask.want[row, column]] = False
    loose, place = back.nonzero(as_tuple=True)
    return Step(
        row=torch.cat([rows[row], rows[loose]]),
        pos=torch.cat([ask.want[row, column], place]),
        token=torch.cat([out.token[row, column], torch.full_like(place, spec.mask_id)]),
        status=torch.cat([torch.full_like(row, SEALED), torch.full_like(loose, FREE)]),
        conf=torch.cat([out.conf[row, column], torch.zeros(len(loose))]),
    )


def _length(canvas: Canvas, drafter: Spec, rows: Tensor) -> Forward:
    """Ask the drafter how long these answers will be."""
    ask = length_request(canvas.ids[rows], canvas.prompt[rows], drafter, rows)
    return replace(ask, net=drafter.net, shift=drafter.shift, number=True)


def _measured(canvas: Canvas, state: State, ask: Forward, out: Output) -> State:
    """Take the likeliest length of at least one token and at most what the canvas has room for."""
    assert ask.rows is not None
    room = (canvas.ids.shape[1] - canvas.prompt[ask.rows]).clamp(max=out.log_p.shape[1] - 1)
    number = torch.arange(out.log_p.shape[1])
    fits = (number >= 1) & (number <= room[:, None])
    length = state.length.clone()
    length[ask.rows] = out.log_p.cpu().masked_fill(~fits, -torch.inf).argmax(1)
    return State(length)


def _listed(wanted: Tensor) -> Tensor:
    """[R, W] the marked columns of ``wanted`` [R, L] bool, in order, -1 behind the last of a row."""
    count = wanted.sum(1)
    order = torch.sort((~wanted).to(torch.int8), dim=1, stable=True).indices[:, : int(count.max())]
    return torch.where(torch.arange(order.shape[1]) < count[:, None], order, -1)
