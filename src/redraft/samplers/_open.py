"""What samplers share: asking about open positions, and choosing among them."""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.types import FREE, PAD, SEALED, Canvas, Forward, Output, Spec, Step


def ask(canvas: Canvas, spec: Spec, rows: Tensor, wanted: Tensor, t: Tensor | None = None) -> Forward:
    """Request the whole text of ``rows`` [R], wanting the positions marked in ``wanted`` [R, L] bool."""
    status = canvas.status[rows]
    used = status != PAD
    width = int(used.any(0).nonzero()[-1]) + 1
    positions = torch.arange(width)
    count = int(wanted.sum(1).max())
    # A stable sort by "not wanted" lists the wanted positions first, in order.
    first = torch.sort((~wanted).to(torch.int8), dim=1, stable=True).indices[:, :count]
    return Forward(
        x=canvas.ids[rows, :width],
        pos=torch.where(used[:, :width], positions, -1),
        want=torch.where(wanted.gather(1, first), first, -1),
        attend=spec.attend,
        prompt=canvas.prompt[rows] if spec.isolate_prompt else None,
        t=t,
        rows=rows,
    )


def free_in_block(canvas: Canvas, block: int) -> Tensor:
    """[B, L] bool: the free positions of each row's leftmost unfinished block (of all, for block 0)."""
    free = canvas.status == FREE
    if block == 0:
        return free
    number = (torch.arange(free.shape[1])[None] - canvas.prompt[:, None]).div(block, rounding_mode="floor")
    current = torch.where(free, number, number.max() + 1).amin(1, keepdim=True)
    return free & (number == current)


def best(scores: Tensor, count: Tensor) -> Tensor:
    """[R, W] bool marking the ``count`` [R] highest finite scores of each row; ties go to the left."""
    rank = torch.empty_like(scores, dtype=torch.int64)
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    rank.scatter_(1, order, torch.arange(scores.shape[1]).expand_as(order))
    return (rank < count[:, None]) & (scores > -torch.inf)


def write(ask: Forward, out: Output, chosen: Tensor, status: int = SEALED) -> Step:
    """The step that commits the drawn tokens at the chosen [R, W] positions."""
    assert ask.rows is not None
    row, column = chosen.nonzero(as_tuple=True)
    return Step(
        row=ask.rows[row],
        pos=ask.want[row, column],
        token=out.token[row, column],
        status=torch.full_like(row, status),
        conf=out.conf[row, column],
    )


def rectangle(values: Tensor, ask: Forward, fill: float) -> Tensor:
    """Flat values [N] -> [R, W] with ``fill`` where nothing was wanted."""
    full = torch.full(ask.want.shape, fill, dtype=values.dtype)
    full[ask.want >= 0] = values.cpu()
    return full


def check_steps(steps: int, canvas: Canvas, spec: Spec) -> None:
    """Raises UserError when there are no steps, or more than the tokens that may be written.

    Positions that a chosen length cut off still hold masks: they count, so that one short answer is no mistake.
    """
    if steps < 1:
        raise UserError(f"steps = {steps} must be at least 1.")
    most = int((canvas.ids == spec.mask_id).sum(1).max()) + spec.length_head
    if steps > most:
        raise UserError(
            f"steps = {steps} is larger than the {most} tokens to write: a step writes at least one.",
            "Lower --steps or raise --max-new-tokens.",
        )
