"""Anneal: from causal attention to the family's own, pair by pair of positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.curricula.base import Curriculum, P
from redraft.errors import UserError
from redraft.options import check, setting
from redraft.types import AttentionPattern, CleanStream, Forward, QueryMask


@dataclass(frozen=True)
class Anneal(Curriculum):
    """Attention-mask annealing (DiffuLLaMA, Gong et al. 2024, arXiv:2410.17891, section 3.3).

    A position attends to every position that causal attention allows. It attends to each other position that the
    family's attention allows with probability ``progress / until``, sampled anew for every pair, row and update. At
    progress 0 attention is causal; from ``until`` on it is the family's own. ``until = 0`` is the abrupt change.

    Until then every row needs its own mask: attention is dense, without the fast causal kernel.
    """

    until: float = setting(0.5, "Share of training after which attention is the family's own.", least=0, most=1)

    def __post_init__(self) -> None:
        check(self)

    def adapt(self, prepared: P, progress: float, generator: torch.Generator) -> P:
        """The batch with a mask of its own for every row, until ``until``.

        Raises:
            UserError: the objective adds a clean copy of the sequence.
        """
        if progress >= self.until:
            return prepared
        if prepared.request.find(CleanStream) is not None:
            raise UserError(
                "Curriculum 'anneal' does not support objectives that add a clean copy of the sequence.",
                "Use the curriculum 'blocks'.",
            )
        mask = annealed_mask(prepared.request, progress / self.until, generator)
        return replace(prepared, request=prepared.request.with_extra(QueryMask(mask)))


def annealed_mask(request: Forward, share: float, generator: torch.Generator) -> Tensor:
    """[R, Q, Q] bool: causal attention, plus a random ``share`` of the other pairs that the request allows."""
    rows, width = request.positions.shape
    own, causal = _attends(request), _attends(replace(request, attention=AttentionPattern("causal")))
    drawn = torch.rand(rows, width, width, generator=generator, device=generator.device).to(own.device) < share
    padding = (request.positions < 0)[:, :, None]  # attends to everything, so that no row of the mask is empty
    return own & (causal | drawn) | padding


def _attends(request: Forward) -> Tensor:
    """[R, Q, Q] bool: the pairs (query, key) that a request's attention allows."""
    group = request.group(request.positions)
    return (group[:, None] <= group[:, :, None]) & (request.positions >= 0)[:, None]
