"""Position-calibrated: telling tokens before trivial ones, from the left if so wished."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.samplers import _open
from redraft.samplers.confidence import Confidence
from redraft.types import Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class State:
    """How common each token is."""

    log_common: Tensor  # [B, V] log-probabilities
    known: Tensor  # [B] bool: the row's stand


@dataclass(frozen=True)
class PositionCalibrated:
    """PC-Sampler (Huang et al. 2025, arXiv:2508.13021): at each of ``steps`` steps the k highest-scoring positions,

        score_i = exp(-decay (i - first)) min(cap, p(x_i) (-log f(x_i)))

    with p of the drawn token, f its share of ordinary text and ``first`` where the answer (or its block) begins. Plain
    confidence writes commas, articles and ends of text first, which say little and shut doors; rare tokens that the
    model is sure of carry more. ``decay`` > 0 leans to the left (the paper: 0 for puzzles, 0.25 to 0.5 for reasoning).

    ``frequencies`` names a JSON file of token counts, ``{"1034": 218, ...}``. Without one, f is what the model itself
    expects: the mean of its first predictions for the text. That is ours, not the paper's. ``block`` and the sharing
    out of steps as in ``Confidence``.
    """

    steps: int = 16
    decay: float = 0.25
    cap: float = 10.0
    frequencies: str = ""
    block: int = 0

    exact = False
    retracts = False
    width = 1
    tries = {"decay": (0.0, 0.25)}
    files = ("frequencies",)  # fields that name a file: a server takes them from its operator alone

    def start(self, canvas: Canvas, spec: Spec) -> State:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        _open.check_steps(self.steps, canvas, spec)
        if not 0 <= self.decay < math.inf:
            raise UserError(f"decay = {self.decay} must be a number of at least 0.")
        if not self.cap > 0:
            raise UserError(f"cap = {self.cap} must be above 0.")
        rows = len(canvas.ids)
        if not self.frequencies:
            return State(torch.zeros(rows, spec.vocab_size), torch.zeros(rows, dtype=torch.bool))
        common = _read(Path(self.frequencies), spec.vocab_size)
        return State(common.expand(rows, -1), torch.ones(rows, dtype=torch.bool))

    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[State, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None
        state = _learnt(state, ask, out)
        rare = -state.log_common[ask.rows].to(out.conf.device).gather(1, out.token.clamp(min=0))
        telling = (out.conf.exp() * rare).clamp(max=self.cap).double()
        first = canvas.prompt[ask.rows] if ask.active is None else ask.active[:, 0]
        lean = torch.exp(-self.decay * (ask.want - first[:, None]).clamp(min=0).double())
        score = (telling * lean).masked_fill(ask.want < 0, -torch.inf)
        count = Confidence(steps=self.steps, block=self.block).count(canvas, ask)
        return state, _open.write(ask, out, _open.best(score, count))


def _learnt(state: State, ask: Forward, out: Output) -> State:
    """Rows whose frequencies are not known take the mean of these predictions for them."""
    assert ask.rows is not None
    fresh = ~state.known[ask.rows]
    if not bool(fresh.any()):
        return state
    row = (ask.want >= 0).nonzero()[:, 0]
    p = out.log_p.float().exp().cpu()
    total = torch.zeros(len(ask.rows), p.shape[1]).index_add_(0, row, p)
    mean = (total / (ask.want >= 0).sum(1).clamp(min=1)[:, None]).clamp(min=1e-9).log()
    common, known = state.log_common.clone(), state.known.clone()
    common[ask.rows[fresh]], known[ask.rows] = mean[fresh], True
    return State(common, known)


def _read(path: Path, size: int) -> Tensor:
    """[V] log shares from counts; a token that is not counted counts as once."""
    try:
        counts = json.loads(path.read_text(encoding="utf-8"))
        found = torch.ones(size, dtype=torch.float64)
        for token, count in counts.items():
            found[int(token)] = max(1.0, float(count))
    except OSError as error:
        raise UserError(f"can't read frequencies '{path}': {error.strerror}.") from None
    except (ValueError, AttributeError, TypeError, IndexError):
        raise UserError(f"'{path}' holds no token counts.", 'Write {"token id": count, ...}.') from None
    return (found / found.sum()).log().float()
