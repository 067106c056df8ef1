"""The work of a sampler before its first forward pass hardly depends on its number of steps."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from redraft import registry
from redraft.canvas import make_canvas
from redraft.errors import UserError
from redraft.options import declared
from tests.constrained import spec_for

FREE_POSITIONS, ROWS = 24, 2
STEPPED = [
    name
    for name in registry.names("samplers")
    if any(one.name == "steps" for one in fields(registry.find("samplers", name)))
]


class Counting(TorchDispatchMode):
    """Counts the operations on tensors, and the elements of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations += 1
        self.elements += found.numel() if isinstance(found, torch.Tensor) else 0
        return found


def planning(name: str, steps: int) -> Counting:
    """The work of a sampler before its first forward pass."""
    spec, rows = spec_for(name, False), [[7, *[None] * FREE_POSITIONS]] * ROWS
    canvas = make_canvas(rows, [1] * ROWS, spec, seeds=range(ROWS))
    sampler = registry.find("samplers", name)(steps=steps)
    with Counting() as counted:
        assert sampler.plan(canvas, sampler.start(canvas, spec), spec)
    return counted


@pytest.mark.parametrize("name", STEPPED)
def test_planning_does_not_take_longer_with_more_steps(name: str) -> None:
    most = declared(registry.find("samplers", name))["steps"].most
    few = planning(name, 16)
    try:
        many = planning(name, most)
    except UserError as error:
        assert "larger than the 24 tokens" in str(error)  # it writes a token at every step
        return
    assert many.operations <= few.operations + 1000
    assert many.elements <= few.elements + 1_000_000
