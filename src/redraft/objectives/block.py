"""Block diffusion: the chain rule over blocks, masked diffusion within each; one pass over noisy and clean text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.objectives import _blocks as blocks
from redraft.objectives._cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec


@dataclass(frozen=True)
class Block:
    """The bound of BD3-LM (Arriola et al. 2025, arXiv:2503.09573, eq. 7). With blocks x^1 .. x^K and x_r^b the block b
    of which a share r is masked,

        -log p(x) <= sum_b E_r [ 1/r sum_{i in b masked} -log p_i(x_i | x_r^b, x^{<b}) ],   r uniform on (0, 1]

    One block is masked diffusion; blocks of one token are the chain rule, exactly, whatever is drawn. The blocks are
    those of ``spec.attend``. All of them are trained in one pass over the noisy text and the clean one beside it
    (``types.Clean``), which is left out where nobody would see it.

    Fields:
        low, high: training draws r from (low, high] alone. Very light and very heavy noise make the loss vary most;
            the bound that is reported is always that of (0, 1].
        search: take, at each validation, the interval of ``INTERVALS`` in which the loss varies least.
        weight: what is minimised. ``bound``: the terms above. ``flat``: the mean over the masked tokens of the batch.

    **Ends.** An answer goes on with end-of-texts to the end of its last block; their cost is part of the bound.
    """

    low: float = 0.0
    high: float = 1.0
    search: bool = False
    weight: Literal["bound", "flat"] = "bound"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_interval(self.low, self.high)

    def scoring(self) -> Block:
        """The objective whose nats are the bound: every noise level counts."""
        return replace(self, low=0.0, high=1.0)

    def candidates(self) -> Sequence[Block]:
        """Objectives among which training takes the one that varies least; none unless it is to ``search``."""
        return [replace(self, low=low, high=high) for low, high in INTERVALS] if self.search else []

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """Draw noise for every block of ``batch`` and ask for what it hid. Works on the batch's device."""
        tokens = int(batch.target.sum())
        batch = blocks.completed(batch, spec.attend, spec)
        stage = blocks.stages(batch, spec.attend, spec)
        hidden, weight = blocks.hide(batch.target, stage, self.low, self.high, generator)
        return self.request(batch, spec, hidden, weight, tokens)

    def request(self, batch: Batch, spec: Spec, hidden: Tensor, weight: Tensor, tokens: int) -> Prepared:
        """Ask for the ``hidden`` [B, L] tokens, each of which counts its ``weight`` [B, L] in the bound."""
        rows, length = batch.ids.shape
        pos = torch.arange(length, device=batch.ids.device).expand(rows, length)
        stage = blocks.stages(batch, spec.attend, spec)
        last = stage.masked_fill(~batch.valid, -1).amax(1, keepdim=True)
        clean = blocks.beside(batch, spec, spec.attend, (stage < last).sum(1))  # the last block is never looked back on
        chosen = hidden.flatten().nonzero().squeeze(1)
        bound = weight.flatten()[chosen].float()
        flat = torch.full_like(bound, tokens / max(len(chosen), 1))
        return Prepared(
            ask=Forward(
                x=batch.ids.masked_fill(hidden, spec.mask_id),
                pos=torch.where(batch.valid, pos, -1),
                want=torch.where(hidden, pos, -1),
                attend=spec.attend,
                prompt=batch.prompt if spec.isolate_prompt else None,
                clean=clean,
            ),
            target=batch.ids.flatten()[chosen],
            weight=bound if self.weight == "bound" else flat,
            row=chosen // length,
            rows=rows,
            tokens=tokens,
            extra={
                "forbidden": torch.tensor(sorted({*spec.forbidden, spec.mask_id}), device=batch.ids.device),
                "bound": bound,
            },
        )

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """The loss to minimise, and the bound of each row in nats. The logits [N, V] are consumed."""
        nll, train = cross_entropy(logits, prepared.target, prepared.extra["forbidden"], self.label_smoothing)
        return LossTerms(
            loss=(train * prepared.weight).sum() / max(prepared.tokens, 1),
            nats=per_row(nll * prepared.extra["bound"], prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=True,
        )


# Those of the paper's grid (widths 0.5 to 0.9), and no clipping.
INTERVALS = ((0.0, 1.0), (0.0, 0.5), (0.3, 0.8), (0.5, 1.0), (0.2, 0.8), (0.1, 0.9), (0.45, 0.95), (0.05, 0.95))


def check_interval(low: float, high: float) -> None:
    """Raise UserError unless (low, high] is a part of (0, 1]."""
    if not 0 <= low < high <= 1:
        raise UserError(f"noise from {low} to {high} is not an interval of masking rates.", "0 and 1 is all of them.")
