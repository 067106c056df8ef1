"""AdamW over two groups of parameters, and learning-rate schedules as pure functions of progress."""

from __future__ import annotations

import math

import torch
from torch import nn

from redraft.errors import UserError, suggest


def adamw(network: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), its decay on matrices only.

    Gains, biases and other vectors are not decayed: pulling a norm's gain towards zero is not regularisation. The fused
    kernel makes one pass over memory on CPU and CUDA alike.
    """
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, eps=1e-8, fused=True)


def step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Update the weights at this learning rate and free the gradient."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def cosine(progress: float, warmup: float, floor: float) -> float:
    """Linear warm-up over the first ``warmup`` of the run, then half a cosine from 1 down to ``floor``.

    Loshchilov & Hutter 2017, arXiv:1608.03983. All arguments and the result are fractions: of the budget spent,
    of the budget, and of the peak learning rate.
    """
    if progress < warmup:
        return progress / warmup
    through = (progress - warmup) / (1.0 - warmup)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(through, 1.0)))


def wsd(progress: float, warmup: float, floor: float, decay: float = 0.2) -> float:
    """Warm-up, stable, decay: a plateau at 1, then linear down to ``floor`` over the last ``decay`` of the run.

    Hu et al. 2024, arXiv:2404.06395; the linear tail is the one of Haegele et al. 2024, arXiv:2405.18392.
    """
    if progress < warmup:
        return progress / warmup
    begin = max(1.0 - decay, warmup)
    if progress <= begin:
        return 1.0
    return 1.0 - (1.0 - floor) * min((progress - begin) / (1.0 - begin), 1.0)


def constant(progress: float, warmup: float, floor: float) -> float:
    """Warm-up, then 1 to the end; ``floor`` plays no part."""
    return progress / warmup if progress < warmup else 1.0


SCHEDULES = {"cosine": cosine, "wsd": wsd, "constant": constant}


def learning_rate(schedule: str, progress: float, lr: float, warmup: float, floor: float) -> float:
    """The learning rate when ``progress`` (0..1) of the budget is spent.

    Raises:
        UserError: no schedule of that name.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"unknown train.schedule '{schedule}'.", suggest(schedule, SCHEDULES))
    return lr * SCHEDULES[schedule](progress, warmup, floor)
