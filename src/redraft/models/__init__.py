"""One file = one network: ``models/gpt.py`` defines ``Gpt`` and the ``Config`` of its shape."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redraft import config as configs
from redraft.errors import UserError
from redraft.registry import find

if TYPE_CHECKING:
    import torch

    from redraft.models.parts.backbone import Backbone


def name_of(network: Backbone) -> str:
    """The name that finds a network again: that of its file."""
    return type(network).__module__.rsplit(".", 1)[-1]


def describe(network: Backbone) -> dict[str, Any]:
    """Name and shape of a network as plain values; ``empty`` makes the same again."""
    return {"name": name_of(network), **configs.to_mapping(network.config)}


def build(shape: Any) -> Backbone:
    """A new network of a shape: of the file that defines the shape's ``Config``, with its own initial weights."""
    made: Backbone = find("models", type(shape).__module__.rsplit(".", 1)[-1])(shape)
    return made


def parameters(shape: Any) -> int:
    """Weights of a network of this shape, without making it."""
    with _without_memory():
        return sum(weight.numel() for weight in build(shape).parameters())


def empty(described: Mapping[str, Any], where: str) -> Backbone:
    """A network without memory for its weights (on the meta device), to be filled from files.

    Raises:
        UserError: no such network, or a shape that it can't have.
    """
    made = shape(described, where)
    with _without_memory():
        return build(made)


@contextmanager
def _without_memory() -> Iterator[None]:
    """Tensors that are made have no memory, and draw no initial values: for that torch would import its compiler."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if getattr(function, "__name__", "") in ("normal_", "uniform_", "trunc_normal_"):
                return args[0] if args else (kwargs or {})["tensor"]  # torch.nn.init names it
            return function(*args, **(kwargs or {}))

    with torch.device("meta"), Undrawn():
        yield


def shape(described: Mapping[str, Any], where: str) -> Any:
    """The ``Config`` of a network that was described; errors as of ``empty``."""
    fields = dict(described)
    name = fields.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{where}: a network needs a name.", "For example name = 'transformer'.")
    return configs.build(sys.modules[find("models", name).__module__].Config, fields, where)


def allocate(network: Backbone, dtype: torch.dtype, device: torch.device) -> None:
    """Give an ``empty`` network memory, of undefined content, in a type and on a device."""
    import torch

    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            memory = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(module, name, torch.nn.Parameter(memory, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
