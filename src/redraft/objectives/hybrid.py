"""Hybrid: one network learns to go on left to right and to fill in blocks of masks, in one pass over both texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.errors import UserError
from redraft.objectives import _blocks as blocks
from redraft.objectives._cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.objectives.autoregressive import Autoregressive
from redraft.objectives.block import check_interval
from redraft.types import Attend, Batch, Forward, LossTerms, Prepared, Spec


@dataclass(frozen=True)
class Hybrid:
    """loss = -log p(x) by the chain rule + ``diffusion`` times the loss of block diffusion, per target token.

    The clean stream (``types.Clean``) is causal and predicts its own next tokens: exactly what an autoregressive model
    computes. Each noisy block sees itself whole and the causal keys and values of what came before it, just as when
    it is drafted. So one pass trains both, and one cache serves both (TiDAR, Liu et al. 2025, arXiv:2511.08923).

    Fields:
        block: positions of a block, from the prompt's end on; what is drafted may begin anywhere.
        low: rates of masks are drawn from (low, 1]. A draft begins with nothing but masks, so that heavy noise is
            what matters.
    """

    block: int = 8
    diffusion: float = 0.3
    low: float = 0.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_interval(self.low, 1.0)
        if self.block < 1:
            raise UserError(f"objective hybrid: block {self.block} must be at least 1.")
        if self.diffusion < 0:
            raise UserError(f"objective hybrid: diffusion {self.diffusion} is negative.", "0 turns it off.")

    def scoring(self) -> Autoregressive:
        """The text's likelihood is the chain rule's."""
        return Autoregressive()

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """Ask for hidden tokens of the noisy blocks (nothing shifted), then for every target of the clean text."""
        rows, tokens, ends = batch.ids.shape[0], int(batch.target.sum()), batch.valid.sum(1)
        attend = Attend("block", self.block)
        full = blocks.completed(batch, attend, spec)
        hidden, weight = blocks.hide(full.target, blocks.stages(full, attend, spec), self.low, 1.0, generator)
        pos = torch.arange(full.ids.shape[1], device=full.ids.device).expand_as(full.ids)
        exact = torch.where(batch.target, pos[:, : batch.ids.shape[1]], -1)
        chosen, own = hidden.flatten().nonzero().squeeze(1), batch.target.flatten().nonzero().squeeze(1)
        return Prepared(
            ask=Forward(
                x=full.ids.masked_fill(hidden, spec.mask_id),
                pos=torch.where(full.valid, pos, -1),
                want=torch.where(hidden, pos, -1),
                attend=attend,
                prompt=batch.prompt if spec.isolate_prompt else None,
                shift=0,
                clean=blocks.beside(full, spec, spec.attend, ends, exact),
            ),
            target=torch.cat([full.ids.flatten()[chosen], batch.ids.flatten()[own]]),
            weight=torch.cat(
                [self.diffusion * weight.flatten()[chosen].float(), torch.ones(len(own)).to(weight.device)]
            ),
            row=torch.cat([chosen // full.ids.shape[1], own // batch.ids.shape[1]]),
            rows=rows,
            tokens=tokens,
            extra={
                "forbidden": torch.tensor(sorted({*spec.forbidden, spec.mask_id}), device=batch.ids.device),
                "exact": torch.arange(len(chosen) + len(own), device=batch.ids.device) >= len(chosen),
            },
        )

    def loss(self, logits: torch.Tensor, prepared: Prepared) -> LossTerms:
        """Both losses, and the exact nats of each row's target. Logits [N, V] are consumed."""
        nll, train = cross_entropy(logits, prepared.target, prepared.extra["forbidden"], self.label_smoothing)
        return LossTerms(
            loss=(train * prepared.weight).sum() / max(prepared.tokens, 1),
            nats=per_row(nll * prepared.extra["exact"], prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=False,
        )
