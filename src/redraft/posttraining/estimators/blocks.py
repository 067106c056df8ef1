"""Blocks: the bound of block diffusion, every block with a noise level of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.objectives.block import Block
from redraft.objectives.masked import MaskedBatch
from redraft.objectives.shared import blocks as blocks
from redraft.options import check, setting
from redraft.posttraining.estimators.base import Estimator
from redraft.posttraining.shared.copies import repeated, together
from redraft.types import Batch, Spec


@dataclass(frozen=True)
class Blocks(Estimator):
    """The bound of BD3-LM (``objectives.block``), whose levels are stratified over the blocks of the batch."""

    draws: int = setting(2, "Noise levels of each block.", least=1)

    of = Block

    def __post_init__(self) -> None:
        check(self)

    def rows(self, tokens: int) -> int:
        """One for each draw, with a noisy and a clean stream."""
        return 2 * self.draws

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> MaskedBatch:
        attention = spec.network.attention
        many, source = repeated(batch, self.draws)
        many = blocks.complete_blocks(many, attention, spec)
        hidden, weight = blocks.hide(many.target, blocks.groups(many, attention, spec), 0.0, 1.0, generator)
        prepared = Block().request(many, spec, hidden, weight, int(batch.target.sum()))
        return together(prepared, source, len(batch.ids), 1 / self.draws)
