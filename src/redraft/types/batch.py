"""Training data: clean rows, corrupted batches and losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from redraft.runtime import upload
from redraft.types.request import Forward


@dataclass
class Batch:
    """Clean training rows, padded on the right."""

    ids: Tensor  # [B, L] int64
    target: Tensor  # [B, L] bool: positions that noise may change and the loss includes; False in prompt and padding
    valid: Tensor  # [B, L] bool: False is padding
    prompt: Tensor | None  # [B] length of the leading prompt; None for plain text
    bytes: Tensor  # [B] UTF-8 bytes of the target text, for bits per byte
    number: Tensor | None = None  # [B] number of each row's example in the data; None: not known
    hidden: Tensor | None = None  # [B, L] bool: targets to mask; None: the objective draws them


@dataclass
class Prepared:
    """A corrupted batch: the request to the network, and the targets that its answer is compared with.

    Objectives that need more data declare a subclass with typed fields; ``to`` moves all tensors.
    """

    shared: ClassVar[frozenset[str]] = frozenset({"forbidden"})  # tensors that have no entry for each target position

    request: Forward
    target: Tensor  # [N] clean ids at the target positions
    weight: Tensor  # [N] weight of each target position in the loss
    row: Tensor  # [N] batch row of each target position
    rows: int  # B
    tokens: int  # target tokens of the batch (``Objective.units``), the denominator of the loss
    forbidden: Tensor  # [F] ids that get no probability

    @property
    def reported(self) -> Mapping[str, float]:
        """Means over the denominator of the loss that the log of a run shows beside it."""
        return {}

    def part(self, begin: int, end: int) -> Self:
        """The batch with the target positions ``begin`` to ``end`` of its request only, to compare with their logits.

        Tensors are [N, ...], except scalars and those named in ``shared``. A subclass whose shared tensors refer to
        target positions overrides this method.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in self.shared}
        cut: dict[str, Any] = {name: t[begin:end] for name, t in values.items() if isinstance(t, Tensor) and t.ndim}
        return replace(self, **cut)

    def to(self, where: torch.device) -> Self:
        """A copy whose tensors are on the device that computes, without waiting for it.

        The request stays on the host: the network computes masks and positions there and copies only what it needs, so
        that the host never waits for the device to count target positions.
        """
        if where.type == "cpu":
            return self
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = upload(value, where)
            elif isinstance(value, Prepared):  # the batch of an inner objective
                moved[field.name] = value.to(where)
        return replace(self, **moved)


@dataclass
class LossTerms:
    """A loss and its parts."""

    loss: Tensor  # scalar to minimise, per target token
    nats: Tensor  # [B] weighted negative log-likelihood (or bound) of each row's target, without auxiliary terms
    tokens: int  # target tokens of the batch
    is_bound: bool  # True: nats upper-bounds the exact value; False: it is the exact value
