"""Any sampler that fills masks, for models that may replace a mask by two masks or delete it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redraft.canvas import extent
from redraft.errors import UserError
from redraft.samplers.base import SamplerWrapper
from redraft.types import DELETE, FREE, INSERT, SET, Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class Resizing(SamplerWrapper):
    """Applies the tokens ``expand`` and ``delete`` where the inner sampler writes them (DreamOn, Wu et al. 2026,
    arXiv:2602.01326).

    A written ``expand`` becomes two masks, and a ``delete`` removes its position. The inner sampler treats both like
    any other prediction. A row may expand as many times as its limit exceeds its initial length; then ``expand`` is
    disallowed. Every other change reduces the number of masks, so generation ends. In rows of fixed length neither
    token is allowed.
    """

    exact = False

    def start(self, canvas: Canvas, spec: Spec) -> Tensor:
        """[B] how many more times each row may expand."""
        if self.inner.start(canvas, spec) is not None or self.inner.retracts or self.inner.width > 1:
            raise UserError(
                "This sampler keeps a state for each position, but this model changes the length of a sequence.",
                "Use confidence, threshold, factor, hierarchical or entropy_bound.",
            )
        return (canvas.limit - extent(canvas)).clamp(min=0) * canvas.gap.any(1)

    def plan(self, canvas: Canvas, state: Tensor, spec: Spec) -> list[Request]:
        return [self._disallow(canvas, state, spec, request) for request in self.inner.plan(canvas, None, spec)]

    def _disallow(self, canvas: Canvas, state: Tensor, spec: Spec, request: Request) -> Request:
        full, fixed = state[request.rows] == 0, ~canvas.gap[request.rows].any(1)
        disallowed = [torch.where(full, spec.tokens.expand_id, -1), torch.where(fixed, spec.tokens.delete_id, -1)]
        return request.with_drawing(disallowed=torch.stack(disallowed, 1))

    def apply(
        self, canvas: Canvas, state: Tensor, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[Tensor, Step]:
        _, step = self.inner.apply(canvas, None, spec, requests, outputs)
        expand, delete = step.token == spec.tokens.expand_id, step.token == spec.tokens.delete_id
        if not bool((expand | delete).any()):
            return state, step
        # Each row applies as many expands as it may, the most confident first.
        order = torch.sort(step.conf.masked_fill(~expand, -torch.inf), descending=True, stable=True).indices
        order = order[torch.sort(step.row[order], stable=True).indices]
        first = torch.searchsorted(step.row[order].contiguous(), torch.arange(len(canvas.ids)))
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order)) - first[step.row[order]]
        applied = expand & (rank < state[step.row])
        kept = ~expand | applied
        part: dict[str, Any] = {name: getattr(step, name)[kept] for name in ("row", "pos", "token", "status", "conf")}
        applied, delete = applied[kept], delete[kept]
        part["token"] = part["token"].masked_fill(applied, spec.tokens.mask_id)
        part["status"] = part["status"].masked_fill(applied, FREE)
        part["kind"] = torch.where(delete, DELETE, SET)
        new = {
            "row": part["row"][applied],
            "pos": part["pos"][applied] + 1,
            "token": part["token"][applied],
            "status": part["status"][applied],
            "conf": part["conf"][applied],
            "kind": torch.full_like(part["row"][applied], INSERT),
        }
        state = state - torch.bincount(new["row"], minlength=len(state))
        return state, Step(**{name: torch.cat([part[name], new[name]]) for name in part})
