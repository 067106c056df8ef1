"""Self-speculation: the network drafts a block whose first token it knows, and verifies it causally."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.canvas import joined
from redraft.limits import MAX_POSITIONS
from redraft.options import setting
from redraft.samplers.base import Draws, Sampler, draws_option
from redraft.samplers.causal_blocks import check_drafts, draft
from redraft.samplers.draft_verify import frontier, run_length, verification, verified
from redraft.samplers.shared import common
from redraft.types import DRAFT, FREE, Canvas, DraftQuery, Output, Request, Spec, Step


@dataclass(frozen=True)
class SelfSpeculation(Sampler):
    """The lossless decoding of Nemotron-Labs-Diffusion (``linear_spec_generate``), for models of family hybrid.

    The output is that of ``autoregressive`` with the same ``draws``, token for token, as with ``draft_verify``. Here a
    drafted block of ``block`` positions begins with the last token of the text, which sees the drafts too, and the
    first token after the prompt comes from a causal pass. With ``threshold`` 0 one pass drafts everything. Otherwise
    each pass keeps the drafts with p(x) > ``threshold``, and always the most confident one, until the block is full. If
    a constraint admits none of a pass's drafts, those that are there are verified.
    """

    block: int = setting(
        8, "Positions of a block: a known token, and drafts.", least=2, most=MAX_POSITIONS, unit="positions"
    )
    threshold: float = setting(
        0.0, "Confidence above which a pass keeps a draft; 0: one pass drafts everything.", least=0, most=1
    )

    draws: Draws = draws_option("gumbel")

    exact = True
    retracts = True  # only drafts, never sealed tokens
    tries = {"block": (4, 8, 16)}

    def start(self, canvas: Canvas, spec: Spec) -> Tensor:
        check_drafts(spec)
        return torch.full_like(canvas.step, -1)

    def plan(self, canvas: Canvas, state: Tensor, spec: Spec) -> list[Request]:
        """``state`` [B]: the number of drafts before the last pass that drafted; -1 if the last pass verified."""
        begin, run = frontier(canvas)
        drafts = canvas.status == DRAFT
        columns = torch.arange(canvas.ids.shape[1])
        end = begin + (run - 1).clamp(min=0, max=self.block - 1)  # the verifier adds one token
        missing = (canvas.status == FREE) & (columns >= begin[:, None]) & (columns < end[:, None])
        known = begin > canvas.prompt  # a token of the answer is there
        drafting = (run > 1) & known & missing.any(1) & (drafts.sum(1) > state)
        verifying = (run > 0) & ~drafting
        found = []
        if bool(verifying.any()):
            count = torch.minimum(run_length(drafts, begin) + 1, run)
            found.append(verification(canvas, spec, verifying, begin, count, self.draws))
        if bool(drafting.any()):
            found.append(draft(canvas, spec, drafting.nonzero()[:, 0], begin - 1, end, missing, self.draws))
        return found

    def apply(
        self, canvas: Canvas, state: Tensor, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[Tensor, Step]:
        state = state.clone()
        for request in requests:
            drafts = (canvas.status[request.rows] == DRAFT).sum(1)
            state[request.rows] = torch.full_like(drafts, -1) if request.find(DraftQuery) is None else drafts
        return state, joined([self._step(canvas, spec, *pair) for pair in zip(requests, outputs, strict=True)])

    def _step(self, canvas: Canvas, spec: Spec, request: Request, out: Output) -> Step:
        if request.find(DraftQuery) is None:  # autoregressive predictions
            return verified(canvas, spec, request, out)
        chosen: Tensor = request.targets >= 0
        if self.threshold:
            chosen = (out.conf > math.log(self.threshold)) | common.best(out.conf, torch.ones_like(request.rows))
        return common.write(request, out, chosen, DRAFT)
