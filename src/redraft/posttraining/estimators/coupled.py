"""Coupled: a mask and its complement, so that every token is predicted once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.objectives.masked import Masked, MaskedBatch, choose_positions
from redraft.objectives.shared.noise import noisable
from redraft.options import check, setting
from redraft.posttraining.shared.copies import OfMasks, repeated, stratified, together
from redraft.types import Batch, Spec


@dataclass(frozen=True)
class Coupled(OfMasks):
    """The sequence ELBO of ESPO (arXiv:2512.03759), with the coupled masks of DiffuCoder (arXiv:2506.20639). For a
    text of n tokens, k is uniform on 0..n, k random tokens S are hidden in one copy and the others in a second one:

        1/2 [ (n + 1) / k sum_{i in S} -log p(y_i | rest) + (n + 1) / (n - k) sum_{i not in S} -log p(y_i | S) ]

    It is an unbiased estimate of the same bound as ``levels``, and every token has a gradient in every draw.
    """

    draws: int = setting(1, "Pairs of masks of each text.", least=1)

    def __post_init__(self) -> None:
        check(self)

    def rows(self, tokens: int) -> int:
        """Two for each draw."""
        return 2 * self.draws

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> MaskedBatch:
        rows = len(batch.ids)
        many, source = repeated(batch, self.draws)
        can = noisable(many, spec)
        count = can.sum(1)
        t = stratified(rows, self.draws, generator, can.device)
        size = torch.ceil(t * (count + 1)) - 1  # uniform on 0..n
        hidden = choose_positions(can, size, generator)
        both = torch.cat([hidden, can & ~hidden])
        weight = (count + 1).repeat(2) / both.sum(1).clamp(min=1)
        again, source = repeated(batch, 2 * self.draws)
        prepared = Masked().request(again, spec, both, weight, t.repeat(2))
        return together(prepared, source, rows, 1 / (2 * self.draws))
