"""Any sampler that fills masks, for a model that may turn a mask into two or into none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.canvas import extent
from redraft.errors import UserError
from redraft.types import DELETE, FREE, INSERT, SET, Canvas, Forward, Output, Sampler, Spec, Step


@dataclass(frozen=True)
class Resizing:
    """Carries out what ``expand`` and ``delete`` say wherever the sampler chooses to write them (DreamOn, Wu et al.
    2026, arXiv:2602.01326).

    A written ``expand`` becomes two masks, a ``delete`` nothing; both are predictions like any other to the sampler's
    rule. A row may expand as often as there are cells between its first length and its limit, after which ``expand``
    can't be drawn: since every other op leaves a mask less, writing ends. Where the length of a row stands, neither
    can.
    """

    inner: Sampler

    exact = False
    width = 1

    @property
    def retracts(self) -> bool:
        return self.inner.retracts

    @property
    def positions(self) -> str:
        """As ``likelihood.under`` has it, which asks about texts whose length stands."""
        return str(getattr(self.inner, "positions", "draw"))

    def start(self, canvas: Canvas, spec: Spec) -> Tensor:
        """[B] how often each row may yet expand."""
        if self.inner.start(canvas, spec) is not None or self.inner.retracts or self.inner.width > 1:
            raise UserError(
                "this sampler remembers positions, and this model's texts change their length.",
                "Use confidence, threshold, factor, hierarchical or entropy_bound.",
            )
        return (canvas.limit - extent(canvas)).clamp(min=0) * canvas.gap.any(1)

    def plan(self, canvas: Canvas, state: Tensor, spec: Spec) -> list[Forward]:
        return [self._barred(canvas, state, spec, ask) for ask in self.inner.plan(canvas, None, spec)]

    def _barred(self, canvas: Canvas, state: Tensor, spec: Spec, ask: Forward) -> Forward:
        assert ask.rows is not None
        full, stands = state[ask.rows] == 0, ~canvas.gap[ask.rows].any(1)
        without = [torch.where(full, spec.expand_id, -1), torch.where(stands, spec.delete_id, -1)]
        return replace(ask, without=torch.stack(without, 1))

    def apply(
        self, canvas: Canvas, state: Tensor, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[Tensor, Step]:
        _, step = self.inner.apply(canvas, None, spec, asks, outs)
        expand, delete = step.token == spec.expand_id, step.token == spec.delete_id
        if not bool((expand | delete).any()):
            return state, step
        # Of a row's expands those that it can still afford, the surest first.
        order = torch.sort(step.conf.masked_fill(~expand, -torch.inf), descending=True, stable=True).indices
        order = order[torch.sort(step.row[order], stable=True).indices]
        first = torch.searchsorted(step.row[order].contiguous(), torch.arange(len(canvas.ids)))
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order)) - first[step.row[order]]
        lands = expand & (rank < state[step.row])
        kept = ~expand | lands
        part: dict[str, Any] = {name: getattr(step, name)[kept] for name in ("row", "pos", "token", "status", "conf")}
        lands, delete = lands[kept], delete[kept]
        part["token"] = part["token"].masked_fill(lands, spec.mask_id)
        part["status"] = part["status"].masked_fill(lands, FREE)
        part["kind"] = torch.where(delete, DELETE, SET)
        new = {
            "row": part["row"][lands],
            "pos": part["pos"][lands] + 1,
            "token": part["token"][lands],
            "status": part["status"][lands],
            "conf": part["conf"][lands],
            "kind": torch.full_like(part["row"][lands], INSERT),
        }
        state = state - torch.bincount(new["row"], minlength=len(state))
        return state, Step(**{name: torch.cat([part[name], new[name]]) for name in part})
