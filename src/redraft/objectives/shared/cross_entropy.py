"""Cross-entropy at the target positions, used by all objectives that predict tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError

_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 27}  # logits per chunk; on CPUs 1 MB in float32, which fits a core's cache


def cross_entropy(
    logits: Tensor, target: Tensor, forbidden: Tensor, smoothing: float = 0.0, unrestricted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``-log softmax(logits)[target]``, where ``forbidden`` ids have probability 0.

    The logits are overwritten: their gradient, if needed, replaces them in memory in the same dtype, while each chunk
    of rows is still in the cache. Autograd (copy to float32, log-softmax, zeros, scatter, softmax) writes N x V numbers
    six times, this function twice. All computations are in float32.

    Args:
        logits: [N, V]. target: [N], never forbidden. forbidden: [F] ids.
        smoothing: label smoothing a (Szegedy et al. 2016, arXiv:1512.00567): the target gets probability 1 - a, and a
            is shared by all allowed ids.
        unrestricted: [N] bool, rows in which every id is allowed and no smoothing applies; None: no such rows.
    Returns:
        [N] float32 nats, without smoothing and gradient; and [N] the smoothed loss to minimise.
    """
    logits = logits.clone() if logits.is_leaf and logits.requires_grad else logits  # don't overwrite a leaf
    nll, loss = _CrossEntropy.apply(logits, target, forbidden, smoothing, unrestricted)
    return nll, loss


class _CrossEntropy(torch.autograd.Function):
    """With z the logits, A allowed ids and p their softmax: loss = -log p[target] + a (z[target] - mean_A z), and

    dloss/dz = p - (1 - a) [target] - a / |A| on the allowed ids, 0 on the others.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, forbidden: Tensor, smoothing: float, unrestricted: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        count, width = logits.shape
        needs_gradient = ctx.needs_input_grad[0]
        nll, loss = logits.new_empty(count, dtype=torch.float32), logits.new_empty(count, dtype=torch.float32)
        ones = torch.ones(count, device=logits.device)
        restricted = ones if unrestricted is None else (~unrestricted).float()  # rows with forbidden ids
        size = max(1, _CHUNK.get(logits.device.type, _CHUNK["cuda"]) // width)
        for begin in range(0, count, size):
            part = slice(begin, begin + size)
            own, row_restricted = target[part, None], restricted[part, None]
            z = logits[part].float()
            disallowed = torch.where(row_restricted > 0, -torch.inf, z[:, forbidden])
            gap = _above_mean(z, own, forbidden)[:, None] if smoothing else None
            z.index_copy_(1, forbidden, disallowed)
            at = z.gather(1, own)
            top = z.amax(1, keepdim=True)
            p = z.sub_(top).exp_()
            total = p.sum(1, keepdim=True)
            exact = total.log() + top - at
            nll[part] = exact[:, 0]
            loss[part] = (exact if gap is None else exact + smoothing * row_restricted * gap)[:, 0]
            if needs_gradient:
                p.div_(total)
                amount = smoothing * row_restricted
                if smoothing:
                    p.sub_(amount / (width - forbidden.shape[0]))
                    p.index_copy_(1, forbidden, p[:, forbidden].masked_fill(row_restricted > 0, 0.0))
                p.scatter_add_(1, own, amount - 1.0)
                if p.dtype != logits.dtype:  # otherwise p shares the memory of the logits
                    logits[part] = p
        ctx.gradient = logits if needs_gradient else None
        ctx.mark_non_differentiable(nll)
        return nll, loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None  # overwritten below: a second backward pass is an error
        return gradient.mul_(grads[1].to(gradient.dtype)[:, None]), None, None, None, None


def _above_mean(z: Tensor, target: Tensor, forbidden: Tensor) -> Tensor:
    """Logit of the target minus the mean logit of the allowed ids -> [N]; smoothing adds a times this to the loss."""
    allowed = z.sum(1) - z[:, forbidden].sum(1)
    return z.gather(1, target)[:, 0] - allowed / (z.shape[1] - forbidden.shape[0])


def check_smoothing(amount: float) -> None:
    """Check the amount of label smoothing.

    Raises:
        UserError: it is not in [0, 1).
    """
    if not 0 <= amount < 1:
        raise UserError(
            f"label_smoothing = {amount} must be at least 0 and below 1.", "Use 0 to turn it off; 0.1 is usual."
        )


def per_row(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sum ``values`` [N] over the positions of each batch row, ``row`` [N] -> [rows] float32, without gradient."""
    return torch.zeros(rows, device=values.device).index_add_(0, row, values.detach().float())
