"""Glancing: hide as much of a text as the network can already guess at once, so that it learns to need fewer steps."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.objectives import _noise as noise
from redraft.objectives import _times as times
from redraft.objectives.masked import Masked, choose
from redraft.types import Batch, Forward, Prepared, Spec


@dataclass(frozen=True)
class Glancing(Masked):
    """Masked diffusion whose noise follows the network (GLAT, Qian et al. 2021, arXiv:2008.07905).

    A row is first guessed whole, everything hidden, without gradient. Of n tokens d are guessed wrong; then
    ``ratio`` d of the n, drawn at random, are shown and the others learnt: a text that is hard as yet is learnt with
    much of it in sight, one that is easy with nothing. The noise is no longer that of the bound: the reported nats
    are, and training minimises the mean over the hidden tokens (``weight = flat``).

    Fields:
        ratio: tokens shown for each one that is guessed wrong. (The paper lowers it from 0.5 to 0.3.)
        share: of the rows that are treated so; the others are those of ``Masked``, which keeps what is needed to
            write in many steps.
    """

    ratio: float = 0.5
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ratio", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"objective glancing: {name} = {getattr(self, name)} must lie between 0 and 1.")
        if self.steps or self.complementary or self.weight != "flat":
            raise UserError(
                "objective glancing: its noise is that of no bound.",
                "Set weight = 'flat', without steps and complementary.",
            )

    def scoring(self) -> Masked:
        return self.plain()

    def ahead(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Generator[Forward, Tensor, Prepared]:
        """What training asks and learns (see ``types.Objective``)."""
        if spec.timed:
            raise UserError("family glancing is for networks that aren't told the time.", "Set timed = false.")
        schedule, rows, where = noise.stretched(spec), batch.ids.shape[0], batch.ids.device
        can = noise.noisable(batch, spec)
        t = self.low + (self.high - self.low) * times.continuous(rows, generator, where)
        count = can.sum(1)
        size = torch.ceil((1 - schedule.alpha(t)) * count)
        glanced = torch.rand(rows, generator=generator, device=generator.device).to(where) < self.share
        blank = self.request(batch, spec, can, torch.ones_like(t), t)
        logits = yield blank.ask
        shown = torch.ceil(self.ratio * _mistakes(logits, blank, can))
        size = torch.where(glanced, count - shown, size).clamp_(min=1).minimum(count)
        weight = -schedule.dalpha(t) * count / size.clamp(min=1)
        return self.request(batch, spec, choose(can, size, generator), weight, t)


def _mistakes(logits: Tensor, blank: Prepared, can: Tensor) -> Tensor:
    """[B] tokens of each row that the likeliest ones ``logits`` [N, V] give are not."""
    guess = logits.index_fill(1, blank.extra["forbidden"], -torch.inf).argmax(1)
    wrong = (guess != blank.target) & ~blank.extra.get("is_length", torch.zeros_like(guess, dtype=torch.bool))
    return torch.zeros(len(can), device=can.device).index_add_(0, blank.row, wrong.float())
