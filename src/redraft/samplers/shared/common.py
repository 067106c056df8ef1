"""Requests for open positions, the choice among them, and checks of options."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.runtime import download, row_chunks, upload
from redraft.types import FREE, GIVEN, PAD, SEALED, CacheHint, Canvas, Drawing, Output, Request, Spec, Step


def request(
    canvas: Canvas, spec: Spec, rows: Tensor, marked: Tensor, t: Tensor | None = None, block: int = 0
) -> Request:
    """A request that runs all positions of ``rows`` [R]; the targets are the positions in ``marked`` [R, L] bool.

    Args:
        t: [R] time, for networks conditioned on it. block: block size of the sampler, counted from the end of the
            prompt; 0: it works on the whole sequence.
    """
    status = canvas.status[rows]
    used = status != PAD
    width = int(used.any(0).nonzero()[-1]) + 1
    targets = marked_positions(marked)
    return Request(
        tokens=canvas.ids[rows, :width],
        positions=torch.where(used[:, :width], torch.arange(width), -1),
        targets=targets,
        attention=spec.network.attention,
        prompt=canvas.prompt[rows] if spec.network.prompt_encoder else None,
        time=t,
        drawing=Drawing(rows),
        cache=CacheHint(active_region=_region(canvas.prompt[rows], used, targets[:, 0], block)),
    )


def marked_positions(marked: Tensor) -> Tensor:
    """[R, W] the positions in ``marked`` [R, L] bool, in order; -1 after the last of a row."""
    count = int(marked.sum(1).max())
    # A stable sort by "not marked" lists the marked positions first, in order.
    first = torch.sort((~marked).to(torch.int8), dim=1, stable=True).indices[:, :count]
    return torch.where(marked.gather(1, first), first, -1)


def requests_for(canvas: Canvas, spec: Spec, marked: Tensor, block: int = 0) -> list[Request]:
    """One request for the positions in ``marked`` [B, L] bool, or none if there are none. See ``request``."""
    rows = marked.any(1).nonzero()[:, 0]
    return [request(canvas, spec, rows, marked[rows], noise_level(canvas, spec, rows), block)] if len(rows) else []


def _region(prompt: Tensor, used: Tensor, first: Tensor, block: int) -> Tensor:
    """[R, 2] begin and end of the block that contains ``first`` [R], or of all positions after the prompt."""
    end = torch.where(used, torch.arange(1, used.shape[1] + 1), 0).amax(1)
    if block == 0:
        return torch.stack([prompt, end], 1)
    begin = prompt + (first - prompt).div(block, rounding_mode="floor") * block
    return torch.stack([begin, torch.minimum(begin + block, end)], 1)


def free_in_block(canvas: Canvas, block: int, spec: Spec | None = None) -> Tensor:
    """[B, L] bool: the free positions of each row's leftmost unfinished block; with ``block`` 0, all free positions.

    With ``spec``, positions after a sealed end-of-text token are excluded, because they become padding.
    """
    free = canvas.status == FREE
    return in_block(canvas, free if spec is None else free & ~after_end(canvas, spec), block)


def in_block(canvas: Canvas, chosen: Tensor, block: int) -> Tensor:
    """[B, L] bool: the positions of ``chosen`` [B, L] in the first block of a row that contains any; block 0: all."""
    if block == 0:
        return chosen
    number = (torch.arange(chosen.shape[1])[None] - canvas.prompt[:, None]).div(block, rounding_mode="floor")
    current = torch.where(chosen, number, number.max() + 1).amin(1, keepdim=True)
    return chosen & (number == current)


def after_end(canvas: Canvas, spec: Spec) -> Tensor:
    """[B, L] bool: positions after a sealed end-of-text token. One before a later given token does not count."""
    ends = (canvas.ids == spec.tokens.eos_id) & (canvas.status == SEALED)
    if not bool(ends.any()):
        return torch.zeros_like(ends)
    columns = torch.arange(ends.shape[1])
    given = torch.where((canvas.status == GIVEN) & (canvas.ids != spec.tokens.eos_id), columns, -1).amax(
        1, keepdim=True
    )
    first = torch.where(ends & (columns > given), columns, len(columns)).amin(1, keepdim=True)
    return columns > first


def best(scores: Tensor, count: Tensor) -> Tensor:
    """[R, W] bool: the ``count`` [R] highest scores [R, W] of each row above -inf; the leftmost of equal ones."""
    rank = torch.empty_like(scores, dtype=torch.int64)
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    rank.scatter_(1, order, torch.arange(scores.shape[1]).expand_as(order))
    return (rank < count[:, None]) & (scores > -torch.inf)


def write(request: Request, out: Output, chosen: Tensor, status: int = SEALED) -> Step:
    """The step that writes the sampled tokens at the targets in ``chosen`` [R, W] bool."""
    row, column = chosen.nonzero(as_tuple=True)
    return Step(
        row=request.rows[row],
        pos=request.targets[row, column],
        token=out.token[row, column],
        status=torch.full_like(row, status),
        conf=out.conf[row, column],
    )


def length_request(ids: Tensor, prompt: Tensor, spec: Spec, rows: Tensor) -> Request:
    """Request the distribution of the output length, which is read at the last prompt position over ids 0, 1, 2 ...

    Args:
        ids: [R, L] rows that begin with their prompts. prompt: [R] prompt lengths. rows: [R] canvas rows.
    """
    width = int(prompt.max())
    positions = torch.arange(width)
    return Request(
        tokens=ids[:, :width],
        positions=torch.where(positions < prompt[:, None], positions, -1),
        targets=prompt[:, None] - 1,
        attention=spec.network.attention,
        prompt=prompt,
        time=torch.zeros(len(prompt)) if spec.network.timed else None,
        drawing=Drawing(rows, kind="length"),
    )


def heat(canvas: Canvas, request: Request) -> Tensor | None:
    """[R] the temperature of a sampler with a schedule, for all that it reads of its predictions; None: 1.

    Where the temperature of a row is 0, tokens are the likeliest ones, and the schedule remains.
    """
    own, rows = request.drawing.heat, canvas.sampling.temperature[request.rows]
    return None if own is None else own * torch.where(rows > 0, rows, 1.0)


def heated(canvas: Canvas, request: Request, log_p: Tensor) -> Iterator[Tensor]:
    """Log-probabilities [N, V] at the temperature ``heat``, in parts of consecutive rows [n, V]."""
    found = heat(canvas, request)
    scale = torch.zeros(0)
    if found is not None:
        row = (request.targets >= 0).nonzero()[:, 0]
        scale = upload(found[row].float(), log_p.device)[:, None]
    for part in row_chunks(log_p):
        yield log_p[part] if found is None else (log_p[part] / scale[part]).log_softmax(-1)


def rectangle(values: Tensor, request: Request, fill: float) -> Tensor:
    """Flat values [N] -> [R, W] with ``fill`` where there is no target."""
    full = torch.full(request.targets.shape, fill, dtype=values.dtype)
    full[request.targets >= 0] = values.cpu()
    return full


def rectangles(request: Request, *values: tuple[Tensor, float]) -> list[Tensor]:
    """``rectangle`` of several (flat values [N], fill) -> [R, W] each, for which the host waits once."""
    flat = download(*(each for each, _ in values))
    return [rectangle(each, request, fill) for each, (_, fill) in zip(flat, values, strict=True)]


def noise_level(canvas: Canvas, spec: Spec, rows: Tensor) -> Tensor | None:
    """[R] the time whose expected share of noise is the share of free positions; None without conditioning on time.

    Given tokens after the prompt count as clean text, except an end-of-text token from a predicted length, which the
    noise process never replaces.
    """
    if not spec.network.timed or spec.family.schedule is None:
        return None
    status = canvas.status[rows]
    final_eos = (status == GIVEN) & (canvas.ids[rows] == spec.tokens.eos_id) & spec.network.length_head
    answer = (status != PAD) & ~final_eos & (torch.arange(status.shape[1]) >= canvas.prompt[rows, None])
    return time_of_share(spec, (status == FREE).sum(1) / answer.sum(1).clamp(min=1))


def time_of_share(spec: Spec, share: Tensor) -> Tensor:
    """Solve 1 - alpha(t) = share for t by bisection. [R] -> [R]."""
    assert spec.family.schedule is not None
    low, high = torch.zeros_like(share), torch.ones_like(share)
    for _ in range(30):
        middle = (low + high) / 2
        above = 1 - spec.family.schedule.alpha(middle) > share
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def check_diffusion(spec: Spec) -> None:
    """Raises UserError if the model was not trained to fill masks."""
    check_noise(spec)
    check_masks(spec)


def check_masks(spec: Spec) -> None:
    """Raises UserError if the noise of a model, or of the drafter in it, does not consist of masks."""
    if not spec.masks:
        noise = spec.family.process.name if spec.family.process is not None else "no"
        blocks = spec.network.attention.kind == "causal"
        others = "renoising or autoregressive" if blocks else "posterior, analytic or predictor_corrector"
        raise UserError(f"This sampler fills masks; this model has {noise} noise.", f"Use the sampler {others}.")


def check_noise(spec: Spec) -> None:
    """Raises UserError if the model has no noise schedule, or if its noise acts on vectors or by edits."""
    if spec.edits:
        raise UserError("This sampler needs predictions of tokens; this model predicts edits.", "Use edit_flow.")
    if spec.family.continuous is not None:
        raise UserError(
            "This sampler is for noise on tokens; this model removes Gaussian noise from vectors.",
            "Use the sampler ddim or dpm_solver.",
        )
    if spec.family.schedule is None:
        raise UserError(
            "This sampler needs a diffusion model; this model has no noise schedule.", "Use the sampler autoregressive."
        )


def check_steps(steps: int, canvas: Canvas, spec: Spec) -> None:
    """Raises UserError if there are more steps than positions to generate.

    Positions that a predicted length removed still contain masks. They count, so that a short answer is not an error,
    and so does the end-of-text token of a predicted length.
    """
    answer = torch.arange(canvas.ids.shape[1]) >= canvas.prompt[:, None]
    final_eos = answer & (canvas.status == GIVEN) & (canvas.ids == spec.tokens.eos_id)
    most = int(((canvas.ids == spec.tokens.mask_id).sum(1) + final_eos.any(1)).max())
    if spec.network.attention.kind == "block":  # steps are counted per block (see ``Blockwise``)
        most = spec.network.attention.block
    if spec.variable_length:
        most = int((canvas.limit - canvas.prompt).max())
    if steps > most:
        raise UserError(
            f"steps = {steps} is larger than the {most} tokens to generate. Each step writes at least one token.",
            "Lower --steps or raise --max-new-tokens.",
        )
