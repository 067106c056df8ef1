"""Credit: what has been the favourite for several passes needs less certainty to be written."""

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
    """Credit of every token at every position."""

    credit: Tensor  # [B, L, V]


@dataclass(frozen=True)
class Credit:
    """CreditDecoding (2025, arXiv:2510.06133; dInfer, arXiv:2510.08666).

    At each pass every token's credit decays, and the likeliest token v* of a position earns some:

        C_v <- decay C_v + [v = v*] p_v^gain,        p' = softmax(log p_v + strength log(1 + C_v))

    All positions with p'(x) > ``threshold`` are written, and the most certain one in any case. A model often knows a
    token several passes before it is sure of it; ``gain`` below 1 lets such early guesses count nearly as much as
    certain ones. At temperature 0 the likeliest token under p' is written; a drawn token stays as it was drawn, and
    p' judges it. ``block`` as in ``Confidence``. The state takes 4 V bytes a position.
    """

    threshold: float = 0.9
    strength: float = 0.7
    decay: float = 0.8
    gain: float = 0.2
    block: int = 0

    exact = False
    retracts = False
    width = 1
    tries = {"threshold": (0.5, 0.7, 0.9), "strength": (0.35, 0.7, 1.4)}

    def start(self, canvas: Canvas, spec: Spec) -> State:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        for name in ("threshold", "gain"):
            _open.check_share(name, getattr(self, name))
        if not 0 <= self.decay < 1:
            raise UserError(f"decay = {self.decay} must lie in [0, 1).")
        if not 0 <= self.strength < math.inf:
            raise UserError(f"strength = {self.strength} must be a number of at least 0.")
        return State(torch.zeros(*canvas.ids.shape, spec.vocab_size))

    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[State, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        at = ask.rows[row], ask.want[row, column]
        log_p = out.log_p.float()
        everywhere = state.credit.to(log_p.device)  # too large to be copied at every pass
        peak, favourite = log_p.max(-1)
        credit = self.decay * everywhere[at]
        credit[torch.arange(len(favourite)), favourite] += (self.gain * peak).exp()
        everywhere[at] = credit
        raised = (log_p + self.strength * torch.log1p(credit)).log_softmax(-1)
        cold = canvas.draw.temperature[ask.rows][row] == 0
        token = torch.where(cold.to(log_p.device), raised.argmax(-1), out.token[row, column].to(log_p.device))
        seen = [values.gather(1, token[:, None])[:, 0] for values in (raised, log_p)]
        sure = _open.rectangle(seen[0], ask, -torch.inf)
        told = Output(
            out.log_p,
            _open.rectangle(token, ask, -1),
            _open.rectangle(seen[1].to(out.conf.dtype), ask, -torch.inf),
        )
        top = _open.best(sure, (ask.want >= 0).any(1).long())
        return State(everywhere), _open.write(ask, told, (sure > math.log(self.threshold)) | top)
