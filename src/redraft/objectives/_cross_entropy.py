"""Cross-entropy at the wanted positions: the one piece that all token objectives share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.errors import UserError


def cross_entropy(
    logits: Tensor, target: Tensor, forbidden: Tensor, smoothing: float = 0.0, free: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``-log softmax(logits)[target]`` where the ``forbidden`` ids have no probability.

    The logits are consumed: their forbidden columns are overwritten with -inf, which costs N x F writes where a
    masked copy costs N x V. The gradient there is exactly zero, because softmax is.

    Args:
        logits: [N, V]. target: [N], never forbidden. forbidden: [F] ids.
        smoothing: label smoothing a (Szegedy et al. 2016, arXiv:1512.00567): the target gets 1 - a, and a is
            shared by all allowed ids.
        free: [N] bool, rows in which every id is allowed and nothing is smoothed; None for no such row.
    Returns:
        [N] float32 nats, exact; and [N] the smoothed loss to minimise (the same tensor without smoothing).
    """
    logits = logits.clone() if logits.is_leaf and logits.requires_grad else logits
    gap = _target_above_mean(logits.float(), target, forbidden) if smoothing else None
    with torch.no_grad():
        columns = logits.detach()
        if free is None:
            columns.index_fill_(1, forbidden, float("-inf"))
        else:
            columns[(~free).nonzero(), forbidden] = float("-inf")
    nll = F.cross_entropy(logits.float(), target, reduction="none")
    if gap is None:
        return nll, nll
    return nll, nll + smoothing * (gap if free is None else gap.masked_fill(free, 0.0))


def _target_above_mean(logits: Tensor, target: Tensor, forbidden: Tensor) -> Tensor:
    """Logit of the target minus the mean logit of the allowed ids [N]: what smoothing adds per unit of a.

    Indexing rather than gather, which would keep the logits that are about to be overwritten.
    """
    allowed = logits.sum(1) - logits[:, forbidden].sum(1)
    row = torch.arange(logits.shape[0], device=logits.device)
    return logits[row, target] - allowed / (logits.shape[1] - forbidden.shape[0])


def check_smoothing(amount: float) -> None:
    """Raise UserError unless ``amount`` is a share of probability below one."""
    if not 0 <= amount < 1:
        raise UserError(f"label_smoothing {amount} is not in [0, 1).", "0 turns it off; 0.1 is usual.")


def per_row(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sum ``values`` [N] by batch row ``row`` [N] -> [rows] float32, without gradient."""
    return torch.zeros(rows, device=values.device).index_add_(0, row, values.detach().float())
