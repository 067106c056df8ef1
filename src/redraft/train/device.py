"""Batches to the device that computes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from redraft.types import Prepared


def to_device(prepared: Prepared, device: torch.device) -> Prepared:
    """What the loss compares with, copied without waiting.

    The request itself stays on the host: the network works out masks and positions there and moves only what it needs,
    so no count of wanted positions makes the host wait for the device.
    """
    if device.type == "cpu":
        return prepared
    moved: dict[str, Any] = {name: _copy(getattr(prepared, name), device) for name in ("target", "weight", "row")}
    extra = {name: _copy(tensor, device) for name, tensor in prepared.extra.items()}
    return dataclasses.replace(prepared, **moved, extra=extra)


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    pinned = device.type == "cuda" and tensor.device.type == "cpu"  # the network's own answers are there already
    return tensor.pin_memory().to(device, non_blocking=True) if pinned else tensor.to(device)
