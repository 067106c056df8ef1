"""The frozen base under an adapter: its matrices stay in the type that they came in, or are packed in fewer bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from redraft.models.parts.backbone import Backbone
from redraft.models.parts.lora import Adapted
from redraft.models.parts.moe import MixtureOfExperts
from redraft.models.parts.packed import linear, pack


class Frozen(nn.Linear):
    """y = W x + b with a frozen matrix of any type, also a ``Packed`` one."""

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def freeze(network: Backbone, packing: str = "") -> None:
    """Make the frozen matrices of a network usable in their own type; ``int8`` and ``nf4`` pack those of its blocks.

    Hidden states are float32, as in training without an adapter, and ``train.dtype`` says in which type they are
    multiplied. Embeddings and the output projection are never packed (as in QLoRA, arXiv:2305.14314). Vectors become
    float32: they are few.

    Raises:
        UserError: nf4 does not run here.
    """
    for path, module in list(network.named_modules()):
        if type(module) is nn.Linear and not path.endswith(".router"):  # routers are small, and exact
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, Frozen(module))
    own_type = {id(network.embedding.weight)}
    own_type |= {id(module.weight) for module in network.modules() if isinstance(module, Frozen | Adapted)}
    for module in network.modules():
        for weight in module.parameters(recurse=False):
            expert = isinstance(module, MixtureOfExperts) and weight.ndim == 3
            if not (expert or weight.requires_grad or id(weight) in own_type):
                weight.data = weight.data.float()
    if packing:
        for block in network.all_blocks():
            for module in block.modules():
                if isinstance(module, Frozen | Adapted):
                    _pack(module, "weight", packing)
                elif isinstance(module, MixtureOfExperts):
                    _pack(module, "experts_gate_up", packing)
                    _pack(module, "experts_down", packing)
    network.stream = torch.float32


def _pack(module: nn.Module, name: str, packing: str) -> None:
    """Replace a parameter of a module by its packed form."""
    weight = module.get_parameter(name)
    delattr(module, name)
    setattr(module, name, pack(weight, packing))
