"""Renoising: denoise a block after causal text; tokens that are not accepted become noise again at every pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.limits import MAX_POSITIONS, MAX_SCALE, MAX_STEPS
from redraft.options import setting
from redraft.runtime import upload
from redraft.samplers.base import Sampler
from redraft.samplers.causal_blocks import draft
from redraft.samplers.shared import common, ranking, uniform_noise
from redraft.types import DRAFT, SEALED, Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class RenoisingState:
    """The active block of each row."""

    begin: Tensor  # [B] its first position; -1: none yet
    passes: Tensor  # [B] passes over it
    likeliest: Tensor  # [B, S, L] the likeliest tokens of the last S passes; -1: none


@dataclass(frozen=True)
class Renoising(Sampler):
    """The decoding of DiffusionGemma, for models that denoise blocks after causal text (family hybrid, uniform noise).

    Blocks of ``block`` positions are counted from the end of the prompt, and begin as random tokens. Pass n = N ... 1
    of N = ``steps`` predicts all positions of the block at the temperature t_min + (t_max - t_min) n / N and draws a
    token for each. Sorted by their entropies H, the first positions are accepted, as many as

        sum_{j <= k} H_j - max_{j <= k} H_j <= bound

    allows (the bound of ``entropy_bound``, arXiv:2505.24857). Accepted positions hold their drawn tokens in the next
    pass, all others new random ones. Acceptance is decided anew at every pass, and any token may change. A block is
    final after N passes, or when its likeliest tokens are those of the last ``stable`` passes and the mean entropy is
    below ``sure``. What is written are the likeliest tokens of its last pass.

    The temperature of the settings is a factor of the schedule; with 0 the likeliest tokens are drawn.
    """

    steps: int = setting(48, "Most passes over a block.", least=1, most=MAX_STEPS)
    block: int = setting(32, "Positions of a block.", least=1, most=MAX_POSITIONS, unit="positions")
    bound: float = setting(0.1, "Bound on the dependence of accepted tokens.", least=0, most=MAX_SCALE, unit="nats")
    t_min: float = setting(0.4, "Temperature after the last pass.", least=0, most=100)
    t_max: float = setting(0.8, "Temperature before the first pass.", above=0, most=100)
    stable: int = setting(1, "Passes whose likeliest tokens must be the same.", least=0, most=100, unit="passes")
    sure: float = setting(0.005, "Mean entropy below which a block is final.", least=0, most=MAX_SCALE, unit="nats")

    retracts = True
    tries = {"steps": (8, 16, 32, 48), "bound": (0.1, 0.5, 2.0)}

    def start(self, canvas: Canvas, spec: Spec) -> RenoisingState:
        drafter = spec.family.drafter
        own = drafter is not None and drafter.network.name == spec.network.name and not drafter.network.reads_target
        if drafter is None or not own or drafter.masks:
            raise UserError(
                "This sampler needs a diffusion model that denoises blocks of random tokens after causal text.",
                "Use a model of family hybrid with the process uniform, such as DiffusionGemma.",
            )
        if self.t_min > self.t_max:
            raise UserError(f"t_min = {self.t_min} is above t_max = {self.t_max}.", "Lower t_min.")
        none = torch.full((len(canvas.ids), self.stable, canvas.ids.shape[1]), -1)
        return RenoisingState(torch.full_like(canvas.step, -1), torch.zeros_like(canvas.step), none)

    def plan(self, canvas: Canvas, state: RenoisingState, spec: Spec) -> list[Request]:
        open_, begin, passes = self._current(canvas, state, spec)
        rows, end = open_.any(1).nonzero()[:, 0], begin + self.block
        if not len(rows):
            return []
        wanted = open_ & (torch.arange(open_.shape[1]) < end[:, None])
        left = (self.steps - passes[rows]).clamp(min=1).double() / self.steps
        request = draft(canvas, spec, rows, begin, end, wanted)
        return [request.with_drawing(heat=self.t_min + (self.t_max - self.t_min) * left)]

    def apply(
        self, canvas: Canvas, state: RenoisingState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[RenoisingState, Step]:
        request, out = requests[0], outputs[0]
        rows, real = request.rows, request.targets >= 0
        drawn, random = self.proposed(canvas, request, out, spec)
        other = upload(random[real], out.log_p.device)[:, None]
        parts = [ranking.entropy_of(part) for part in common.heated(canvas, request, out.log_p)]
        top, best = out.log_p.max(-1)
        entropy, likeliest, top, noise = common.rectangles(  # the host waits once
            request, (torch.cat(parts), torch.inf), (best, -1), (top, 0.0), (out.log_p.gather(1, other)[:, 0], 0.0)
        )
        _, begin, passes = self._current(canvas, state, spec)
        passes[rows] += 1
        before = state.likeliest[rows].gather(2, request.targets.clamp(min=0)[:, None].expand(-1, self.stable, -1))
        same = ((before == likeliest[:, None]) | ~real[:, None]).all(2).all(1)
        mean = torch.where(real, entropy, 0.0).sum(1) / real.sum(1)
        last = (passes[rows] >= self.steps) | (same & (mean < self.sure))
        kept, final = self.accepted(entropy), last[:, None]
        token = torch.where(final, likeliest, torch.where(kept, drawn, random))
        conf = torch.where(final, top, torch.where(kept, out.conf, noise))
        row, column = real.nonzero(as_tuple=True)
        status = torch.where(last, SEALED, DRAFT)[row]
        step = Step(rows[row], request.targets[row, column], token[row, column], status, conf[row, column])
        return RenoisingState(begin, passes, _pushed(state.likeliest, request, likeliest)), step

    def accepted(self, entropy: Tensor) -> Tensor:
        """[R, W] bool: positions whose drawn tokens are kept, from entropies [R, W]; infinite: there is no target."""
        ordered, order = entropy.double().sort(dim=1, stable=True)
        within = ordered.cumsum(1) - ordered <= self.bound  # not a number where there is no target
        return torch.zeros_like(within).scatter(1, order, within)

    def proposed(self, canvas: Canvas, request: Request, out: Output, spec: Spec) -> tuple[Tensor, Tensor]:
        """The tokens for accepted and for other positions, [R, W] each: drawn ones, and random ones."""
        assert spec.family.drafter is not None
        return out.token, uniform_noise.random_ids(canvas, request, spec.family.drafter)

    def _current(self, canvas: Canvas, state: RenoisingState, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
        """[B, L] open positions, [B] the first position of the active block, and [B] passes over it so far."""
        open_ = canvas.open & ~common.after_end(canvas, spec)
        columns = torch.arange(open_.shape[1])
        first = torch.where(open_, columns, len(columns)).amin(1)
        begin = canvas.prompt + (first - canvas.prompt).div(self.block, rounding_mode="floor") * self.block
        return open_, begin, torch.where(begin == state.begin, state.passes, 0)


def _pushed(history: Tensor, request: Request, likeliest: Tensor) -> Tensor:
    """The history [B, S, L] with the likeliest tokens [R, W] of a pass as its last entry."""
    if not history.shape[1]:
        return history
    row, column = (request.targets >= 0).nonzero(as_tuple=True)
    newest = torch.full_like(history[request.rows, -1], -1)
    newest[row, request.targets[row, column]] = likeliest[row, column]
    history = history.clone()
    history[request.rows] = torch.cat([history[request.rows, 1:], newest[:, None]], 1)
    return history
