"""Position-calibrated: write informative tokens before common ones, optionally from left to right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.limits import MAX_SCALE, MAX_STEPS
from redraft.options import setting
from redraft.runtime import upload
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.confidence import Confidence
from redraft.samplers.shared import common
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class PositionCalibratedState:
    """Token frequencies for each row."""

    log_frequency: Tensor | None  # [B, V] log-probabilities, on the device; None: no row has any
    known: Tensor  # [B] bool: the row has frequencies


@dataclass(frozen=True)
class PositionCalibrated(Sampler):
    """PC-Sampler (Huang et al. 2025, arXiv:2508.13021): at each of ``steps`` steps the k highest-scoring positions,

        score_i = exp(-decay (i - first)) min(cap, p(x_i) (-log f(x_i)))

    where p is the probability of the sampled token, f its frequency in ordinary text, and ``first`` the first position
    of the answer (or of its block). Plain confidence writes commas, articles and end-of-text first, which carry little
    information and restrict the rest; rare tokens with high confidence carry more. ``decay`` > 0 prefers positions on
    the left (the paper: 0 for puzzles, 0.25 to 0.5 for reasoning).

    ``frequencies`` names a JSON file of token counts, ``{"1034": 218, ...}``. Without it, f is the mean of the model's
    first predictions for the row, which is not in the paper. ``block`` and the distribution of steps as in
    ``Confidence``.
    """

    steps: int = setting(16, "Number of denoising steps.", least=1, most=MAX_STEPS)
    decay: float = setting(0.25, "Decay of the score with the distance from the beginning.", least=0, most=MAX_SCALE)
    cap: float = setting(10.0, "Largest score without decay.", above=0, most=MAX_SCALE)
    frequencies: str = ""
    block: int = block_option()

    tries = {"decay": (0.0, 0.25)}
    files = ("frequencies",)

    def start(self, canvas: Canvas, spec: Spec) -> PositionCalibratedState:
        common.check_diffusion(spec)
        common.check_steps(self.steps, canvas, spec)
        rows = len(canvas.ids)
        if not self.frequencies:
            return PositionCalibratedState(None, torch.zeros(rows, dtype=torch.bool))
        shares = _read(Path(self.frequencies), spec.tokens.vocab_size)
        return PositionCalibratedState(shares.expand(rows, -1), torch.ones(rows, dtype=torch.bool))

    def plan(self, canvas: Canvas, state: PositionCalibratedState, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: PositionCalibratedState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[PositionCalibratedState, Step]:
        request, out = requests[0], outputs[0]
        state = _with_frequencies(state, request, out)
        assert state.log_frequency is not None
        where = state.log_frequency.device
        known = state.log_frequency[upload(request.rows, where)]
        rarity = -known.gather(1, upload(out.token.clamp(min=0), where)).cpu()
        information = (out.conf.exp() * rarity).clamp(max=self.cap).double()
        first = (
            canvas.prompt[request.rows] if request.cache.active_region is None else request.cache.active_region[:, 0]
        )
        weight = torch.exp(-self.decay * (request.targets - first[:, None]).clamp(min=0).double())
        score = (information * weight).masked_fill(request.targets < 0, -torch.inf)
        count = Confidence(steps=self.steps, block=self.block).count(canvas, request)
        return state, common.write(request, out, common.best(score, count))


def _with_frequencies(state: PositionCalibratedState, request: Request, out: Output) -> PositionCalibratedState:
    """Set the frequencies of rows that have none to the mean of these predictions."""
    fresh = ~state.known[request.rows]
    if not bool(fresh.any()):
        return state
    real, where = request.targets >= 0, out.log_p.device
    p = out.log_p.float().exp()
    total = p.new_zeros(len(request.rows), p.shape[1]).index_add_(0, upload(real.nonzero()[:, 0], where), p)
    mean = (total / upload(real.sum(1).clamp(min=1), where)[:, None]).clamp(min=1e-9).log()
    shares, known = state.log_frequency, state.known.clone()
    shares = p.new_zeros(len(known), p.shape[1]) if shares is None else upload(shares, where).clone()
    place = upload(fresh.nonzero()[:, 0], where)
    shares[upload(request.rows[fresh], where)], known[request.rows] = mean[place], True
    return PositionCalibratedState(shares, known)


def _read(path: Path, size: int) -> Tensor:
    """[V] log frequencies from a file of counts; the smallest count is 1."""
    try:
        counts = json.loads(path.read_text(encoding="utf-8"))
        found = torch.ones(size, dtype=torch.float64)
        for token, count in counts.items():
            found[int(token)] = max(1.0, float(count))
    except OSError as error:
        raise UserError(f"Can't read frequencies '{path}': {error.strerror}.") from None
    except (ValueError, AttributeError, TypeError, IndexError, RecursionError):
        raise UserError(f"File '{path}' has no token counts.", 'Write {"token id": count, ...}.') from None
    return (found / found.sum()).log().float()
