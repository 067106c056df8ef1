"""Ancestral: the reverse of the masking process, on a grid of times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_STEPS
from redraft.options import setting
from redraft.runtime import keyed_uniform
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common
from redraft.types import FREE, Canvas, NoiseStream, Output, Request, Spec, Step

_CHUNK = 1 << 14  # uniform numbers that are computed at once


@dataclass(frozen=True)
class AncestralState:
    """The last grid step of each row."""

    grid_step: Tensor  # [B] index k of the time t_k = 1 - k (1 - eps) / steps; -1 at the start


@dataclass(frozen=True)
class Ancestral(Sampler):
    """MDLM's sampler (Sahoo et al. 2024, arXiv:2406.07524): from t to s a free position is revealed with probability
    (alpha_s - alpha_t) / (1 - alpha_t), and its token is sampled from the model.

    The choice of the positions does not depend on predictions, so it is made first. Grid steps that reveal nothing take
    no forward pass, and only the revealed positions are predicted.
    """

    steps: int = setting(64, "Number of denoising steps.", least=1, most=MAX_STEPS)
    eps: float = setting(0.0, "Time at which the grid ends; its last step writes all.", least=0, below=1)

    tries = {"steps": (8, 16, 32, 64)}
    order_by = "noise"

    def start(self, canvas: Canvas, spec: Spec) -> AncestralState:
        common.check_diffusion(spec)
        return AncestralState(torch.full_like(canvas.step, -1))

    def _next(self, canvas: Canvas, spec: Spec, grid_step: Tensor) -> tuple[Tensor, Tensor]:
        """[B] the next grid step that reveals positions, and [B, L] bool: these positions.

        Only rows with free positions advance. These are read from the canvas, because a constraint may drop changes.
        """
        free = canvas.status == FREE
        reveal, grid_step = torch.zeros_like(free), grid_step.clone()
        waiting, count = free.any(1), 1
        while bool(waiting.any()):  # most of many grid steps reveal nothing, so more and more of them are tried at once
            rows = waiting.nonzero()[:, 0]
            columns = free[rows].any(0).nonzero()[:, 0]
            steps = grid_step[rows, None] + 1 + torch.arange(count)
            uniform = self.uniforms(canvas, rows.repeat_interleave(count), steps.flatten(), columns)
            shown = uniform.view(len(rows), count, -1) < self._chance(spec, steps)[..., None]
            shown &= free[rows][:, None, columns]
            hit, first = shown.any(2).any(1), shown.any(2).to(torch.int8).argmax(1)
            grid_step[rows] += torch.where(hit, first + 1, count)
            found = hit.nonzero()[:, 0]
            reveal[rows[found, None], columns] = shown[found, first[found]]
            waiting[rows[found]] = False
            count = min(2 * count, max(1, _CHUNK // (len(rows) * len(columns))))
        return grid_step, reveal

    def _chance(self, spec: Spec, grid_step: Tensor) -> Tensor:
        """Probability that a free position is revealed at each of these grid steps, of any shape."""
        assert spec.family.schedule is not None
        alpha_t = spec.family.schedule.alpha(self._time(grid_step))
        alpha_s = spec.family.schedule.alpha(self._time(grid_step + 1))
        chance = (alpha_s - alpha_t) / (1 - alpha_t).clamp(min=1e-12)
        return torch.where(grid_step + 1 >= self.steps, 1.0, chance)

    def uniforms(self, canvas: Canvas, rows: Tensor, grid_step: Tensor, columns: Tensor) -> Tensor:
        """[S, N] uniform numbers: which ``columns`` [N] are revealed in ``rows`` [S] at ``grid_step`` [S]."""
        return keyed_uniform(canvas.seed[rows], grid_step + NoiseStream.ORDER, columns.expand(len(rows), -1))

    def _time(self, grid_step: Tensor) -> Tensor:
        return (1 - grid_step.double() * (1 - self.eps) / self.steps).clamp(min=0)

    def plan(self, canvas: Canvas, state: AncestralState, spec: Spec) -> list[Request]:
        grid_step, reveal = self._next(canvas, spec, state.grid_step)
        rows = reveal.any(1).nonzero()[:, 0]
        if not len(rows):
            return []
        t = self._time(grid_step[rows]).float() if spec.network.timed else None
        return [common.request(canvas, spec, rows, reveal[rows], t).with_drawing(noise_step=grid_step[rows])]

    def apply(
        self, canvas: Canvas, state: AncestralState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[AncestralState, Step]:
        request = requests[0]
        assert request.drawing.noise_step is not None
        grid_step = state.grid_step.clone()
        grid_step[request.rows] = request.drawing.noise_step
        return AncestralState(grid_step), common.write(request, outputs[0], request.targets >= 0)
