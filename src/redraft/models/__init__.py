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
    from redraft.models.parts.config import NetworkConfig


def describe(network: Backbone) -> dict[str, Any]:
    """Name and configuration of a network as plain values; ``empty`` builds the network from them."""
    return {"name": network.name, **configs.to_mapping(network.config)}


def build(shape: Any) -> Backbone:
    """A new network with initial weights; ``shape`` is the ``Config`` of a file in ``models/``."""
    network: Backbone = find("models", shape.name)(shape)
    return network


def parameters(shape: Any) -> int:
    """Number of weights of a network of this shape, without allocating them."""
    with without_memory():
        return sum(weight.numel() for weight in build(shape).parameters())


def empty(described: Mapping[str, Any], where: str) -> Backbone:
    """A network on the meta device, whose weights are read from files later; ``described`` is as of ``describe``.

    Raises:
        UserError: an unknown network, or a configuration that isn't valid; ``where`` names the source for messages.
    """
    config = shape(described, where)
    with without_memory():
        return build(config)


@contextmanager
def without_memory() -> Iterator[None]:
    """New tensors are on the meta device and random initialisation is skipped: there, torch imports its compiler."""
    import torch
    from torch.overrides import TorchFunctionMode

    class SkipRandomInit(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if getattr(function, "__name__", "") in ("normal_", "uniform_", "trunc_normal_"):
                return args[0] if args else (kwargs or {})["tensor"]  # torch.nn.init passes it by name
            return function(*args, **(kwargs or {}))

    with torch.device("meta"), SkipRandomInit():
        yield


def shape(described: Mapping[str, Any], where: str) -> Any:
    """The ``Config`` of a network from its name and fields.

    Raises:
        UserError: an unknown network, or a configuration that isn't valid; ``where`` names the source for messages.
    """
    fields = dict(described)
    name = fields.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{where}: 'name' of the network is missing.", "For example name = 'transformer'.")
    return configs.build(config_class(name), fields, where)


def config_class(name: str) -> type[NetworkConfig]:
    """The ``Config`` class of a network, by its name."""
    found: type[NetworkConfig] = sys.modules[find("models", name).__module__].Config
    return found


def allocate(network: Backbone, dtype: torch.dtype, device: torch.device) -> None:
    """Allocate the weights of an ``empty`` network, uninitialised, with this dtype and on this device."""
    import torch

    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            memory = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(module, name, torch.nn.Parameter(memory, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
