"""Edit: a sequence becomes another one by insertions, deletions and substitutions, along an alignment of the two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.noise.uniform import Uniform

BLANK, END = -1, -2  # an aligned position without a token, and a position after the end of the alignment


@dataclass(frozen=True)
class Edit(Uniform):
    """The process of Edit Flows (Havasi et al. 2025, arXiv:2506.09018), with t = 0 clean and t = 1 noise.

    The source x_0 and the text x_1 are aligned with blanks: z_0 and z_1 have the same length. At each aligned position,
    independently,

        q(z_t = z_1) = alpha(t),    q(z_t = z_0) = 1 - alpha(t)

    and x_t is z_t without its blanks. A position that still holds z_0 is an edit that remains to be made: an insertion
    if z_0 is blank, a deletion if z_1 is blank, otherwise a substitution. For a single position with a random source
    token this is ``Uniform``; the free positions of a canvas start as random tokens.
    """

    def mix(self, z0: Tensor, z1: Tensor, alpha: Tensor, generator: torch.Generator) -> Tensor:
        """Sample z_t [B, Z] from z_0 and z_1 [B, Z] at ``alpha`` [B]."""
        draw = torch.rand(z0.shape, generator=generator, device=generator.device, dtype=torch.float64)
        return torch.where(draw.to(z0.device) < alpha[:, None], z1, z0)


def align(x0: Tensor, n0: Tensor, x1: Tensor, n1: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest alignment of two sequences per row (Needleman and Wunsch 1970, doi:10.1016/0022-2836(70)90057-4).

    Every edit costs 1, so that the number of positions that differ is the Levenshtein distance. Among alignments of
    equal cost, from the right, a substitution is preferred to a deletion, and a deletion to an insertion.

    Args:
        x0: [B, N] ids. n0: [B] their number in each row. x1: [B, M] ids. n1: [B] their number.
    Returns:
        Two tensors [B, N + M] of ids, with ``BLANK`` where an alignment has no token, and ``END`` after its end.
    """
    (rows, most), other, where = x0.shape, x1.shape[1], x0.device
    column = torch.arange(other + 1, device=where)
    cost = [column.expand(rows, -1)]  # cost[i][b, j]: of aligning x0[:i] with x1[:j]
    for index in range(most):
        step = torch.empty_like(cost[0]).copy_(cost[-1] + 1)
        differs = (x1 != x0[:, index : index + 1]).long()
        step[:, 1:] = torch.minimum(step[:, 1:], cost[-1][:, :-1] + differs)
        cost.append((step - column).cummin(1).values + column)  # insertions after the best earlier column
    table = torch.stack(cost)
    row = torch.arange(rows, device=where)
    i, j = n0.clone(), n1.clone()
    back = torch.full((2, rows, most + other), END, device=where)
    for cell in range(most + other):
        here = table[i, row, j]
        up, left = (i - 1).clamp(min=0), (j - 1).clamp(min=0)
        old = x0.gather(1, up[:, None])[:, 0] if most else torch.full_like(i, BLANK)
        new = x1.gather(1, left[:, None])[:, 0] if other else torch.full_like(j, BLANK)
        both = (i > 0) & (j > 0) & (table[up, row, left] + (old != new) == here)
        gone = ~both & (i > 0) & (table[up, row, j] + 1 == here)
        come = ~both & ~gone & (j > 0)
        back[0, :, cell] = torch.where(both | gone, old, torch.where(come, BLANK, END))
        back[1, :, cell] = torch.where(both | come, new, torch.where(gone, BLANK, END))
        i, j = i - (both | gone).long(), j - (both | come).long()
    count = (back[0] != END).sum(1, keepdim=True)
    order = count - 1 - torch.arange(most + other, device=where)  # the alignment was traced from its end
    z0, z1 = (torch.where(order >= 0, part.gather(1, order.clamp(min=0)), END) for part in back)
    return z0, z1
