"""AdamW over two groups of parameters, with 32-bit or 8-bit moments."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from redraft.models.parts.packed import bitsandbytes


def build(
    name: str, network: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer ``adamw`` or ``adamw8bit``.

    Raises:
        UserError: bitsandbytes is needed and can't be loaded.
    """
    return (adamw8bit if name == "adamw8bit" else adamw)(network, lr, betas, weight_decay)


def adamw(network: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with weight decay on matrices only.

    The fused kernel makes one pass over memory on both CPU and CUDA.
    """
    return torch.optim.AdamW(_groups(network, weight_decay), lr=lr, betas=betas, eps=1e-8, fused=True)


def adamw8bit(network: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW with both moments in 8 bits, block by block (Dettmers et al. 2021, arXiv:2110.02861), by bitsandbytes.

    The moments of parameters under 4,096 numbers stay in 32 bits.

    Raises:
        UserError: bitsandbytes can't be loaded.
    """
    bitsandbytes()  # or the error that names the remedy
    kind = importlib.import_module("bitsandbytes.optim").AdamW8bit
    made: torch.optim.Optimizer = kind(_groups(network, weight_decay), lr=lr, betas=betas, eps=1e-8)
    return made


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Gains, biases and other vectors are not decayed: pulling a norm's gain towards zero is not regularisation."""
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Update the weights with this learning rate and free the gradient."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    for group in optimizer.param_groups:  # the fused kernel doesn't count as a change, and ``inference_network`` asks
        torch.autograd.graph.increment_version(group["params"])
    optimizer.zero_grad(set_to_none=True)
