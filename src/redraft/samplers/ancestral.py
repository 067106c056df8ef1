"""Ancestral: the reverse of the noise process itself, on a grid of times."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.runtime import keyed_uniform
from redraft.samplers import _open
from redraft.types import FREE, Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class State:
    """The last turn each row has taken."""

    turn: Tensor  # [B] index k of the time t_k = 1 - k / steps; -1 at the start


@dataclass(frozen=True)
class Ancestral:
    """MDLM's sampler (Sahoo et al. 2024, arXiv:2406.07524): from t to s a free position is revealed with probability
    (alpha_s - alpha_t) / (1 - alpha_t), its token drawn from the model.

    What is revealed does not depend on the values, so it is decided first: turns that reveal nothing cost no pass,
    and only the revealed positions are predicted.
    """

    steps: int = 64
    eps: float = 0.0  # the grid runs from 1 to eps instead of 0, the last step to the end all the same (MDLM, Dream)

    exact = False  # several tokens a turn are drawn independently of each other
    retracts = False
    width = 1
    tries = {"steps": (8, 16, 32, 64)}
    positions = "noise"  # what decides where is written (see ``likelihood.under``)

    def start(self, canvas: Canvas, spec: Spec) -> State:
        _open.check_diffusion(spec)
        if self.steps < 1:
            raise UserError(f"steps = {self.steps} must be at least 1.")
        if not 0 <= self.eps < 1:
            raise UserError(f"eps = {self.eps} must lie in [0, 1).")
        return State(torch.full_like(canvas.step, -1))

    def _next(self, canvas: Canvas, spec: Spec, turn: Tensor) -> tuple[Tensor, Tensor]:
        """For every row that still has free positions, its next turn that reveals something, and what: [B], [B, L].

        What is free is read off the canvas each time: a constraint may have kept a token from landing.
        """
        assert spec.schedule is not None
        free = canvas.status == FREE
        reveal = torch.zeros_like(free)
        waiting = free.any(1)
        while bool(waiting.any()):
            turn = torch.where(waiting, turn + 1, turn)
            now, then = self._time(turn), self._time(turn + 1)
            before, after = spec.schedule.alpha(now), spec.schedule.alpha(then)
            chance = torch.where(turn + 1 >= self.steps, 1.0, (after - before) / (1 - before).clamp(min=1e-12))
            reveal |= (self.draws(canvas, turn) < chance[:, None]) & free & waiting[:, None]
            waiting &= ~reveal.any(1)
        return turn, reveal

    def draws(self, canvas: Canvas, turn: Tensor) -> Tensor:
        """[B, L] uniform numbers that decide what each row reveals at its ``turn`` [B]."""
        positions = torch.arange(canvas.ids.shape[1]).expand(len(turn), -1)
        return keyed_uniform(canvas.seed, turn + _open.ORDER_STREAM, positions)

    def _time(self, turn: Tensor) -> Tensor:
        return (1 - turn.double() * (1 - self.eps) / self.steps).clamp(min=0)

    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Forward]:
        turn, reveal = self._next(canvas, spec, state.turn)
        rows = reveal.any(1).nonzero()[:, 0]
        if not len(rows):
            return []
        t = self._time(turn[rows]).float() if spec.timed else None
        return [replace(_open.ask(canvas, spec, rows, reveal[rows], t), stamp=turn[rows])]

    def apply(
        self, canvas: Canvas, state: State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[State, Step]:
        ask = asks[0]
        assert ask.rows is not None and ask.stamp is not None
        turn = state.turn.clone()
        turn[ask.rows] = ask.stamp
        return State(turn), _open.write(ask, outs[0], ask.want >= 0)
