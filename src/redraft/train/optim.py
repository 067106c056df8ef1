"""AdamW over two groups of parameters."""

from __future__ import annotations

import torch
from torch import nn


def adamw(network: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with weight decay on matrices only.

    Gains, biases and other vectors are not decayed: pulling a norm's gain towards zero is not regularisation. The fused
    kernel makes one pass over memory on both CPU and CUDA.
    """
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=1e-8, fused=True)


def step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Update the weights with this learning rate and free the gradient."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
