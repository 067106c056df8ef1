"""Who sees whom where a clean text runs beside a noisy one: one rule, as a dense mask and as a FlexAttention mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from redraft.types import Forward


@dataclass(frozen=True)
class Marks:
    """What decides whether one position sees another, [R, K] each over both streams; any shapes that broadcast."""

    clean: Tensor  # bool: in the second stream
    stage: Tensor  # by the request's Attend
    order: Tensor  # stage by the clean stream's own Attend
    shared: Tensor  # bool: of an isolated prompt, which both streams see
    real: Tensor  # bool: not padding
    pos: Tensor

    def at(self, *index: Any) -> Marks:
        return Marks(*(part[index] for part in vars(self).values()))

    def to(self, device: torch.device) -> Marks:
        return Marks(*(part.to(device) for part in vars(self).values()))


def marks(ask: Forward) -> Marks:
    """Of every position of a request with two streams."""
    assert ask.clean is not None
    _, pos = ask.streams
    stage = ask.stage(pos)
    clean = (torch.arange(pos.shape[1], device=pos.device) >= ask.x.shape[1]).expand_as(pos)
    shared = torch.zeros_like(clean) if ask.prompt is None else ~clean & (pos < ask.prompt[:, None])
    return Marks(clean, stage, ask.clean.attend.stage(pos, ask.prompt), shared, pos >= 0, pos)


def sees(query: Marks, key: Marks) -> Tensor:
    """Does the query see the key (``types.Clean``)? Padding sees everything, so that no row of the mask is empty."""
    noisy = key.shared | (~query.clean & (key.stage == query.stage))
    clean = torch.where(query.clean, key.order <= query.order, key.stage < query.stage)
    return key.real & (torch.where(key.clean, clean, noisy) | ~query.real)


def dense(ask: Forward) -> Tensor:
    """[R, 1, K, K] bool, K = Q + C: for scaled_dot_product_attention."""
    of = marks(ask)
    return sees(of.at(slice(None), slice(None), None), of.at(slice(None), None, slice(None)))[:, None]


def flex(ask: Forward, device: torch.device, reach: int | None = None) -> Any:
    """The same as a BlockMask of FlexAttention, which skips tiles that nobody sees: about half of them here.

    With a ``reach``, nothing real sees further than that many positions.

    Dong et al. 2024, arXiv:2412.05496.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    of = marks(ask).to(device)
    rows, width = of.stage.shape

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mine, other = of.at(row, query), of.at(row, key)
        if reach is None:
            return sees(mine, other)
        return sees(mine, other) & (((mine.pos - other.pos).abs() <= reach) | ~mine.real)

    return create_block_mask(rule, rows, None, width, width, device=str(device))


@cache
def flex_attention(compiled: bool) -> Callable[..., Tensor]:
    """FlexAttention, compiled once for all shapes (uncompiled it is a plain reference, for tests)."""
    from torch.nn.attention.flex_attention import flex_attention as attend

    return torch.compile(attend, dynamic=True) if compiled else attend  # type: ignore[return-value]
