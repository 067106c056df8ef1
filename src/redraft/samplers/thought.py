"""Thought by thought: generate the leftmost unfinished thought in a few passes, then the next one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_STEPS
from redraft.options import setting
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common
from redraft.types import FREE, SEALED, Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class Thought(Sampler):
    """DoT-MP (Ye et al. 2024, arXiv:2402.07754): several passes per thought, one thought after the other.

    The length of a thought is not given. It ends at the first written or predicted token of
    ``TokenIds.segment_end_ids``, so its end may move while it is generated. Each pass writes ceil(n / ``steps``) of its
    n tokens, the most confident first. For a model without such tokens, the whole sequence is one thought.
    """

    steps: int = setting(4, "Number of denoising steps.", least=1, most=MAX_STEPS)

    def start(self, canvas: Canvas, spec: Spec) -> None:
        common.check_diffusion(spec)
        common.check_steps(self.steps, canvas, spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, 0, spec))

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        first, last = self._extent(canvas, request, out, spec)
        inside = (request.targets >= 0) & (request.targets <= last[:, None])
        count = -(-(last + 1 - first) // self.steps)
        return None, common.write(request, out, common.best(out.conf.masked_fill(~inside, -torch.inf), count))

    def _extent(self, canvas: Canvas, request: Request, out: Output, spec: Spec) -> tuple[Tensor, Tensor]:
        """[R] each: the first and the last position of the current thought, written positions included."""
        ids, status = canvas.ids[request.rows], canvas.status[request.rows]
        columns, end_ids = torch.arange(ids.shape[1]), torch.tensor(spec.tokens.segment_end_ids)
        frontier = request.targets[:, 0]  # the leftmost free position
        written = (status == SEALED) & torch.isin(ids, end_ids)
        begin = torch.where(written & (columns < frontier[:, None]), columns + 1, 0).amax(1)
        last = torch.where((status == FREE) | (status == SEALED), columns, 0).amax(1, keepdim=True)
        predicted_end = torch.where((request.targets >= 0) & torch.isin(out.token, end_ids), request.targets, last)
        written_end = torch.where(written & (columns > frontier[:, None]), columns, last)
        end = torch.minimum(predicted_end.amin(1), written_end.amin(1))
        return torch.maximum(begin, canvas.prompt[request.rows]), end
