"""Samplers that find the length of an answer by themselves: what shows its end, and masks added and removed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redraft.canvas import extent
from redraft.errors import UserError
from redraft.samplers.shared import common
from redraft.types import DELETE, FREE, INSERT, SET, Canvas, Output, Request, Spec, Step

_FIELDS = ("row", "pos", "token", "status", "conf", "kind")


def check(canvas: Canvas, spec: Spec) -> None:
    """Raises UserError if rows may grow, but the model does not show the end of a text by predicting it."""
    common.check_diffusion(spec)
    if not bool(canvas.gap.any()):
        return
    if spec.network.length_head or spec.network.attention.kind == "block" or spec.variable_length:
        reason = "has a length head" if spec.network.length_head else "ends its texts by itself"
        raise UserError(
            f"This sampler finds the length of an answer; this model {reason}.",
            "Use another sampler, for example threshold.",
        )


def ends(request: Request, out: Output, spec: Spec) -> tuple[Tensor, Tensor]:
    """[R, W] the probability of the end of the text at the targets, and whether it is the likeliest token."""
    p_end, likeliest = common.rectangles(
        request, (out.log_p[:, spec.tokens.eos_id], -torch.inf), (out.log_p.argmax(-1), -1)
    )
    return p_end.double().exp(), (likeliest == spec.tokens.eos_id) & (request.targets >= 0)


def room(canvas: Canvas) -> Tensor:
    """[B] positions that may be added to each row; 0 for rows of fixed length."""
    return (canvas.limit - extent(canvas)).clamp(min=0) * canvas.gap.any(1)


def confident(canvas: Canvas, spec: Spec, request: Request, out: Output, block: int) -> Tensor:
    """[R, W] log-probability of each sampled token in a row's leftmost unfinished block; -inf elsewhere."""
    own = common.free_in_block(canvas, block, spec)[request.rows].gather(1, request.targets.clamp(min=0))
    return out.conf.masked_fill(~own | (request.targets < 0), -torch.inf)


def append(canvas: Canvas, spec: Spec, rows: Tensor, count: Tensor) -> Step:
    """The step that appends ``count`` [R] masks to ``rows`` [R] whose last position is free."""
    end = extent(canvas)[rows]
    able = canvas.status[rows].gather(1, (end - 1)[:, None])[:, 0] == FREE
    count = torch.where(able, count, 0)
    return _inserted(rows.repeat_interleave(count), end.repeat_interleave(count), spec)


def widen(canvas: Canvas, spec: Spec, request: Request, chosen: Tensor, count: int) -> Step:
    """The step that puts ``count`` masks before the targets in ``chosen`` [R, W] bool, as far as there is room."""
    row, column = chosen.nonzero(as_tuple=True)
    rows, pos = request.rows[row], request.targets[row, column]
    fits = torch.minimum(torch.full_like(rows, count), room(canvas)[rows])
    return _inserted(rows.repeat_interleave(fits), pos.repeat_interleave(fits), spec)


def cut(canvas: Canvas, request: Request, able: Tensor, count: Tensor) -> Step:
    """The step that removes the last ``count`` [R] positions of rows that end with targets in ``able`` [R, W] bool.

    Only these are removed, and the first of them stays.
    """
    end = extent(canvas)[request.rows][:, None]
    after = able.flip(1).cumsum(1).flip(1)  # of these targets, from here on
    trailing = able & (request.targets == end - after)
    count = torch.minimum(count, trailing.sum(1) - 1)
    row, column = (trailing & (after <= count[:, None])).nonzero(as_tuple=True)
    rows, pos = request.rows[row], request.targets[row, column]
    kind = torch.full_like(rows, DELETE)
    return Step(rows, pos, canvas.ids[rows, pos], torch.full_like(rows, FREE), torch.zeros(len(rows)), kind=kind)


def combined(steps: Sequence[Step]) -> Step:
    """One step with the changes of all; without insertions and deletions it has no kinds."""
    kinds = [torch.full_like(step.row, SET) if step.kind is None else step.kind for step in steps]
    parts = {name: torch.cat([vars(step)[name] for step in steps]) for name in _FIELDS[:-1]}
    kind = torch.cat(kinds)
    return Step(**parts, kind=kind if bool((kind != SET).any()) else None)


def _inserted(rows: Tensor, pos: Tensor, spec: Spec) -> Step:
    return Step(
        row=rows,
        pos=pos,
        token=torch.full_like(rows, spec.tokens.mask_id),
        status=torch.full_like(rows, FREE),
        conf=torch.zeros(len(rows)),
        kind=torch.full_like(rows, INSERT),
    )
