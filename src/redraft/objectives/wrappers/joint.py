"""Joint training: the loss of a masked model plus next-token prediction on a clean stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from redraft.errors import UserError
from redraft.objectives.base import Objective
from redraft.objectives.masked import Masked, MaskedBatch
from redraft.objectives.shared import blocks as blocks
from redraft.objectives.shared.cross_entropy import cross_entropy
from redraft.types import AttentionPattern, Batch, LossTerms, Prepared, Spec


@dataclass
class JointBatch(Prepared):
    """A masked batch with the clean stream in its request."""

    inner: MaskedBatch

    def part(self, begin: int, end: int) -> Self:
        """As ``Prepared.part``. The targets of ``inner`` come first, and only they have a weight and a row."""
        count = len(self.inner.target)
        return replace(super().part(begin, end), inner=self.inner.part(min(begin, count), min(end, count)))


@dataclass(frozen=True)
class Joint(Objective[JointBatch]):
    """loss = loss of ``inner`` + ``autoregressive`` times -log p(x) by the chain rule, per target token.

    For autoregressive models that learn to denoise and keep their next-token predictions (as in the hybrid losses of
    Nemotron's diffusion models and TiDAR, arXiv:2511.08923). The clean tokens are a second, causal stream of the same
    forward pass (``types.CleanStream``), with the shift of the model. The nats are those of ``inner``.
    """

    inner: Masked
    autoregressive: float

    additive = True

    def __post_init__(self) -> None:
        if self.inner.complementary:
            raise UserError(
                "complementary and autoregressive can't be combined.", "Leave out complementary or autoregressive."
            )

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> JointBatch:
        if spec.network.shift != 1:
            raise UserError(
                "An autoregressive loss needs a model with shift 1.",
                "Set the family's shift to 1, or autoregressive to 0.",
            )
        prepared = self.inner.prepare(batch, spec, generator)
        length, ends = batch.ids.shape[1], batch.valid.sum(1)
        pos = torch.arange(length, device=batch.ids.device).expand_as(batch.ids)
        clean = blocks.clean_stream(batch, spec, AttentionPattern("causal"), ends, torch.where(batch.target, pos, -1))
        own = batch.target.flatten().nonzero().squeeze(1)
        return JointBatch(
            request=prepared.request if clean is None else prepared.request.with_extra(clean),
            target=torch.cat([prepared.target, batch.ids.flatten()[own]]),
            weight=prepared.weight,
            row=prepared.row,
            rows=prepared.rows,
            tokens=prepared.tokens,
            forbidden=prepared.forbidden,
            inner=prepared,
        )

    def loss(self, logits: torch.Tensor, prepared: JointBatch) -> LossTerms:
        """The loss to minimise and the nats of the inner objective for each row. The logits [N, V] are overwritten."""
        count = len(prepared.inner.target)
        noisy, clean = logits.split([count, len(logits) - count])
        terms = self.inner.loss(noisy.clone(), prepared.inner)
        own = prepared.target[count:]
        _, train = cross_entropy(clean.clone(), own, prepared.forbidden, self.inner.label_smoothing)
        return replace(terms, loss=terms.loss + self.autoregressive * train.sum() / max(prepared.tokens, 1))
