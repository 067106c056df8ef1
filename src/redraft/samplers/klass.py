"""KLASS: write what the model is sure of and has stopped changing its mind about."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.samplers import _open
from redraft.types import Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class State:
    """What was predicted last at each position, and for how many passes in a row it has hardly changed."""

    past: Tensor  # [B, L, V] log-probabilities; those of an allowed token only
    seen: Tensor  # [B, L] bool: ``past`` holds something
    calm: Tensor  # [B, L] passes


@dataclass(frozen=True)
class Klass:
    """KL-adaptive stability sampling (Kim et al. 2025, arXiv:2511.05664).

    A free position is written if its drawn token has p > ``threshold`` and its prediction has been stable,

        KL(p_now || p_before) < ``kl``,

    for ``history`` passes in a row. Where no position is, the ``least`` most certain ones are written. A confident
    prediction that still moves is the one that goes wrong when several are written at once; the price is that nothing
    is written in parallel before pass ``history`` + 1. ``block`` as in ``Confidence``.

    The state holds a distribution for each position: 4 V bytes, so 0.5 MB at a vocabulary of 128,000.
    """

    threshold: float = 0.9
    kl: float = 0.01  # nats
    history: int = 2
    least: int = 1
    block: int = 0

    exact = False
    retracts = False
    width = 1
    tries = {"threshold": (0.5, 0.7, 0.9), "kl": (0.01, 0.1), "history": (1, 2)}

    def start(self, canvas: Canvas, spec: Spec) -> State:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        _open.check_share("threshold", self.threshold)
        if not self.kl > 0:
            raise UserError(f"kl = {self.kl} must be above 0 nats.")
        for name in ("history", "least"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)} must be at least 1.")
        shape = canvas.ids.shape
        return State(torch.zeros(*shape, spec.vocab_size), torch.zeros(shape, dtype=torch.bool), torch.zeros(shape))

    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[State, Step]:
        ask, out = asks[0], outs[0]
        state = self._watch(state, ask, out)
        assert ask.rows is not None
        calm = state.calm[ask.rows].gather(1, ask.want.clamp(min=0)) >= self.history
        ready = calm & (out.conf > math.log(self.threshold))
        top = _open.best(out.conf, (ask.want >= 0).sum(1).clamp(max=self.least))
        return state, _open.write(ask, out, torch.where(ready.any(1, keepdim=True), ready, top))

    def _watch(self, state: State, ask: Forward, out: Output) -> State:
        """The state after one more look."""
        assert ask.rows is not None
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        at = ask.rows[row], ask.want[row, column]
        log_p = out.log_p.float()
        past = state.past.to(log_p.device)
        moved = _divergence(log_p, past[at]).cpu()
        still = state.seen[at] & (moved < self.kl)
        seen, calm = state.seen.clone(), state.calm.clone()  # ``past`` is too large to be copied at every pass
        past[at], seen[at], calm[at] = log_p, True, torch.where(still, calm[at] + 1, 0.0)
        return State(past, seen, calm)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[N] KL(p || q) in nats; tokens that p rules out add nothing."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
