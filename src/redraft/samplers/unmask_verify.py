"""Unmask and verify: a masked model drafts its own next steps and verifies several of them in one batched pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.limits import MAX_STEPS
from redraft.options import setting
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common, ranking
from redraft.types import FREE, SEALED, Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class UnmaskState:
    """The next steps that the last predictions suggest, and how many steps were taken."""

    pos: Tensor  # [B, N] positions in the order in which they would be written; -1 is none
    token: Tensor  # [B, N]
    written: Tensor  # [B]


@dataclass(frozen=True)
class UnmaskVerify(Sampler):
    """Self-speculative decoding of masked models (SSD, Gao et al. 2025, arXiv:2510.04147). The text and the order are
    those of ``confidence`` with as many steps as tokens, from fewer passes.

    Let F write the token with the highest score. A pass over x gives F(x), and, in the order of the scores, drafts d_1,
    d_2 ... of what F will write next. The next pass runs the states x_j = x with d_1 ... d_j written, j = 0 ...
    ``drafts``, in one batch. While F(x_j) writes d_{j+1}, the walk goes on from x_{j+1}, and ends with F(x_j) of the
    state that it has reached. A pass writes at least one token and at most ``drafts`` + 1, and costs ``drafts`` + 1
    rows: it pays where rows are free, which on a CPU they are not. The prompt runs in every row, without a cache.

    At temperatures above 0 the text is that of ``confidence``, too; drafts are accepted less often.
    """

    drafts: int = setting(3, "Steps that are drafted and verified at once; 0 is none.", least=0, most=MAX_STEPS)
    order: str = setting(
        "confidence",
        "Which position is written first, as in confidence.",
        choices=("confidence", "peak", "margin", "entropy", "left"),
    )
    block: int = block_option()

    tries = {"drafts": (1, 3, 7)}

    def start(self, canvas: Canvas, spec: Spec) -> UnmaskState:
        common.check_diffusion(spec)
        if spec.network.self_conditioning:
            raise UserError(
                "This sampler runs states that had no previous prediction, which this model reads.", "Use confidence."
            )
        none = torch.full((len(canvas.ids), self.drafts), -1)
        return UnmaskState(none, none.clone(), torch.zeros_like(canvas.step))

    def plan(self, canvas: Canvas, state: UnmaskState, spec: Spec) -> list[Request]:
        states, source, number = self._states(canvas, state)
        requests = common.requests_for(states, spec, common.free_in_block(states, self.block, spec), self.block)
        if not requests:
            return []
        request = requests[0]
        rows = source[request.rows]
        step = state.written[rows] + number[request.rows]  # as if each state had been reached step by step
        repeated = len(rows.unique()) < len(rows)  # rows of one slot would overwrite each other's keys
        return [request.with_drawing(rows=rows, noise_step=step).with_cache(bypass=repeated)]

    def apply(
        self, canvas: Canvas, state: UnmaskState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[UnmaskState, Step]:
        request, out = requests[0], outputs[0]
        states, _, number = self._states(canvas, state)
        number = number[common.free_in_block(states, self.block, spec).any(1)]
        rows = request.rows
        score = ranking.scores(self.order, canvas, request, out)
        best = common.best(score, torch.ones_like(rows)).to(torch.int8).argmax(1, keepdim=True)
        pos, token = request.targets.gather(1, best)[:, 0], out.token.gather(1, best)[:, 0]

        # The walk: state j is reached if all states before it wrote what was drafted.
        agrees = torch.zeros(len(canvas.ids), self.drafts + 1, dtype=torch.bool)
        follows = number < self.drafts
        drafted = rows[follows], number[follows]
        agrees[drafted] = (pos[follows] == state.pos[drafted]) & (token[follows] == state.token[drafted])
        reached = torch.cat([torch.ones_like(agrees[:, :1]), agrees[:, :-1]], 1).cumprod(1).bool()[rows, number]
        steps = torch.zeros_like(state.written).index_add_(0, rows[reached], torch.ones_like(rows[reached]))

        # Drafts: what the last reached state predicts, after what it writes.
        last = reached & (number == steps[rows] - 1)
        rest = score[last].scatter(1, best[last], -torch.inf)
        value, column = rest.sort(dim=1, descending=True, stable=True)  # equal scores from the left, as in ``best``
        column, some = column[:, : self.drafts], value[:, : self.drafts] > -torch.inf
        next_pos, next_token = torch.full_like(state.pos, -1), torch.full_like(state.token, -1)
        width = column.shape[1]
        next_pos[rows[last], :width] = torch.where(some, request.targets[last].gather(1, column), -1)
        next_token[rows[last], :width] = torch.where(some, out.token[last].gather(1, column), -1)
        chosen = torch.zeros_like(request.targets, dtype=torch.bool).scatter(1, best, reached[:, None])
        return UnmaskState(next_pos, next_token, state.written + steps), common.write(request, out, chosen)

    def _states(self, canvas: Canvas, state: UnmaskState) -> tuple[Canvas, Tensor, Tensor]:
        """The canvas with a row for each state; and the canvas row and the number of drafts, j, of each."""
        open_ = (state.pos >= 0) & (canvas.status.gather(1, state.pos.clamp(min=0)) == FREE)
        count = open_.to(torch.int64).cumprod(1).sum(1)  # a constraint may have changed the canvas
        source = torch.arange(len(count)).repeat_interleave(count + 1)
        first = (count + 1).cumsum(0) - count - 1
        number = torch.arange(len(source)) - first[source]
        ids, status = canvas.ids[source].clone(), canvas.status[source].clone()
        row, draft = (torch.arange(self.drafts) < number[:, None]).nonzero(as_tuple=True)
        at = row, state.pos[source[row], draft]
        ids[at], status[at] = state.token[source[row], draft], SEALED
        return replace(canvas, ids=ids, status=status, prompt=canvas.prompt[source]), source, number
