"""One file = one network: ``models/gpt.py`` defines ``Gpt`` and the ``Config`` of its shape."""

from __future__ import annotations

import sys
from collections.abc import Mapping
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
    import torch

    with torch.device("meta"):
        return sum(weight.numel() for weight in build(shape).parameters())


def empty(described: Mapping[str, Any], where: str) -> Backbone:
    """A network without memory for its weights (on the meta device), to be filled from files.

    Raises:
        UserError: no such network, or a shape that it can't have.
    """
    import torch

    made = shape(described, where)
    with torch.device("meta"):
        return build(made)


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
