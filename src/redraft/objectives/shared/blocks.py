"""Shared by objectives over blocks: padding answers to whole blocks, masking a part of every block, clean streams."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from redraft.objectives.shared import times as times
from redraft.types import AttentionPattern, Batch, CleanStream, Spec


def complete_blocks(
    batch: Batch,
    attend: AttentionPattern,
    spec: Spec,
    padding: Literal["end", "mask"] = "end",
    origin: Tensor | None = None,
) -> Batch:
    """Pad every answer that ends in end-of-text to the end of its last block.

    A block is generated as a whole. Without padding, the number of masks in the last block would reveal the length of
    the answer. Plain text is not padded, as its end is a cut.

    Args:
        batch: [B, L].
        padding: ``end``: with end-of-text tokens, which are targets. ``mask``: with masks, which are not.
        origin: [B] where blocks begin; None: at an isolated prompt's end, or the beginning of the text.
    """
    if batch.prompt is None or attend.kind != "block":
        return batch
    rows, length = batch.ids.shape
    end = batch.valid.sum(1)
    if origin is None:
        origin = batch.prompt if spec.network.prompt_encoder else torch.zeros_like(end)
    last = batch.ids.gather(1, (end - 1)[:, None])[:, 0] == spec.tokens.eos_id
    missing = torch.where(last & batch.target.any(1), (origin - end) % attend.block, 0)
    width = max(length, int((end + missing).max()))
    column = torch.arange(width, device=end.device)
    tail = (column >= end[:, None]) & (column < (end + missing)[:, None])

    def wider(part: Tensor) -> Tensor:
        return torch.cat([part, part.new_zeros(rows, width - length)], 1)

    ids, target, valid = map(wider, (batch.ids, batch.target, batch.valid))
    hidden = None if batch.hidden is None else wider(batch.hidden)
    filler = spec.tokens.eos_id if padding == "end" else spec.tokens.mask_id
    target = target | tail if padding == "end" else target
    return replace(batch, ids=ids.masked_fill(tail, filler), target=target, valid=valid | tail, hidden=hidden)


def groups(batch: Batch, attend: AttentionPattern, spec: Spec) -> Tensor:
    """The attention group [B, L] of every column, padding included."""
    columns = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
    return attend.group(columns, batch.prompt if spec.network.prompt_encoder else None)


def hide(target: Tensor, group: Tensor, low: float, high: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose the positions to mask in every block.

    Each block has its own masking rate r, uniform on (low, high]. Exactly ``k = ceil(r n)`` of its n targets are
    masked, in a uniformly random subset, with weight n / k (``Masked`` explains why this is the bound at rate r with
    less variance). Rates are stratified over the batch, and the blocks of each row are spread over all strata in random
    order.

    Args:
        target: [B, L] bool. group: [B, L], non-decreasing along a row; groups without targets come first or last.
    Returns:
        [B, L] bool, the positions to mask; [B, L], the weight of each position in the bound.
    """
    rows, length = target.shape
    group = (group - group.masked_fill(~target, torch.iinfo(group.dtype).max).min()).clamp(min=0).contiguous()
    blocks = int(group.max()) + 1
    place = torch.argsort(_random((rows, blocks), generator), 1)
    stratum = place * rows + torch.arange(rows)[:, None]
    rate = low + (high - low) * times.continuous(rows * blocks, generator)[stratum].to(target.device)
    count = torch.zeros(rows, blocks, dtype=torch.int64, device=target.device).scatter_add_(1, group, target.long())
    hidden = torch.ceil(rate * count).long().clamp(min=1).minimum(count)
    draw = _random((rows, length), generator).to(target.device).masked_fill(~target, 1.0)
    rank = (group + 0.5 * draw).argsort(1).argsort(1)  # blocks stay in order; positions are shuffled within a block
    first = torch.searchsorted(group, group)
    weight = (count / hidden.clamp(min=1)).gather(1, group)
    return target & (rank - first < hidden.gather(1, group)), weight


def _random(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)


def clean_stream(
    batch: Batch, spec: Spec, attend: AttentionPattern, end: Tensor, targets: Tensor | None = None
) -> CleanStream | None:
    """The clean stream of a batch: each row's tokens up to ``end`` [B], without an isolated prompt; None if empty.

    ``targets`` [B, U] are the target positions of the clean stream.
    """
    begin = batch.prompt if spec.network.prompt_encoder and batch.prompt is not None else torch.zeros_like(end)
    width = int((end - begin).max())
    if width <= 0:
        return None
    pos = begin[:, None] + torch.arange(width, device=end.device)
    real = pos < torch.minimum(end, batch.valid.sum(1))[:, None]
    x = batch.ids.gather(1, pos.clamp(max=batch.ids.shape[1] - 1))
    return CleanStream(tokens=x, positions=torch.where(real, pos, -1), attention=attend, targets=targets)
