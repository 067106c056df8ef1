"""ReMDM: the reverse of a noise process that may mask written tokens again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.options import setting
from redraft.runtime import keyed_uniform
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common
from redraft.types import DRAFT, FREE, SEALED, Canvas, NoiseStream, Output, Request, Spec, Step

_CHUNK = 1 << 14  # uniform numbers that are computed at once
_STRATEGIES = ("cap", "rescale", "conf", "loop", "forward_backward")


@dataclass(frozen=True)
class ReMDMState:
    """The grid step of each row, and the changes of its next pass."""

    grid_step: Tensor  # [B] index k of the time t_k = 1 - k / steps; ``steps``: the row is finished
    hide: Tensor  # [B, L] bool: written positions that grid steps without a pass have masked again
    reveal: Tensor  # [B, L] bool: positions that the next pass writes
    remask: Tensor  # [B, L] bool: positions that the next pass reads and that are masked after it
    conf: Tensor  # [B, L] log-probability of each token when it was written


@dataclass(frozen=True)
class ReMDM(Sampler):
    """Remasking samplers (Wang et al. 2025, arXiv:2503.00307): use more steps than tokens, to correct mistakes.

    From t to s a written position is masked again with probability sigma, and a masked one is written with probability

        (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t),   0 <= sigma <= sigma_max = min(1, (1 - alpha_s) / alpha_t)

    so that the share of masks at every time is the same as without remasking. ``strategy`` sets sigma:

    - cap: min(eta, sigma_max); rescale: eta sigma_max;
    - conf: sigma_max softmax(-p) over the written positions, with p a token's probability when it was written. About
      one position is masked per grid step, preferably an unconfident one (eta is not used);
    - loop: alpha rises to ``alpha_on`` by time ``t_on``, stays there until ``t_off`` with sigma = min(eta, sigma_max),
      then rises to 1; there is no remasking outside the loop;
    - forward_backward: (alpha_s - alpha_t) / alpha_t, at most sigma_max: the corrector of Campbell et al. 2022
      (arXiv:2205.14987) in this form (eta is not used).

    The paper uses eta 0.02 with loop if there are at least as many steps as tokens, else 0.04 with cap.

    The choice of the positions does not depend on predictions, so it is made first. Grid steps that write nothing take
    no forward pass, and only the written positions are predicted.
    """

    steps: int = setting(64, "Number of denoising steps.", least=1, most=4096)
    strategy: str = setting("cap", "How the probability of masking again is set.", choices=_STRATEGIES)
    eta: float = setting(0.04, "Largest probability of masking again.", least=0, most=1)
    t_on: float = setting(0.55, "Time at which the loop begins.", above=0, below=1)
    t_off: float = setting(0.05, "Time at which the loop ends.", above=0, below=1)
    alpha_on: float = setting(0.9, "Share of written positions in the loop.", above=0, below=1)

    retracts = True

    def start(self, canvas: Canvas, spec: Spec) -> ReMDMState:
        common.check_diffusion(spec)
        if self.t_off >= self.t_on:
            raise UserError(f"t_off = {self.t_off} must be below t_on = {self.t_on}.")
        none = torch.zeros_like(canvas.ids, dtype=torch.bool)
        first = ReMDMState(torch.zeros_like(canvas.step) - 1, none, none, none, torch.zeros(canvas.ids.shape))
        return self._advance(canvas.seed, canvas.status == FREE, none, spec, first)

    def _advance(self, seed: Tensor, masked: Tensor, written: Tensor, spec: Spec, state: ReMDMState) -> ReMDMState:
        """Advance each row to its next grid step that writes positions, or to the end."""
        grid_step, hide = state.grid_step.clone(), torch.zeros_like(masked)
        reveal, remask = torch.zeros_like(masked), torch.zeros_like(masked)
        waiting, count = (masked | written).any(1) & (grid_step < self.steps), 1
        while bool(waiting.any()):
            rows = waiting.nonzero()[:, 0]
            steps = grid_step[rows, None] + 1 + torch.arange(count)  # tried at once: most of many change nothing
            shown, hidden = self._changes(seed[rows], masked[rows], written[rows], spec, steps, state.conf[rows])
            last = steps + 1 >= self.steps
            found = (shown | hidden).any(2) | last
            taken = torch.where(found.any(1), found.to(torch.int8).argmax(1), count - 1)
            at = torch.arange(len(rows)), taken
            grid_step[rows], reveal[rows], remask[rows] = steps[at], shown[at], hidden[at]
            waiting[rows] = ~shown[at].any(1) & ~last[at]
            unseen = remask & waiting[:, None]  # this grid step takes no pass
            hide, masked, written = hide | unseen, masked | unseen, written & ~unseen
            count = min(2 * (int(taken.max()) + 1), max(1, _CHUNK // shown[:, 0].numel()))
        ended = ~reveal.any(1)
        grid_step = torch.where(ended, self.steps, grid_step)
        return ReMDMState(grid_step, hide, reveal, remask & ~ended[:, None], state.conf)

    def _changes(
        self, seed: Tensor, masked: Tensor, written: Tensor, spec: Spec, grid_step: Tensor, conf: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[R, S, L] bool: masked positions [R, L] that each grid step [R, S] writes, and written ones that it masks."""
        alpha_t, alpha_s = self._alpha(grid_step, spec), self._alpha(grid_step + 1, spec)
        last = (grid_step + 1 >= self.steps)[..., None]
        sigma = torch.where(last, 0.0, self._sigma(grid_step, alpha_t, alpha_s, written, conf))
        chance = (alpha_s[..., None] - (1 - sigma) * alpha_t[..., None]) / (1 - alpha_t).clamp(min=1e-12)[..., None]
        chance = torch.where(last, 1.0, chance)
        rows, count = grid_step.shape
        positions = torch.arange(masked.shape[1]).expand(rows * count, -1)
        keys = grid_step.flatten() + NoiseStream.ORDER
        uniform = keyed_uniform(seed.repeat_interleave(count), keys, positions).view(rows, count, -1)
        return masked[:, None] & (uniform < chance), written[:, None] & (uniform < sigma)

    def _alpha(self, grid_step: Tensor, spec: Spec) -> Tensor:
        """Probability that a token is unmasked at grid steps of any shape."""
        t = (1 - grid_step.double() / self.steps).clamp(min=0, max=1)
        if self.strategy != "loop":
            assert spec.family.schedule is not None
            return spec.family.schedule.alpha(t)
        rising = (1 - t) * self.alpha_on / (1 - self.t_on)
        ending = 1 - t * (1 - self.alpha_on) / self.t_off
        return torch.where(t > self.t_on, rising, torch.where(t > self.t_off, self.alpha_on, ending))

    def _sigma(self, grid_step: Tensor, alpha_t: Tensor, alpha_s: Tensor, written: Tensor, conf: Tensor) -> Tensor:
        """Probability that a position of ``written`` [R, L] is masked again at each grid step [R, S]: [R, S, L], or
        [R, S, 1] if it is the same for all positions."""
        most = ((1 - alpha_s) / alpha_t.clamp(min=1e-12)).clamp(max=1)[..., None]
        if self.strategy == "cap":
            return most.clamp(max=self.eta)
        if self.strategy == "rescale":
            return most * self.eta
        if self.strategy == "forward_backward":
            return torch.minimum(((alpha_s - alpha_t) / alpha_t.clamp(min=1e-12))[..., None], most)
        if self.strategy == "conf":
            doubt = (-conf.double().exp()).masked_fill(~written, -torch.inf)
            return most * doubt.softmax(1).nan_to_num()[:, None]
        t = 1 - grid_step.double() / self.steps
        return torch.where(((t <= self.t_on) & (t > self.t_off))[..., None], most.clamp(max=self.eta), 0.0)

    def plan(self, canvas: Canvas, state: ReMDMState, spec: Spec) -> list[Request]:
        free = canvas.status == FREE
        # Positions are free at the end only if a constraint dropped their tokens.
        reveal = torch.where((state.grid_step >= self.steps)[:, None], free, state.reveal & (free | state.hide))
        rows = reveal.any(1).nonzero()[:, 0]
        if not len(rows):
            return []
        alpha = self._alpha(state.grid_step[rows], spec)
        t = common.time_of_share(spec, 1 - alpha).float() if spec.network.timed else None
        request = common.request(canvas, spec, rows, reveal[rows], t)
        tokens = request.tokens.masked_fill(state.hide[rows, : request.tokens.shape[1]], spec.tokens.mask_id)
        return [replace(request, tokens=tokens).with_drawing(noise_step=state.grid_step[rows])]

    def apply(
        self, canvas: Canvas, state: ReMDMState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[ReMDMState, Step]:
        request, out = requests[0], outputs[0]
        rows, real = request.rows, request.targets >= 0
        at = rows[real.nonzero(as_tuple=True)[0]], request.targets[real]
        token, conf = canvas.ids.clone(), state.conf.clone()
        token[at], conf[at] = out.token[real], out.conf[real]
        fresh = torch.zeros_like(state.hide)
        fresh[at] = True
        remasked = (state.hide & ~fresh) | state.remask
        masked = ((canvas.status == FREE) & ~fresh) | remasked
        written = ((canvas.status == DRAFT) | fresh) & ~remasked
        state = self._advance(canvas.seed, masked, written, spec, replace(state, conf=conf))
        sealed = written & (state.grid_step >= self.steps)[:, None]
        row, pos = (fresh | remasked | sealed).nonzero(as_tuple=True)
        token = torch.where(remasked, spec.tokens.mask_id, token)
        status = torch.where(remasked, FREE, torch.where(sealed, SEALED, DRAFT))
        return state, Step(row, pos, token[row, pos], status[row, pos], conf[row, pos])
