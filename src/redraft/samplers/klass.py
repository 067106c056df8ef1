"""KLASS: write positions whose predictions are confident and stable between passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_POSITIONS, MAX_SCALE
from redraft.options import setting
from redraft.runtime import upload
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class KlassState:
    """The last prediction at each position, and the number of passes for which it has been stable."""

    past: Tensor | None  # [B, L, V] log-probabilities, on the device; those of an allowed token only. None: zeros
    seen: Tensor  # [B, L] bool: ``past`` has a prediction
    stable: Tensor  # [B, L] number of consecutive passes with a stable prediction


@dataclass(frozen=True)
class Klass(Sampler):
    """KL-adaptive stability sampling (Kim et al. 2025, arXiv:2511.05664).

    A free position is written if its sampled token has p > ``threshold`` and its prediction has been stable,

        KL(p_now || p_before) < ``kl``,

    for ``history`` consecutive passes. If no position satisfies this, the ``least`` most confident ones are written.
    Confident predictions that still change are those that are often wrong when several positions are written at once.
    The cost is that nothing is written in parallel before pass ``history`` + 1. ``block`` as in ``Confidence``.

    The state has a distribution for each position: 4 V bytes, which is 0.5 MB with a vocabulary of 128,000.
    """

    threshold: float = setting(0.9, "Confidence above which a position is written.", above=0, most=1)
    kl: float = setting(
        0.01, "Divergence between passes below which a prediction is stable.", above=0, most=MAX_SCALE, unit="nats"
    )
    history: int = setting(2, "Number of stable passes that a position needs.", least=1, most=1000, unit="passes")
    least: int = setting(
        1, "Positions that are written if none is stable.", least=1, most=MAX_POSITIONS, unit="positions"
    )
    block: int = block_option()

    tries = {"threshold": (0.5, 0.7, 0.9), "kl": (0.01, 0.1), "history": (1, 2)}

    def start(self, canvas: Canvas, spec: Spec) -> KlassState:
        common.check_diffusion(spec)
        shape = canvas.ids.shape
        return KlassState(None, torch.zeros(shape, dtype=torch.bool), torch.zeros(shape))

    def plan(self, canvas: Canvas, state: KlassState, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: KlassState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[KlassState, Step]:
        request, out = requests[0], outputs[0]
        state = self._updated(state, request, out, canvas.ids.shape[1])
        stable = state.stable[request.rows].gather(1, request.targets.clamp(min=0)) >= self.history
        ready = stable & (out.conf > math.log(self.threshold))
        best = common.best(out.conf, (request.targets >= 0).sum(1).clamp(max=self.least))
        return state, common.write(request, out, torch.where(ready.any(1, keepdim=True), ready, best))

    def _updated(self, state: KlassState, request: Request, out: Output, length: int) -> KlassState:
        """The state after one more prediction."""
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        at = request.rows[row], request.targets[row, column]
        log_p = out.log_p.float()
        past = state.past
        if past is None:
            past = log_p.new_zeros(len(state.seen), length, log_p.shape[1])
        place = tuple(upload(torch.stack(at), log_p.device))
        divergence = _divergence(log_p, past[place]).cpu()
        is_stable = state.seen[at] & (divergence < self.kl)
        seen, stable = state.seen.clone(), state.stable.clone()  # ``past`` is too large to copy at every pass
        past[place], seen[at], stable[at] = log_p, True, torch.where(is_stable, stable[at] + 1, 0.0)
        return KlassState(past, seen, stable)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """[N] KL(p || q) in nats of log-probabilities [N, V]; tokens with p = 0 add nothing."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
