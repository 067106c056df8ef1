"""Token to mask: written tokens that the model has come to doubt become masks again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from redraft.limits import MAX_POSITIONS
from redraft.options import setting
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common, uniform_noise
from redraft.types import DRAFT, FREE, SEALED, Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class TokenToMaskState:
    """Data about the drafts of each row."""

    log_p: Tensor  # [B, L] log-probability of each token in the last pass that predicted its position
    times: Tensor  # [B, L] how often each position was masked again
    rounds: Tensor  # [B] passes over the active block since it has had no free position


@dataclass(frozen=True)
class TokenToMask(Sampler):
    """Remasking in place of the replacing edits of LLaDA2.1 (arXiv:2604.18738).

    Each pass predicts the free *and* the written positions of the block. Free positions with p(x) > ``threshold`` are
    written, and always the most confident one. A written token is doubtful by

    - probability: its probability is below ``doubt`` (0.1 is usual);
    - replacement: another token has a probability above ``doubt`` (0.9);
    - change: its probability changed by more than ``doubt`` since the pass before (0.3).

    The most doubtful ones become masks again: at most a ``share`` of the written positions of the block in a pass, at
    least one if any is doubtful, and each position at most ``most`` times. A block is final when it has no free
    position and a pass finds no doubt, or after ``rounds`` passes without a free position.

    The network must have learned to predict unmasked positions, as LLaDA2.1's; predictions of a network trained on
    masks alone say little there.
    """

    threshold: float = setting(0.9, "Confidence above which a position is written.", above=0, most=1)
    by: Literal["probability", "replacement", "change"] = setting("probability", "What makes a token doubtful.")
    doubt: float = setting(0.1, "Probability that makes a token doubtful; see ``by``.", least=0, most=1)
    share: float = setting(0.25, "Largest share of written positions masked again in a pass.", above=0, most=1)
    most: int = setting(3, "How often a position may be masked again.", least=0, most=1000)
    rounds: int = setting(16, "Passes over a block that has no free position left.", least=1, most=1000, unit="passes")
    block: int = block_option()
    least: int = setting(
        1, "Free positions that are written in any case.", least=1, most=MAX_POSITIONS, unit="positions"
    )

    retracts = True
    tries = {"threshold": (0.7, 0.9)}

    def start(self, canvas: Canvas, spec: Spec) -> TokenToMaskState:
        common.check_diffusion(spec)
        shape = canvas.ids.shape
        return TokenToMaskState(
            torch.zeros(shape), torch.zeros(shape, dtype=torch.int64), torch.zeros_like(canvas.step)
        )

    def plan(self, canvas: Canvas, state: TokenToMaskState, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.in_block(canvas, canvas.open, self.block), self.block)

    def apply(
        self, canvas: Canvas, state: TokenToMaskState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[TokenToMaskState, Step]:
        request, out = requests[0], outputs[0]
        rows, real, at = request.rows, request.targets >= 0, request.targets.clamp(min=0)
        free = real & (canvas.status[rows].gather(1, at) == FREE)
        token = canvas.ids[rows].gather(1, at)
        now = uniform_noise.log_p_of(torch.where(free, 0, token), request, out).float()
        times = state.times[rows].gather(1, at)
        masked = self._doubtful(request, out, real & ~free, token, now, state.log_p[rows].gather(1, at), times)

        fresh = out.conf.masked_fill(~free, -torch.inf)
        fill = (fresh > math.log(self.threshold)) | common.best(fresh, free.sum(1).clamp(max=self.least))
        full = ~free.any(1)
        rounds = state.rounds[rows] + full.long()
        done = full & (~masked.any(1) | (rounds >= self.rounds))
        masked &= ~done[:, None]

        token = torch.where(masked, spec.tokens.mask_id, torch.where(fill, out.token, token))
        log_p = torch.where(fill, out.conf, now)
        row, column = (fill | masked | (real & done[:, None])).nonzero(as_tuple=True)
        pos = at[row, column]
        status = torch.where(masked, FREE, torch.where(done[:, None], SEALED, DRAFT))
        kept = real.nonzero(as_tuple=True)
        all_log_p, all_times, all_rounds = state.log_p.clone(), state.times.clone(), state.rounds.clone()
        all_log_p[rows[kept[0]], at[kept]] = log_p[kept]
        all_times[rows[kept[0]], at[kept]] = (times + masked)[kept]
        all_rounds[rows] = torch.where(done, 0, rounds)
        step = Step(rows[row], pos, token[row, column], status[row, column], log_p[row, column])
        return TokenToMaskState(all_log_p, all_times, all_rounds), step

    def _doubtful(
        self,
        request: Request,
        out: Output,
        written: Tensor,
        token: Tensor,
        now: Tensor,
        before: Tensor,
        times: Tensor,
    ) -> Tensor:
        """[R, W] bool: written positions that become masks again. All arguments but the first two are [R, W]."""
        if self.by == "probability":
            amount, limit = -now.exp(), -self.doubt
        elif self.by == "change":
            amount, limit = (now.exp() - before.exp()).abs(), self.doubt
        else:
            top, likeliest = out.log_p.max(-1)
            top, other = common.rectangles(request, (top, -torch.inf), (likeliest, -1))
            amount, limit = torch.where(other == token, -torch.inf, top.exp()), self.doubt
        amount = amount.masked_fill(~(written & (amount > limit) & (times < self.most)), -torch.inf)
        return common.best(amount, (self.share * written.sum(1)).ceil().long())
