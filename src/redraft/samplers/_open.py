"""What samplers share: asking about open positions, and choosing among them."""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.types import FREE, GIVEN, PAD, SEALED, Canvas, Forward, Output, Spec, Step

ORDER_STREAM = 1 << 40  # keeps the noise that orders positions apart from the noise that draws tokens


def ask(canvas: Canvas, spec: Spec, rows: Tensor, wanted: Tensor, t: Tensor | None = None, block: int = 0) -> Forward:
    """Request the whole text of ``rows`` [R], wanting the positions marked in ``wanted`` [R, L] bool.

    ``block``: the sampler works on blocks of so many positions, counted from the prompt's end; 0: on all at once.
    """
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
        active=_region(canvas.prompt[rows], used, first[:, 0], block),
    )


def ask_for(canvas: Canvas, spec: Spec, wanted: Tensor, block: int = 0) -> list[Forward]:
    """One request for the rows that want something (``wanted`` [B, L] bool), or none. ``block`` as in ``ask``."""
    rows = wanted.any(1).nonzero()[:, 0]
    return [ask(canvas, spec, rows, wanted[rows], noise_level(canvas, spec, rows), block)] if len(rows) else []


def _region(prompt: Tensor, used: Tensor, first: Tensor, block: int) -> Tensor:
    """[R, 2] beginning and end of the block that holds ``first`` [R], or of all that follows the prompt."""
    end = torch.where(used, torch.arange(1, used.shape[1] + 1), 0).amax(1)
    if block == 0:
        return torch.stack([prompt, end], 1)
    begin = prompt + (first - prompt).div(block, rounding_mode="floor") * block
    return torch.stack([begin, torch.minimum(begin + block, end)], 1)


def free_in_block(canvas: Canvas, block: int, spec: Spec | None = None) -> Tensor:
    """[B, L] bool: the free positions of each row's leftmost unfinished block (of all, for block 0).

    With ``spec``, those that stand after an end-of-text already written are left out: nobody will read them.
    """
    free = canvas.status == FREE
    return in_block(canvas, free if spec is None else free & ~after_end(canvas, spec), block)


def in_block(canvas: Canvas, chosen: Tensor, block: int) -> Tensor:
    """[B, L] bool: the positions of ``chosen`` [B, L] in the leftmost block of each row that has any (block 0: all)."""
    if block == 0:
        return chosen
    number = (torch.arange(chosen.shape[1])[None] - canvas.prompt[:, None]).div(block, rounding_mode="floor")
    current = torch.where(chosen, number, number.max() + 1).amin(1, keepdim=True)
    return chosen & (number == current)


def after_end(canvas: Canvas, spec: Spec) -> Tensor:
    """[B, L] bool: positions after a sealed end-of-text. One before a later given token ends nothing."""
    ends = (canvas.ids == spec.eos_id) & (canvas.status == SEALED)
    if not bool(ends.any()):
        return torch.zeros_like(ends)
    columns = torch.arange(ends.shape[1])
    given = torch.where((canvas.status == GIVEN) & (canvas.ids != spec.eos_id), columns, -1).amax(1, keepdim=True)
    first = torch.where(ends & (columns > given), columns, len(columns)).amin(1, keepdim=True)
    return columns > first


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


def noise_level(canvas: Canvas, spec: Spec, rows: Tensor) -> Tensor | None:
    """For networks conditioned on time: the t whose expected share of noise is the share still free.

    Given tokens after the prompt count as clean text, but not an end-of-text that a chosen length put there: noise
    never touches it.
    """
    if not spec.timed or spec.schedule is None:
        return None
    status = canvas.status[rows]
    closing = (status == GIVEN) & (canvas.ids[rows] == spec.eos_id) & spec.length_head
    answer = (status != PAD) & ~closing & (torch.arange(status.shape[1]) >= canvas.prompt[rows, None])
    return time_of_share(spec, (status == FREE).sum(1) / answer.sum(1).clamp(min=1))


def time_of_share(spec: Spec, share: Tensor) -> Tensor:
    """Invert 1 - alpha(t) = share by bisection. [R] -> [R]."""
    assert spec.schedule is not None
    low, high = torch.zeros_like(share), torch.ones_like(share)
    for _ in range(30):
        middle = (low + high) / 2
        above = 1 - spec.schedule.alpha(middle) > share
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def check_diffusion(spec: Spec) -> None:
    """Raises UserError for a model that was never taught to fill masks."""
    check_noise(spec)
    if spec.process != "absorbing":
        raise UserError(
            f"this sampler fills masks, and this diffusion model knows {spec.process} noise only.",
            "Use the sampler posterior, analytic or predictor_corrector.",
        )


def check_noise(spec: Spec) -> None:
    """Raises UserError for a model without a noise schedule, or one whose noise is on vectors or made of edits."""
    if spec.edits:
        raise UserError("this model predicts edits, and this sampler needs tokens.", "Use the sampler edit_flow.")
    if spec.continuous is not None:
        raise UserError(
            "this sampler is for noise on tokens, and this model takes gaussian noise off vectors.",
            "Use the sampler ddim or dpm_solver.",
        )
    if spec.schedule is None:
        raise UserError(
            "this sampler needs a diffusion model: this one has no noise schedule.", "Use the autoregressive sampler."
        )


def check_block(block: int) -> None:
    """Raises UserError for a negative block."""
    if block < 0:
        raise UserError(f"block = {block} must be at least 0.", "0 is one block as long as the text.")


def check_share(name: str, value: float, least: float = 0.0) -> None:
    """Raises UserError for a probability outside of (``least``, 1]."""
    if not least < value <= 1:
        raise UserError(f"{name} = {value} must lie in ({least:g}, 1].")


def check_steps(steps: int, canvas: Canvas, spec: Spec) -> None:
    """Raises UserError when there are no steps, or more than the tokens that may be written.

    Positions that a chosen length cut off still hold masks: they count, so that one short answer is no mistake, and so
    does the end-of-text that such a length has put in place.
    """
    if steps < 1:
        raise UserError(f"steps = {steps} must be at least 1.")
    answer = torch.arange(canvas.ids.shape[1]) >= canvas.prompt[:, None]
    closed = answer & (canvas.status == GIVEN) & (canvas.ids == spec.eos_id)
    most = int(((canvas.ids == spec.mask_id).sum(1) + closed.any(1)).max())
    if spec.attend.kind == "block":  # steps are steps a block (see ``Blockwise``)
        most = spec.attend.block
    if spec.grows:
        most = int((canvas.limit - canvas.prompt).max())
    if steps > most:
        raise UserError(
            f"steps = {steps} is larger than the {most} tokens to write: a step writes at least one.",
            "Lower --steps or raise --max-new-tokens.",
        )
