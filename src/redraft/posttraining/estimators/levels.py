"""Levels: several noise levels of each text, with one mask each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.objectives.masked import Masked, MaskedBatch, choose_positions, mask_count
from redraft.objectives.shared.noise import noisable
from redraft.options import check, setting
from redraft.posttraining.shared.copies import OfMasks, repeated, stratified, together
from redraft.types import Batch, Spec


@dataclass(frozen=True)
class Levels(OfMasks):
    """The bound of LLaDA 1.5 (VRPO, arXiv:2505.19223, eq. 14) for a text of n tokens, with l hidden ones:

        E_{l ~ U{1..n}} E_{|S| = l} [ (n / l) sum_{i in S} -log p(y_i | x, y outside S) ]

    With a fixed number of passes its variance is least with one mask at each level (law of total variance). The levels
    of one text are stratified, and those of different texts independent.
    """

    draws: int = setting(4, "Noise levels of each text; the variance falls faster than 1 / draws.", least=1)

    def __post_init__(self) -> None:
        check(self)

    def rows(self, tokens: int) -> int:
        """One for each level."""
        return self.draws

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> MaskedBatch:
        rows = len(batch.ids)
        many, source = repeated(batch, self.draws)
        can = noisable(many, spec)
        t, count = stratified(rows, self.draws, generator, can.device), can.sum(1)
        size = mask_count(t, count)
        hidden = choose_positions(can, size, generator)
        prepared = Masked().request(many, spec, hidden, count / size.clamp(min=1), t)
        return together(prepared, source, rows, 1 / self.draws)
