"""Sums over the vocabulary of log(a p + c), which the bounds of uniform noise need in addition to a cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 27}  # as in ``cross_entropy``: a chunk stays in the cache


def mixture(
    logits: Tensor, forbidden: Tensor, scale: Tensor, floor: Tensor, at: Tensor, unrestricted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``sum_y log(scale p_y + floor)`` and ``log p`` at some ids, with p the softmax without the forbidden ids.

    One pass over the logits, chunk by chunk. The logits are overwritten by p, and in the backward pass p is overwritten
    by the gradient. Autograd would keep four copies of N x V numbers.

    Args:
        logits: [N, V]. forbidden: [F] ids. scale, floor: [N], floor > 0. at: [N, K] ids.
        unrestricted: [N] bool, rows in which every id is allowed; None: no such rows.
    Returns:
        [N] the sum over the allowed ids, and [N, K] log-probabilities, both float32.
    """
    logits = logits.clone() if logits.is_leaf and logits.requires_grad else logits  # don't overwrite a leaf
    total, log_p = _Mixture.apply(logits, forbidden, scale.float(), floor.float(), at, unrestricted)
    return total, log_p


class _Mixture(torch.autograd.Function):
    """d sum / dz_k = p_k (g_k - sum_y p_y g_y), g = scale / (scale p + floor);  d log p_i / dz_k = [i = k] - p_k."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        forbidden: Tensor,
        scale: Tensor,
        floor: Tensor,
        at: Tensor,
        unrestricted: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        count, width = logits.shape
        total = logits.new_empty(count, dtype=torch.float32)
        log_p = logits.new_empty(at.shape, dtype=torch.float32)
        ones = torch.ones(count, dtype=torch.bool, device=logits.device)
        restricted = ones if unrestricted is None else ~unrestricted
        kept = torch.empty_like(logits, dtype=torch.float32) if logits.dtype != torch.float32 else logits
        for part in _parts(logits):
            z = logits[part].float()
            z.index_copy_(1, forbidden, torch.where(restricted[part, None], -torch.inf, z[:, forbidden]))
            top = z.amax(1, keepdim=True)
            here = z.gather(1, at[part]) - top
            p = z.sub_(top).exp_()
            norm = p.sum(1, keepdim=True)
            log_p[part] = here - norm.log()
            p.div_(norm)
            sums = torch.addcmul(floor[part, None], p, scale[part, None]).log_().sum(1)
            total[part] = sums - len(forbidden) * restricted[part] * floor[part].log()
            if kept is not logits:
                kept[part] = p
        ctx.save_for_backward(scale, floor, at)
        ctx.p, ctx.dtype = kept, logits.dtype
        return total, log_p

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        scale, floor, at = ctx.saved_tensors
        z, ctx.p = ctx.p, None  # overwritten below: a second backward pass is an error
        for part in _parts(z):
            p, a, c = z[part], scale[part, None], floor[part, None]
            g = torch.addcmul(c, p, a).reciprocal_().mul_(grads[0][part, None] * a)
            mean = (p * g).sum(1, keepdim=True) + grads[1][part].sum(1, keepdim=True)
            p.mul_(g.sub_(mean))
            p.scatter_add_(1, at[part], grads[1][part])
        return z.to(ctx.dtype), None, None, None, None, None


def _parts(logits: Tensor) -> list[slice]:
    count, width = logits.shape
    size = max(1, _CHUNK.get(logits.device.type, _CHUNK["cuda"]) // width)
    return [slice(begin, begin + size) for begin in range(0, count, size)]
