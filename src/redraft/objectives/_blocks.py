"""What objectives over blocks share: ending a text on a block's border, hiding a part of every block, clean text."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from redraft.objectives import _times as times
from redraft.types import Attend, Batch, Clean, Spec


def completed(batch: Batch, attend: Attend, spec: Spec) -> Batch:
    """The batch with every answer that ends in end-of-text continued, by end-of-texts, to the end of its last block.

    A block is written as a whole, so that what its rest holds must be learnt; left out, the number of masks in the last
    block would give the length of the answer away. Plain text is left as it is: its end is a cut.
    """
    if batch.prompt is None or attend.kind != "block":
        return batch
    rows, length = batch.ids.shape
    end = batch.valid.sum(1)
    origin = batch.prompt if spec.isolate_prompt else torch.zeros_like(end)
    last = batch.ids.gather(1, (end - 1)[:, None])[:, 0] == spec.eos_id
    over = torch.where(last & batch.target.any(1), (origin - end) % attend.block, 0)
    width = max(length, int((end + over).max()))
    more = width - length
    column = torch.arange(width, device=end.device)
    tail = (column >= end[:, None]) & (column < (end + over)[:, None])
    grown = [torch.cat([part, part.new_zeros(rows, more)], 1) for part in (batch.ids, batch.target, batch.valid)]
    return replace(batch, ids=grown[0].masked_fill(tail, spec.eos_id), target=grown[1] | tail, valid=grown[2] | tail)


def stages(batch: Batch, attend: Attend, spec: Spec) -> Tensor:
    """[B, L] stage of every column, padding included."""
    columns = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
    return attend.stage(columns, batch.prompt if spec.isolate_prompt else None)


def hide(target: Tensor, stage: Tensor, low: float, high: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide a part of the targets of every block.

    Each block has a rate r of its own, uniform on (low, high], and exactly ``k = ceil(r n)`` of its n targets are
    hidden, all subsets alike, with the weight n / k: see ``Masked`` for why this is the bound at rate r, without the
    variance of a count left to chance. Rates are stratified over the batch, and every row's blocks are spread over all
    strata, in a random order.

    Args:
        target: [B, L] bool. stage: [B, L], never falling along a row; stages without targets come first or last.
    Returns:
        [B, L] bool, what is hidden; [B, L], the weight of each position in the bound.
    """
    rows, length = target.shape
    stage = (stage - stage.masked_fill(~target, torch.iinfo(stage.dtype).max).min()).clamp(min=0).contiguous()
    blocks = int(stage.max()) + 1
    place = torch.argsort(_random((rows, blocks), generator), 1)
    stratum = place * rows + torch.arange(rows)[:, None]
    rate = low + (high - low) * times.continuous(rows * blocks, generator)[stratum].to(target.device)
    count = torch.zeros(rows, blocks, dtype=torch.int64, device=target.device).scatter_add_(1, stage, target.long())
    hidden = torch.ceil(rate * count).long().clamp(min=1).minimum(count)
    draw = _random((rows, length), generator).to(target.device).masked_fill(~target, 1.0)
    rank = (stage + 0.5 * draw).argsort(1).argsort(1)  # blocks stay in order, positions are shuffled within each
    first = torch.searchsorted(stage, stage)
    weight = (count / hidden.clamp(min=1)).gather(1, stage)
    return target & (rank - first < hidden.gather(1, stage)), weight


def _random(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def beside(batch: Batch, spec: Spec, attend: Attend, end: Tensor, want: Tensor | None = None) -> Clean | None:
    """The clean stream of a batch: each row's text up to ``end`` [B], without an isolated prompt; None if empty."""
    begin = batch.prompt if spec.isolate_prompt and batch.prompt is not None else torch.zeros_like(end)
    width = int((end - begin).max())
    if width <= 0:
        return None
    pos = begin[:, None] + torch.arange(width, device=end.device)
    real = pos < torch.minimum(end, batch.valid.sum(1))[:, None]
    x = batch.ids.gather(1, pos.clamp(max=batch.ids.shape[1] - 1))
    return Clean(x=x, pos=torch.where(real, pos, -1), attend=attend, want=want)
