"""ReMDM: the reverse of a noise process that may mask again what it has written."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import UserError, suggest
from redraft.runtime import keyed_uniform
from redraft.samplers import _open
from redraft.types import DRAFT, FREE, SEALED, Canvas, Forward, Output, Spec, Step

_STRATEGIES = ("cap", "rescale", "conf", "loop", "forward_backward")


@dataclass(frozen=True)
class State:
    """Where each row stands on the grid of times, and what its next pass does."""

    turn: Tensor  # [B] index k of the time t_k = 1 - k / steps; steps: nothing is left to do
    hide: Tensor  # [B, L] bool: written positions that turns without a pass have masked again
    reveal: Tensor  # [B, L] bool: written by the next pass
    back: Tensor  # [B, L] bool: seen by the next pass, masked again after it
    conf: Tensor  # [B, L] log-probability of each position's token when it was written


@dataclass(frozen=True)
class ReMDM:
    """Remasking samplers (Wang et al. 2025, arXiv:2503.00307): more steps than tokens are used, to mend mistakes.

    From t to s a written position is masked again with probability sigma, and a masked one is written with probability

        (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t),   0 <= sigma <= sigma_max = min(1, (1 - alpha_s) / alpha_t)

    which leaves the share of masks at every time as it is without remasking. ``strategy`` sets sigma:

    - cap: min(eta, sigma_max); rescale: eta sigma_max;
    - conf: sigma_max softmax(-p), over the written positions, of the probability each had when it was written: about
      one position a turn goes, rather a doubtful one (eta plays no part);
    - loop: alpha rises to ``alpha_on`` by time ``t_on``, stays there until ``t_off`` with sigma = min(eta, sigma_max),
      then rises to 1; without remasking outside of the loop;
    - forward_backward: (alpha_s - alpha_t) / alpha_t, at most sigma_max: the corrector of Campbell et al. 2022
      (arXiv:2205.14987), in this form (eta plays no part).

    The paper takes eta 0.02 with loop where there are as many steps as tokens or more, 0.04 with cap where fewer.

    What happens in a turn does not depend on predictions, so it is decided first: turns that write nothing cost no
    pass, and only what is written is predicted.
    """

    steps: int = 64
    strategy: str = "cap"
    eta: float = 0.04
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    exact = False
    retracts = True
    width = 1

    def start(self, canvas: Canvas, spec: Spec) -> State:
        _open.check_diffusion(spec)
        if self.steps < 1:
            raise UserError(f"steps = {self.steps} must be at least 1.")
        if self.strategy not in _STRATEGIES:
            raise UserError(f"unknown strategy '{self.strategy}'.", suggest(self.strategy, _STRATEGIES))
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta = {self.eta} must lie in [0, 1].")
        if not 0 < self.t_off < self.t_on < 1:
            raise UserError(f"t_off = {self.t_off} and t_on = {self.t_on} must be 0 < t_off < t_on < 1.")
        if not 0 < self.alpha_on < 1:
            raise UserError(f"alpha_on = {self.alpha_on} must lie in (0, 1).")
        nothing = torch.zeros_like(canvas.ids, dtype=torch.bool)
        first = State(torch.zeros_like(canvas.step) - 1, nothing, nothing, nothing, torch.zeros(canvas.ids.shape))
        return self._advance(canvas.seed, canvas.status == FREE, nothing, spec, first)

    def _advance(self, seed: Tensor, masked: Tensor, written: Tensor, spec: Spec, state: State) -> State:
        """Move each row on to its next turn that writes something, or to the end."""
        turn, hide = state.turn.clone(), torch.zeros_like(masked)
        reveal, back = torch.zeros_like(masked), torch.zeros_like(masked)
        positions = torch.arange(masked.shape[1]).expand(masked.shape)
        waiting = (masked | written).any(1) & (turn < self.steps)
        while bool(waiting.any()):
            turn = torch.where(waiting, turn + 1, turn)
            before, after = self._alpha(turn, spec), self._alpha(turn + 1, spec)
            last = turn + 1 >= self.steps
            sigma = self._sigma(turn, before, after, written, state.conf)
            sigma = torch.where(last[:, None], 0.0, sigma)
            chance = (after[:, None] - (1 - sigma) * before[:, None]) / (1 - before).clamp(min=1e-12)[:, None]
            chance = torch.where(last[:, None], 1.0, chance)
            drawn = keyed_uniform(seed, turn + _open.ORDER_STREAM, positions)
            on = waiting[:, None]
            reveal = torch.where(on, masked & (drawn < chance), reveal)
            back = torch.where(on, written & (drawn < sigma), back)
            waiting = waiting & ~reveal.any(1) & ~last
            again = back & waiting[:, None]  # a turn without a pass
            hide, masked, written = hide | again, masked | again, written & ~again
        ended = ~reveal.any(1)
        turn = torch.where(ended, self.steps, turn)
        return State(turn, hide, reveal, back & ~ended[:, None], state.conf)

    def _alpha(self, turn: Tensor, spec: Spec) -> Tensor:
        """[B] the chance that a token is written at the beginning of a turn."""
        t = (1 - turn.double() / self.steps).clamp(min=0, max=1)
        if self.strategy != "loop":
            assert spec.schedule is not None
            return spec.schedule.alpha(t)
        rising = (1 - t) * self.alpha_on / (1 - self.t_on)
        ending = 1 - t * (1 - self.alpha_on) / self.t_off
        return torch.where(t > self.t_on, rising, torch.where(t > self.t_off, self.alpha_on, ending))

    def _sigma(self, turn: Tensor, before: Tensor, after: Tensor, written: Tensor, conf: Tensor) -> Tensor:
        """[B, L] chance that a written position is masked again, or [B, 1] where it is the same for all."""
        most = ((1 - after) / before.clamp(min=1e-12)).clamp(max=1)[:, None]
        if self.strategy == "cap":
            return most.clamp(max=self.eta)
        if self.strategy == "rescale":
            return most * self.eta
        if self.strategy == "forward_backward":
            return torch.minimum(((after - before) / before.clamp(min=1e-12))[:, None], most)
        if self.strategy == "conf":
            doubt = (-conf.double().exp()).masked_fill(~written, -torch.inf)
            return most * doubt.softmax(1).nan_to_num()
        t = 1 - turn.double() / self.steps
        return torch.where(((t <= self.t_on) & (t > self.t_off))[:, None], most.clamp(max=self.eta), 0.0)

    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Forward]:
        free = canvas.status == FREE
        # Free at the end: what something kept from being written before.
        reveal = torch.where((state.turn >= self.steps)[:, None], free, state.reveal & (free | state.hide))
        rows = reveal.any(1).nonzero()[:, 0]
        if not len(rows):
            return []
        alpha = self._alpha(state.turn[rows], spec)
        t = _open.time_of_share(spec, 1 - alpha).float() if spec.timed else None
        ask = _open.ask(canvas, spec, rows, reveal[rows], t)
        x = ask.x.masked_fill(state.hide[rows, : ask.x.shape[1]], spec.mask_id)
        return [replace(ask, x=x, stamp=state.turn[rows])]

    def apply(
        self, canvas: Canvas, state: State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[State, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None
        rows, real = ask.rows, ask.want >= 0
        at = rows[real.nonzero(as_tuple=True)[0]], ask.want[real]
        token, conf = canvas.ids.clone(), state.conf.clone()
        token[at], conf[at] = out.token[real], out.conf[real]
        fresh = torch.zeros_like(state.hide)
        fresh[at] = True
        gone = (state.hide & ~fresh) | state.back
        masked = ((canvas.status == FREE) & ~fresh) | gone
        written = ((canvas.status == DRAFT) | fresh) & ~gone
        state = self._advance(canvas.seed, masked, written, spec, replace(state, conf=conf))
        sealed = written & (state.turn >= self.steps)[:, None]
        row, pos = (fresh | gone | sealed).nonzero(as_tuple=True)
        token = torch.where(gone, spec.mask_id, token)
        status = torch.where(gone, FREE, torch.where(sealed, SEALED, DRAFT))
        return state, Step(row, pos, token[row, pos], status[row, pos], conf[row, pos])
