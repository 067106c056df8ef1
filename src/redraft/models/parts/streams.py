"""Attention between a noisy and a clean stream: one rule, as a dense mask and as a FlexAttention mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from redraft.runtime import upload
from redraft.types import CleanStream, Forward


@dataclass(frozen=True)
class StreamPositions:
    """What decides whether one position attends to another: [R, K] each over both streams, or shapes that broadcast."""

    clean: Tensor  # bool: in the clean stream
    group: Tensor  # group by the attention pattern of the request
    order: Tensor  # group by the attention pattern of the clean stream
    shared: Tensor  # bool: of an isolated prompt, to which both streams attend
    real: Tensor  # bool: not padding
    pos: Tensor

    def at(self, *index: Any) -> StreamPositions:
        return StreamPositions(*(part[index] for part in vars(self).values()))

    def to(self, device: torch.device) -> StreamPositions:
        """A copy on a device, in one transfer."""
        parts = vars(self).values()
        copies = upload(torch.stack([part.int() for part in parts]), device)
        return StreamPositions(
            *(copy.bool() if part.dtype == torch.bool else copy for part, copy in zip(parts, copies, strict=True))
        )


def stream_positions(request: Forward) -> StreamPositions:
    """The attributes [R, K] of every position of a request with two streams."""
    stream = request.find(CleanStream)
    assert stream is not None
    _, pos = request.streams
    group = request.group(pos)
    clean = (torch.arange(pos.shape[1], device=pos.device) >= request.tokens.shape[1]).expand_as(pos)
    shared = torch.zeros_like(clean) if request.prompt is None else ~clean & (pos < request.prompt[:, None])
    return StreamPositions(clean, group, stream.attention.group(pos, request.prompt), shared, pos >= 0, pos)


def attends(query: StreamPositions, key: StreamPositions) -> Tensor:
    """[R, K] bool or any broadcast shape: the query attends to the key, as ``types.CleanStream`` says.

    Padding attends to everything, so that no row of the mask is empty.
    """
    noisy = key.shared | (~query.clean & (key.group == query.group))
    clean = torch.where(query.clean, key.order <= query.order, key.group < query.group)
    return key.real & (torch.where(key.clean, clean, noisy) | ~query.real)


def dense_mask(request: Forward) -> Tensor:
    """The mask [R, 1, K, K] bool, K = Q + C, for scaled_dot_product_attention."""
    every = stream_positions(request)
    return attends(every.at(slice(None), slice(None), None), every.at(slice(None), None, slice(None)))[:, None]


def flex_mask(request: Forward, device: torch.device, radius: int | None = None, near: Tensor | None = None) -> Any:
    """The same mask as a BlockMask of FlexAttention (Dong et al. 2024, arXiv:2412.05496), which skips fully masked
    tiles: about half of them here.

    With a ``radius``, positions attend only to positions at most that far away, by the positions ``near`` [R, K] of
    both streams if they are given.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    found = stream_positions(request)
    every = (found if near is None else replace(found, pos=near)).to(device)
    rows, width = every.group.shape

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine, other = every.at(row, query), every.at(row, key)
        if radius is None:
            return attends(mine, other)
        return attends(mine, other) & (((mine.pos - other.pos).abs() <= radius) | ~mine.real)

    return create_block_mask(rule, rows, None, width, width, device=str(device))


@cache
def flex_attention(compiled: bool) -> Callable[..., Tensor]:
    """FlexAttention on [R, H, K, Dh], compiled once for all shapes; uncompiled it is a slow reference for tests."""
    from torch.nn.attention.flex_attention import flex_attention as attend

    return torch.compile(attend, dynamic=True) if compiled else attend  # type: ignore[return-value]
