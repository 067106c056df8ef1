"""Autoregressive: the chain rule, -log p(x) = sum_i -log p(x_i | x_<i). Exact, one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.objectives._cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec


@dataclass(frozen=True)
class Autoregressive:
    """Next-token cross-entropy (Bengio et al. 2003; Radford et al. 2019). Nothing is drawn, so nothing is random.

    ``label_smoothing`` changes the loss that is minimised, never the reported nats.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """Ask for every target position. The network's shift (1) makes position p stand on p - 1 and before."""
        rows, length = batch.ids.shape
        pos = torch.arange(length, device=batch.ids.device).expand(rows, length)
        chosen = batch.target.flatten().nonzero().squeeze(1)
        return Prepared(
            ask=Forward(
                x=batch.ids,
                pos=torch.where(batch.valid, pos, -1),
                want=torch.where(batch.target, pos, -1),
                attend=spec.attend,
                prompt=batch.prompt if spec.isolate_prompt else None,
            ),
            target=batch.ids.flatten()[chosen],
            weight=torch.ones(chosen.shape[0], device=chosen.device),
            row=chosen // length,
            rows=rows,
            tokens=chosen.shape[0],
            extra={"forbidden": torch.tensor(spec.forbidden, dtype=torch.long, device=chosen.device)},
        )

    def loss(self, logits: torch.Tensor, prepared: Prepared) -> LossTerms:
        """Exact nats of each row's target. Logits [N, V] are consumed."""
        nll, train = cross_entropy(logits, prepared.target, prepared.extra["forbidden"], self.label_smoothing)
        return LossTerms(
            loss=train.sum() / max(prepared.tokens, 1),
            nats=per_row(nll, prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=False,
        )
