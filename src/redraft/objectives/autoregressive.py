"""Autoregressive: the chain rule, -log p(x) = sum_i -log p(x_i | x_<i). Exact, with one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.objectives.base import Objective
from redraft.objectives.shared.cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec


@dataclass(frozen=True)
class Autoregressive(Objective[Prepared]):
    """Next-token cross-entropy (Bengio et al. 2003; Radford et al. 2019). It is deterministic.

    ``label_smoothing`` changes the loss that is minimised, but not the reported nats.
    """

    label_smoothing: float = 0.0

    additive = True

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """Request every target position [B, L]. The network's shift of 1 predicts position p from p - 1 and before."""
        rows, length = batch.ids.shape
        pos = torch.arange(length, device=batch.ids.device).expand(rows, length)
        chosen = batch.target.flatten().nonzero().squeeze(1)
        return Prepared(
            request=Forward(
                tokens=batch.ids,
                positions=torch.where(batch.valid, pos, -1),
                targets=torch.where(batch.target, pos, -1),
                attention=spec.network.attention,
                prompt=batch.prompt if spec.network.prompt_encoder else None,
            ),
            target=batch.ids.flatten()[chosen],
            weight=torch.ones(chosen.shape[0], device=chosen.device),
            row=chosen // length,
            rows=rows,
            tokens=chosen.shape[0],
            forbidden=torch.tensor(spec.tokens.forbidden, dtype=torch.long, device=chosen.device),
        )

    def loss(self, logits: torch.Tensor, prepared: Prepared) -> LossTerms:
        """Exact nats of each row's target. The logits [N, V] are overwritten."""
        nll, train = cross_entropy(logits, prepared.target, prepared.forbidden, self.label_smoothing)
        return LossTerms(
            loss=train.sum() / max(prepared.tokens, 1),
            nats=per_row(nll, prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=False,
        )
