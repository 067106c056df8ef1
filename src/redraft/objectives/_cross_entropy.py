"""Cross-entropy at the wanted positions: the one piece that all token objectives share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError

_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 27}  # logits worked on at a time: 1 MB in float32, which stays in a core's cache


def cross_entropy(
    logits: Tensor, target: Tensor, forbidden: Tensor, smoothing: float = 0.0, free: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``-log softmax(logits)[target]`` where the ``forbidden`` ids have no probability.

    The logits are consumed: where a gradient is wanted, it takes their place in memory, in their own dtype, while each
    chunk of rows is still in the cache. Autograd's chain (copy to float32, log-softmax, zeros, scatter, softmax) writes
    N x V numbers six times; this one does it twice. Everything is computed in float32.

    Args:
        logits: [N, V]. target: [N], never forbidden. forbidden: [F] ids.
        smoothing: label smoothing a (Szegedy et al. 2016, arXiv:1512.00567): the target gets 1 - a, and a is
            shared by all allowed ids.
        free: [N] bool, rows in which every id is allowed and nothing is smoothed; None for no such row.
    Returns:
        [N] float32 nats, exact, without gradient; and [N] the smoothed loss to minimise.
    """
    logits = logits.clone() if logits.is_leaf and logits.requires_grad else logits  # a leaf isn't ours to consume
    nll, loss = _CrossEntropy.apply(logits, target, forbidden, smoothing, free)
    return nll, loss


class _CrossEntropy(torch.autograd.Function):
    """With z the logits, A allowed ids and p their softmax: loss = -log p[target] + a (z[target] - mean_A z), and

    dloss/dz = p - (1 - a) [target] - a / |A| on the allowed ids, 0 on the others.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, forbidden: Tensor, smoothing: float, free: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        count, width = logits.shape
        wanted = ctx.needs_input_grad[0]
        nll, loss = logits.new_empty(count, dtype=torch.float32), logits.new_empty(count, dtype=torch.float32)
        kept = torch.ones(count, device=logits.device) if free is None else (~free).float()  # rows with forbidden ids
        size = max(1, _CHUNK.get(logits.device.type, _CHUNK["cuda"]) // width)
        for begin in range(0, count, size):
            part = slice(begin, begin + size)
            own, bound = target[part, None], kept[part, None]
            z = logits[part].float()
            barred = torch.where(bound > 0, -torch.inf, z[:, forbidden])
            gap = _above_mean(z, own, forbidden)[:, None] if smoothing else None
            z.index_copy_(1, forbidden, barred)
            at = z.gather(1, own)
            top = z.amax(1, keepdim=True)
            p = z.sub_(top).exp_()
            mass = p.sum(1, keepdim=True)
            surprise = mass.log() + top - at
            nll[part] = surprise[:, 0]
            loss[part] = (surprise if gap is None else surprise + smoothing * bound * gap)[:, 0]
            if wanted:
                p.div_(mass)
                amount = smoothing * bound
                if smoothing:
                    p.sub_(amount / (width - forbidden.shape[0]))
                    p.index_copy_(1, forbidden, p[:, forbidden].masked_fill(bound > 0, 0.0))
                p.scatter_add_(1, own, amount - 1.0)
                if p.dtype != logits.dtype:  # else p is the logits' own memory
                    logits[part] = p
        ctx.gradient = logits if wanted else None
        ctx.mark_non_differentiable(nll)
        return nll, loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None  # used up: a second backward is an error
        return gradient.mul_(grads[1].to(gradient.dtype)[:, None]), None, None, None, None


def _above_mean(z: Tensor, target: Tensor, forbidden: Tensor) -> Tensor:
    """Logit of the target minus the mean logit of the allowed ids [N]: what smoothing adds per unit of a."""
    allowed = z.sum(1) - z[:, forbidden].sum(1)
    return z.gather(1, target)[:, 0] - allowed / (z.shape[1] - forbidden.shape[0])


def check_smoothing(amount: float) -> None:
    """Raise UserError unless ``amount`` is a share of probability below one."""
    if not 0 <= amount < 1:
        raise UserError(f"label_smoothing {amount} is not in [0, 1).", "0 turns it off; 0.1 is usual.")


def per_row(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sum ``values`` [N] by batch row ``row`` [N] -> [rows] float32, without gradient."""
    return torch.zeros(rows, device=values.device).index_add_(0, row, values.detach().float())
