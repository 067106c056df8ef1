"""Draft: predict the tokens after random positions in one pass, from the target's reading of the text before them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.objectives.base import Objective
from redraft.objectives.shared.cross_entropy import cross_entropy, per_row
from redraft.types import Batch, DraftBlocks, Forward, LossTerms, Prepared, Spec


@dataclass
class DraftBatch(Prepared):
    """Blocks behind the anchors of a batch."""

    share: Tensor  # [N] weight of each target position in the nats of its row


@dataclass(frozen=True)
class Draft(Objective[DraftBatch]):
    """loss = sum_k w_k -log q(x_{a+k} | x_{<=a}), w_k = exp(-(k - 1) / decay), over blocks behind anchors a (DFlash,
    Chen et al. 2026, arXiv:2602.06036).

    Anchors are random targets, so many that all blocks together are as long as the targets. A block of B positions has
    its anchor and B - 1 masks, some of which may lie beyond the end of the text: they have no target, but they are
    there, as in drafting. The size is drawn for each batch from block, block / 2 and block / 4, so that one drafter
    drafts several sizes. An early token has more weight, since those after a wrong one are lost. The nats of a row are
    those of its blocks' tokens, scaled to its number of targets.

    Fields:
        block: most positions of a block.
        decay: 0 is 1 + 3 B / 8 (the paper has 7, 5 and 4 for blocks of 16, 10 and 8).
    """

    block: int = 16
    decay: float = 0.0

    additive = True

    def __post_init__(self) -> None:
        if self.block < 2:
            raise UserError(f"objective draft: block = {self.block} must be at least 2.")
        if self.decay < 0:
            raise UserError(f"objective draft: decay = {self.decay} must be at least 0.", "Use 0 for the usual one.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of block that are trained."""
        return tuple(sorted({max(2, self.block // part) for part in (1, 2, 4)}, reverse=True))

    def weights(self, size: int) -> Tensor:
        """[size - 1] w_1, w_2 ... of the tokens behind an anchor."""
        return torch.exp(-torch.arange(size - 1) / (self.decay or 1 + 3 * size / 8))

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> DraftBatch:
        """Request the masks of blocks behind random anchors."""
        size = self.sizes[int(torch.randint(len(self.sizes), (), generator=generator))]
        rows, length = batch.ids.shape
        ids, end = batch.ids, batch.valid.sum(1)
        following = torch.cat([batch.target[:, 1:], torch.zeros_like(batch.target[:, :1])], 1)
        anchors = _choose(batch.target & following, size, generator)
        position = anchors[:, :, None] + torch.arange(1, size)
        real = (anchors >= 0)[:, :, None] & (position < end[:, None, None])
        real &= batch.target.gather(1, position.clamp(max=length - 1).flatten(1)).view_as(real)
        row, _, number = real.nonzero(as_tuple=True)
        weight = self.weights(size)[number]
        tokens, drawn = int(batch.target.sum()), real.flatten(1).sum(1)
        return DraftBatch(
            request=Forward(
                tokens=ids,
                positions=torch.where(batch.valid, torch.arange(length), -1),
                targets=torch.where(real, position, -1).flatten(1),
                attention=spec.network.attention,
                prompt=batch.prompt if spec.network.prompt_encoder else None,
                extra=(DraftBlocks(anchors, size),),
            ),
            target=ids[row, position[real]],
            weight=weight * (tokens / weight.sum().clamp(min=1e-9)),
            row=row,
            rows=rows,
            tokens=tokens,
            forbidden=torch.tensor(spec.tokens.forbidden, dtype=torch.int64),
            share=(batch.target.sum(1) / drawn.clamp(min=1))[row],
        )

    def loss(self, logits: Tensor, prepared: DraftBatch) -> LossTerms:
        """The weighted mean over the masks. The logits [N, V] are overwritten."""
        nll, train = cross_entropy(logits, prepared.target, prepared.forbidden)
        return LossTerms(
            loss=(train * prepared.weight).sum() / max(prepared.tokens, 1),
            nats=per_row(nll * prepared.share, prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=False,
        )


def _choose(can: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """[R, A] random positions where ``can`` [R, L] is true, in order, one for every ``size`` - 1; -1 is none."""
    number = can.sum(1)
    count = torch.ceil(number / (size - 1)).long()
    noise = torch.rand(can.shape, generator=generator).masked_fill(~can, 2.0)
    rank = noise.argsort(1).argsort(1)
    chosen = can & (rank < count[:, None])
    width = max(1, int(count.max()))
    column = torch.sort((~chosen).to(torch.int8), dim=1, stable=True).indices[:, :width]
    return torch.where(torch.arange(width) < count[:, None], column, -1)
