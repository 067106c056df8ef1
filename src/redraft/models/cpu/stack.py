"""The layers of a CPU form: compiled code where it is installed and supports their shape, else operations of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from redraft.models.cpu.layers import Stack, TorchStack
from redraft.models.cpu.native import library
from redraft.models.cpu.native.stack import NativeStack
from redraft.settings import Weights


def stack_of(blocks: Sequence[Any], head: Tensor | None, eps: float, weights: Weights, compiled: bool = True) -> Stack:
    """Layers from the blocks of a network.

    Args:
        head: output projection [V, D] with the gain of the last norm; None: no projection. eps: of all norms.
        compiled: False: operations of torch, whatever is installed.
    """
    found = library().found if compiled else None
    if found is not None and weights in NativeStack.weights and NativeStack.fits(blocks, found.width):
        return NativeStack(found, blocks, head, eps, weights == "int8")
    return TorchStack(blocks, head, eps, weights)
