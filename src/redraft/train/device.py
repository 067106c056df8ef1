"""Batches to the device that computes."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch

from redraft.types import Prepared

P = TypeVar("P", bound=Prepared)


def to_device(prepared: P, device: torch.device) -> P:
    """Copy what the loss compares with, without waiting for the copy.

    The request itself stays on the host: the network computes masks and positions there and copies only what it needs,
    so that the host never waits for the device to count target positions.
    """
    if device.type == "cpu":
        return prepared
    moved: dict[str, Any] = {}
    for field in dataclasses.fields(prepared):
        value = getattr(prepared, field.name)
        if isinstance(value, torch.Tensor):
            moved[field.name] = _copy(value, device)
        elif isinstance(value, Prepared):  # the batch of an inner objective
            moved[field.name] = to_device(value, device)
    return dataclasses.replace(prepared, **moved)


def _copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    pinned = device.type == "cuda" and tensor.device.type == "cpu"  # the network's own answers are there already
    return tensor.pin_memory().to(device, non_blocking=True) if pinned else tensor.to(device)
