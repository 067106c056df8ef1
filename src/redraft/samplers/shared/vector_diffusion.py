"""Samplers of continuous diffusion: the state contains the vectors, and tokens are written at the end."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.canvas import extent, joined
from redraft.errors import UserError
from redraft.noise import gaussian
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common, uniform_noise
from redraft.types import (
    GIVEN,
    CacheHint,
    Canvas,
    Continuous,
    Drawing,
    NoiseStream,
    Output,
    Request,
    Spec,
    Step,
    VectorQuery,
)

_INITIAL, _LATER = NoiseStream.INITIAL_VECTORS, NoiseStream.LATER_VECTORS


@dataclass
class VectorState:
    """Vectors of all rows by position: that of a token, or prompt length + k for the k-th vector."""

    z: Tensor  # [B, C, Z]
    clean: Tensor  # [B, C, Z] the last prediction


class VectorSampler(Sampler):
    """A sampler that predicts all vectors in each of ``steps`` passes, and computes the next vectors in ``advance``."""

    steps: int
    slice: int  # latent models: decoded tokens of each row per pass

    retracts = True

    def start(self, canvas: Canvas, spec: Spec) -> VectorState:
        return start(canvas, spec)

    def plan(self, canvas: Canvas, state: VectorState, spec: Spec) -> list[Request]:
        return plan(canvas, state, spec, self.steps, self.slice)

    def apply(
        self, canvas: Canvas, state: VectorState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[VectorState, Step]:
        for request, out in zip(requests, outputs, strict=True):
            query = request.find(VectorQuery)
            if query is not None and query.kind == "predict":
                new, clean = self.advance(canvas, state, spec, request, out)
                state = moved(state, request, new, clean)
        return state, step_of(canvas, spec, requests, outputs, self.steps)

    @abstractmethod
    def advance(
        self, canvas: Canvas, state: VectorState, spec: Spec, request: Request, out: Output
    ) -> tuple[Tensor, Tensor]:
        """The vectors after the step and the predicted clean ones, [R, W, Z] each."""


def start(canvas: Canvas, spec: Spec) -> VectorState:
    """Vectors of pure noise.

    Raises:
        UserError: the model is of another kind, or the answer contains given text although each vector stands for
            several tokens.
    """
    facts = continuous(spec)
    if facts.ratio > 1:
        given = canvas.status == GIVEN
        column = torch.arange(canvas.ids.shape[1])
        final_eos = (canvas.ids == spec.tokens.eos_id) & (column == extent(canvas)[:, None] - 1)
        if bool((given & (column >= canvas.prompt[:, None]) & ~final_eos).any()):
            raise UserError(
                "A latent model can't keep given tokens in an answer, because each vector stands for several tokens.",
                "Use a masked model to infill or edit, or one of family 'embedding'.",
            )
    width = canvas.ids.shape[1] if facts.ratio == 1 else int((canvas.prompt + vector_counts(canvas, facts)).max())
    positions = torch.arange(width).expand(len(canvas.ids), -1)
    z = gaussian.keyed_normal(canvas.seed, torch.full_like(canvas.seed, _INITIAL), positions, facts.width).float()
    return VectorState(z, torch.zeros_like(z))


def continuous(spec: Spec) -> Continuous:
    """The facts about continuous diffusion. Raises UserError if the model has none."""
    if spec.family.continuous is None:
        raise UserError(
            "This sampler is for diffusion of vectors, which this model does not use.",
            "Use it with a model of family 'latent' or 'embedding'.",
        )
    return spec.family.continuous


def vector_counts(canvas: Canvas, facts: Continuous) -> Tensor:
    """[B] number of vectors of each row's answer."""
    return -(-(extent(canvas) - canvas.prompt).clamp(min=0) // facts.ratio)


def log_snr(spec: Spec, step: Tensor, steps: int) -> Tensor:
    """[R] float64 log-SNR at each row's ``step`` [R]: times t = 1, 1 - 1/steps ... 0 of the schedule."""
    return gaussian.log_snr(spec, (1 - step.double() / steps).clamp(min=0))


def plan(canvas: Canvas, state: VectorState, spec: Spec, steps: int, slice: int) -> list[Request]:
    """Predictions of all vectors for ``steps`` passes. Then, if vectors are not tokens, their tokens slice by slice."""
    facts = continuous(spec)
    rows = canvas.open.any(1).nonzero()[:, 0]
    if not len(rows):
        return []
    # If vectors are tokens, positions are open after the last step only because a constraint dropped their tokens. They
    # are predicted again.
    decodes = (canvas.step[rows] >= steps) & (not facts.tokens)
    return [
        request
        for chosen, make in ((rows[~decodes], _predict), (rows[decodes], _decode))
        if len(chosen)
        for request in make(canvas, state, spec, facts, chosen, steps, slice)
    ]


def _predict(
    canvas: Canvas, state: VectorState, spec: Spec, facts: Continuous, rows: Tensor, steps: int, slice: int
) -> list[Request]:
    level = gaussian.level(spec, log_snr(spec, canvas.step[rows], steps)).float()
    first = (canvas.step[rows] == 0)[:, None, None]
    if facts.ratio == 1:
        open_ = canvas.open[rows]
        request = common.request(canvas, spec, rows, open_, level)
        width = request.tokens.shape[1]
        noisy = open_[:, :width]
    else:
        request = _request(canvas, spec, facts, rows)
        request.time = level
        width = request.tokens.shape[1]
        noisy = request.positions >= canvas.prompt[rows, None]
    previous = torch.where(first, 0.0, state.clean[rows, :width])
    return [request.with_extra(VectorQuery("predict", state.z[rows, :width], noisy, previous))]


def _request(canvas: Canvas, spec: Spec, facts: Continuous, rows: Tensor) -> Request:
    """A request with the prompts of ``rows`` [R] and a position for each of their vectors; these are the targets."""
    prompt, count = canvas.prompt[rows], vector_counts(canvas, facts)[rows]
    column, number = torch.arange(int((prompt + count).max())), torch.arange(int(count.max()))
    ids = torch.nn.functional.pad(canvas.ids[rows], (0, max(0, len(column) - canvas.ids.shape[1])))[:, : len(column)]
    return Request(
        tokens=torch.where(column < prompt[:, None], ids, spec.tokens.mask_id),
        positions=torch.where(column < (prompt + count)[:, None], column, -1),
        targets=torch.where(number < count[:, None], prompt[:, None] + number, -1),
        attention=spec.network.attention,
        prompt=prompt,
        drawing=Drawing(rows),
        cache=CacheHint(active_region=torch.stack([prompt, prompt + count], 1)),
    )


def _decode(
    canvas: Canvas, state: VectorState, spec: Spec, facts: Continuous, rows: Tensor, steps: int, slice: int
) -> list[Request]:
    request = _request(canvas, spec, facts, rows)
    open_ = canvas.open[rows]
    chosen = open_ & (open_.cumsum(1) <= slice)
    request.targets = common.marked_positions(chosen)
    noisy = request.positions >= canvas.prompt[rows, None]
    return [request.with_extra(VectorQuery("decode", state.clean[rows, : request.tokens.shape[1]], noisy))]


def predicted(request: Request, out: Output, spec: Spec, log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """The noisy vectors and the predicted clean ones, [R, W, Z] each; zero where there is no target."""
    query = request.find(VectorQuery)
    assert query is not None and query.vectors is not None and out.vector is not None
    real = request.targets >= 0
    index = request.targets.clamp(min=0)[..., None].expand(-1, -1, query.vectors.shape[2])
    z = query.vectors.gather(1, index)
    predictions = torch.zeros_like(z)
    predictions[real] = out.vector.to(z)
    clean = predictions if continuous(spec).tokens else gaussian.clean_of(predictions, z, log_snr.to(z)[:, None])
    return z, clean * real[..., None]


def moved(state: VectorState, request: Request, z: Tensor, clean: Tensor) -> VectorState:
    """The state with new vectors [R, W, Z] at the targets."""
    row, column = (request.targets >= 0).nonzero(as_tuple=True)
    at = request.rows[row], request.targets[row, column]
    new = VectorState(state.z.clone(), state.clean.clone())
    new.z[at], new.clean[at] = z[row, column], clean[row, column]
    return new


def noise(canvas: Canvas, request: Request, width: int) -> Tensor:
    """[R, W, Z] new noise of this step."""
    return gaussian.keyed_normal(
        canvas.seed[request.rows], canvas.step[request.rows] + _LATER, request.targets.clamp(min=0), width
    ).float()


def step_of(canvas: Canvas, spec: Spec, requests: list[Request], outputs: list[Output], steps: int) -> Step:
    """The step that writes the sampled tokens: predicted ones are drafts until the last step, decoded ones final."""
    parts = []
    for request, out in zip(requests, outputs, strict=True):
        query = request.find(VectorQuery)
        if query is not None and query.kind == "decode":
            parts.append(common.write(request, out, request.targets >= 0))
        elif continuous(spec).tokens:
            parts.append(uniform_noise.draft(request, out, out.token, canvas.step[request.rows] + 1 >= steps))
    return joined(parts)
