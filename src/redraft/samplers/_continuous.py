"""What samplers of continuous diffusion share: vectors are the sampler's state, and tokens come at the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.canvas import extent, joined
from redraft.errors import UserError
from redraft.noise import gaussian
from redraft.samplers import _open, _uniform
from redraft.types import GIVEN, Canvas, Continuous, Forward, Output, Spec, Step, Vectors

_BEGIN, _LATER = 1 << 43, 7 << 40  # streams of noise: what vectors begin as, and what is added on the way


@dataclass
class State:
    """Vectors of all rows, by position of the request: that of a token, or prompt length + k of the k-th vector."""

    z: Tensor  # [B, C, Z]
    clean: Tensor  # [B, C, Z] as predicted last


def start(canvas: Canvas, spec: Spec, steps: int) -> State:
    """Pure noise.

    Raises:
        UserError: another kind of model, no steps, or given text within the answer where vectors hold several tokens.
    """
    what = continuous(spec)
    if steps < 1:
        raise UserError(f"steps = {steps} must be at least 1.")
    if what.ratio > 1:
        inside = canvas.status == GIVEN
        column = torch.arange(canvas.ids.shape[1])
        closing = (canvas.ids == spec.eos_id) & (column == extent(canvas)[:, None] - 1)
        if bool((inside & (column >= canvas.prompt[:, None]) & ~closing).any()):
            raise UserError(
                "a latent model writes whole answers: its vectors hold several tokens each, so none can be given.",
                "Take a masked model to infill or edit, or one of family 'embedding'.",
            )
    width = canvas.ids.shape[1] if what.ratio == 1 else int((canvas.prompt + vector_counts(canvas, what)).max())
    place = torch.arange(width).expand(len(canvas.ids), -1)
    z = gaussian.keyed_normal(canvas.seed, torch.full_like(canvas.seed, _BEGIN), place, what.width).float()
    return State(z, torch.zeros_like(z))


def check_slice(slice: int) -> None:
    """Raises UserError for no tokens a pass."""
    if slice < 1:
        raise UserError(f"slice = {slice} must be at least 1.")


def continuous(spec: Spec) -> Continuous:
    """Raises UserError for a model of discrete noise."""
    if spec.continuous is None:
        raise UserError(
            "this sampler is for diffusion of vectors, of which this model knows nothing.",
            "Use it with a model of family 'latent' or 'embedding'.",
        )
    return spec.continuous


def vector_counts(canvas: Canvas, what: Continuous) -> Tensor:
    """[B] vectors that the answer of each row takes."""
    return -(-(extent(canvas) - canvas.prompt).clamp(min=0) // what.ratio)


def log_snr(spec: Spec, turn: Tensor, steps: int) -> Tensor:
    """[R] float64 log-SNR at each row's turn: times t = 1, 1 - 1/steps ... 0 of the schedule."""
    return gaussian.log_snr(spec, (1 - turn.double() / steps).clamp(min=0))


def plan(canvas: Canvas, state: State, spec: Spec, steps: int, slice: int) -> list[Forward]:
    """Predictions for every vector, ``steps`` times; where vectors are no tokens, their text then, slice by slice."""
    what = continuous(spec)
    rows = canvas.open.any(1).nonzero()[:, 0]
    if not len(rows):
        return []
    turn = canvas.step[rows]
    later = (turn >= steps) & (not what.tokens)  # what a constraint kept from being written is asked for once more
    return [
        part
        for chosen, make in ((rows[~later], _predict), (rows[later], _decode))
        if len(chosen)
        for part in make(canvas, state, spec, what, chosen, steps, slice)
    ]


def _predict(
    canvas: Canvas, state: State, spec: Spec, what: Continuous, rows: Tensor, steps: int, slice: int
) -> list[Forward]:
    level = gaussian.level(spec, log_snr(spec, canvas.step[rows], steps)).float()
    first = (canvas.step[rows] == 0)[:, None, None]
    if what.ratio == 1:
        open_ = canvas.open[rows]
        ask = _open.ask(canvas, spec, rows, open_, level)
        width = ask.x.shape[1]
        noisy = open_[:, :width]
    else:
        ask = _request(canvas, spec, what, rows)
        ask.t = level
        width = ask.x.shape[1]
        noisy = ask.pos >= canvas.prompt[rows, None]
    ask.vectors = Vectors("predict", state.z[rows, :width], noisy, torch.where(first, 0.0, state.clean[rows, :width]))
    return [ask]


