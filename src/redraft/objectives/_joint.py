"""Two skills at once: what a masked model minimises, and next-token prediction on the clean text beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from redraft.errors import UserError
from redraft.objectives import _blocks as blocks
from redraft.objectives._cross_entropy import cross_entropy
from redraft.objectives.masked import Masked
from redraft.types import Attend, Batch, LossTerms, Prepared, Spec


@dataclass(frozen=True)
class Joint:
    """loss = that of ``inner`` + ``autoregressive`` times -log p(x) by the chain rule, per target token.

    For a model that was autoregressive and is to stay so while it learns to denoise (as in the hybrid losses of
    Nemotron's diffusion models and TiDAR, arXiv:2511.08923). The clean text is a second stream of the same pass
    (``types.Clean``), causal, read at the shift that the model keeps. The nats are those of ``inner``.
    """

    inner: Masked
    autoregressive: float

    def __post_init__(self) -> None:
        if self.inner.complementary:
            raise UserError("complementary rows and an autoregressive loss don't go together.", "Set one of them.")

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        if spec.shift != 1:
            raise UserError(
                "next tokens are read one position earlier, this model's predictions are not.",
                "Set the family's shift to 1, or autoregressive to 0.",
            )
        prepared = self.inner.prepare(batch, spec, generator)
        length, ends = batch.ids.shape[1], batch.valid.sum(1)
        pos = torch.arange(length, device=batch.ids.device).expand_as(batch.ids)
        clean = blocks.beside(batch, spec, Attend("causal"), ends, torch.where(batch.target, pos, -1))
        own = batch.target.flatten().nonzero().squeeze(1)
        return replace(
            prepared,
            ask=replace(prepared.ask, clean=clean),
            target=torch.cat([prepared.target, batch.ids.flatten()[own]]),
            extra={**prepared.extra, "own": torch.zeros_like(own)},
        )

    def loss(self, logits: torch.Tensor, prepared: Prepared) -> LossTerms:
        """The loss to minimise, and the inner objective's nats of each row. The logits [N, V] are consumed."""
        count = len(prepared.extra["own"])
        noisy, clean = logits.split([len(logits) - count, count])
        target, own = prepared.target.split([len(logits) - count, count])
        terms = self.inner.loss(noisy.clone(), replace(prepared, target=target))
        _, train = cross_entropy(clean.clone(), own, prepared.extra["forbidden"], self.inner.label_smoothing)
        return replace(terms, loss=terms.loss + self.autoregressive * train.sum() / max(prepared.tokens, 1))
