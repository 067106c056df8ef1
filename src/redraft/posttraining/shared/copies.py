"""Several noisy copies of every row in one batch, counted together as an estimate of the row's likelihood."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redraft.objectives.base import Objective
from redraft.objectives.masked import Masked, MaskedBatch
from redraft.posttraining.estimators.base import Estimator
from redraft.types import Batch, Spec


class OfMasks(Estimator):
    """An estimator for masked models in continuous time."""

    of = Masked

    def misfit(self, inner: Objective[Any], spec: Spec) -> str:
        """As ``Estimator.misfit``; and it needs a network without time, and texts of one thought."""
        if isinstance(inner, Masked) and (inner.steps or spec.network.timed):
            return "it needs a network without time conditioning, in continuous time"
        if spec.tokens.segment_end_ids:
            return "this model generates thought by thought"
        return super().misfit(inner, spec)


def take(batch: Batch, source: Tensor) -> Batch:
    """The rows ``source`` [M] of a batch, as often as each is named."""
    prompt = None if batch.prompt is None else batch.prompt[source]
    ids, target, valid = (part[source] for part in (batch.ids, batch.target, batch.valid))
    number = None if batch.number is None else batch.number[source]
    return Batch(ids, target, valid, prompt, batch.bytes[source], number)


def repeated(batch: Batch, draws: int) -> tuple[Batch, Tensor]:
    """All rows, then all rows again, ``draws`` times; and the row [M] that each copy is of."""
    source = torch.arange(len(batch.ids), device=batch.ids.device).repeat(draws)
    return take(batch, source), source


def together(prepared: MaskedBatch, source: Tensor, rows: int, share: Tensor | float) -> MaskedBatch:
    """Count copies as estimates of their rows.

    Args:
        source: [M] the row of each copy. rows: B.
        share: the share of each copy in the estimate of its row, a number or [M].
    """
    part = share[prepared.row].float() if isinstance(share, Tensor) else share
    return replace(prepared, bound=prepared.bound * part, row=source[prepared.row], rows=rows)


def stratified(rows: int, draws: int, generator: torch.Generator, where: torch.device) -> Tensor:
    """Uniform numbers on (0, 1], [draws * rows] float64, in the order of ``repeated``.

    Those of one row lie in ``draws`` strata of equal width; those of different rows are independent.
    """
    uniform = torch.rand(draws, rows, generator=generator, device=generator.device, dtype=torch.float64)
    stratum = torch.arange(1, draws + 1, dtype=torch.float64, device=generator.device)[:, None]
    return ((stratum - uniform) / draws).flatten().to(where)