def _request(canvas: Canvas, spec: Spec, what: Continuous, rows: Tensor) -> Forward:
    """The prompts of ``rows``, and a place for each of their vectors; predictions are wanted of these."""
    prompt, count = canvas.prompt[rows], vector_counts(canvas, what)[rows]
    column, each = torch.arange(int((prompt + count).max())), torch.arange(int(count.max()))
    ids = torch.nn.functional.pad(canvas.ids[rows], (0, max(0, len(column) - canvas.ids.shape[1])))[:, : len(column)]
    return Forward(
        x=torch.where(column < prompt[:, None], ids, spec.mask_id),
        pos=torch.where(column < (prompt + count)[:, None], column, -1),
        want=torch.where(each < count[:, None], prompt[:, None] + each, -1),
        attend=spec.attend,
        prompt=prompt,
        rows=rows,
        active=torch.stack([prompt, prompt + count], 1),
    )


def _decode(
    canvas: Canvas, state: State, spec: Spec, what: Continuous, rows: Tensor, steps: int, slice: int
) -> list[Forward]:
    ask = _request(canvas, spec, what, rows)
    open_ = canvas.open[rows]
    chosen = open_ & (open_.cumsum(1) <= slice)
    found = torch.sort((~chosen).to(torch.int8), dim=1, stable=True).indices[:, : int(chosen.sum(1).max())]
    ask.want = torch.where(chosen.gather(1, found), found, -1)
    noisy = ask.pos >= canvas.prompt[rows, None]
    ask.vectors = Vectors("decode", state.clean[rows, : ask.x.shape[1]], noisy)
    return [ask]


def predicted(ask: Forward, out: Output, spec: Spec, log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """The noisy vectors and the clean ones predicted from them, [R, W, Z] each; zero where nothing was wanted."""
    assert ask.vectors is not None and ask.vectors.z is not None and out.vector is not None
    real = ask.want >= 0
    index = ask.want.clamp(min=0)[..., None].expand(-1, -1, ask.vectors.z.shape[2])
    z = ask.vectors.z.gather(1, index)
    said = torch.zeros_like(z)
    said[real] = out.vector.to(z)
    clean = said if continuous(spec).tokens else gaussian.clean_of(said, z, log_snr.to(z)[:, None])
    return z, clean * real[..., None]


def moved(state: State, ask: Forward, z: Tensor, clean: Tensor) -> State:
    """The state with new vectors [R, W, Z] at the wanted positions."""
    assert ask.rows is not None
    row, column = (ask.want >= 0).nonzero(as_tuple=True)
    at = ask.rows[row], ask.want[row, column]
    new = State(state.z.clone(), state.clean.clone())
    new.z[at], new.clean[at] = z[row, column], clean[row, column]
    return new


def noise(canvas: Canvas, ask: Forward, width: int) -> Tensor:
    """[R, W, Z] fresh noise of this turn."""
    assert ask.rows is not None
    return gaussian.keyed_normal(
        canvas.seed[ask.rows], canvas.step[ask.rows] + _LATER, ask.want.clamp(min=0), width
    ).float()


def written(canvas: Canvas, spec: Spec, asks: list[Forward], outs: list[Output], steps: int) -> Step:
    """Tokens predicted from vectors are drafts until the last step; decoded ones are final."""
    parts = []
    for ask, out in zip(asks, outs, strict=True):
        assert ask.rows is not None and ask.vectors is not None
        if ask.vectors.kind == "decode":
            parts.append(_open.write(ask, out, ask.want >= 0))
        elif continuous(spec).tokens:
            parts.append(_uniform.draft(ask, out, out.token, canvas.step[ask.rows] + 1 >= steps))
    return joined(parts)
