"""Hybrid: one network learns next-token prediction and block diffusion, in one pass over two streams."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from redraft.errors import UserError
from redraft.noise.uniform import Uniform as UniformNoise
from redraft.objectives.autoregressive import Autoregressive
from redraft.objectives.base import Objective
from redraft.objectives.block import check_interval
from redraft.objectives.shared import blocks as blocks
from redraft.objectives.shared.cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.objectives.shared.noise import forbidden_ids
from redraft.types import AttentionPattern, Batch, DraftQuery, Forward, LossTerms, Prepared, Spec


@dataclass
class HybridBatch(Prepared):
    """Noisy and clean streams of a batch."""

    exact: torch.Tensor  # [N] bool: positions of the clean stream, whose loss is the exact likelihood


@dataclass(frozen=True)
class Hybrid(Objective[HybridBatch]):
    """loss = -log p(x) by the chain rule + ``diffusion`` times the loss of block diffusion, per target token.

    The clean stream (``types.CleanStream``) is causal and predicts next tokens, exactly as in an autoregressive model.
    Each noisy block attends to all of itself and to the causal keys and values before it, as in drafting. One pass
    trains both, and both use one cache (TiDAR, Liu et al. 2025, arXiv:2511.08923).

    Under uniform noise, the hidden positions hold random tokens, and the loss of block diffusion is the cross-entropy
    of all tokens of the blocks (as in DiffusionGemma). These blocks are counted from the end of the prompt also where
    the prompt is not isolated, as in generation.

    Fields:
        block: positions per block, counted from the end of the prompt; a draft may start anywhere.
        diffusion: weight of the loss of block diffusion.
        rate_min: masking rates are drawn from (rate_min, 1]. A draft starts with masks only,
            so high noise levels matter most.
    """

    block: int = 8
    diffusion: float = 0.3
    rate_min: float = 0.5
    label_smoothing: float = 0.0

    additive = True

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_interval(self.rate_min, 1.0)
        if self.block < 1:
            raise UserError(f"objective hybrid: block = {self.block} must be at least 1.")
        if self.diffusion < 0:
            raise UserError(
                f"objective hybrid: diffusion = {self.diffusion} must be at least 0.", "Use 0 to turn it off."
            )

    def scoring(self) -> Autoregressive:
        """The likelihood of the autoregressive model."""
        return Autoregressive()

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> HybridBatch:
        """Request the tokens of the noisy blocks (with shift 0) that noise hides, or under uniform noise all of them;
        then all targets [B, L] of the clean stream."""
        rows, tokens, ends = batch.ids.shape[0], int(batch.target.sum()), batch.valid.sum(1)
        attend, uniform = AttentionPattern("block", self.block), not masks(spec)
        isolated = spec.network.prompt_encoder and batch.prompt is not None
        begin = batch.target.int().argmax(1) if uniform and not isolated else None
        full = blocks.complete_blocks(batch, attend, spec, origin=begin)
        pos = torch.arange(full.ids.shape[1], device=full.ids.device).expand_as(full.ids)
        group = blocks.groups(full, attend, spec) if begin is None else attend.group(pos - begin[:, None], None)
        hidden, weight = blocks.hide(full.target, group, self.rate_min, 1.0, generator)
        noisy, asked = full.ids.masked_fill(hidden, spec.tokens.mask_id), hidden
        if uniform:
            noisy = UniformNoise().corrupt(full.ids, (~hidden).double(), full.target, spec, generator)
            asked, weight = full.target, torch.ones_like(weight)
        exact = torch.where(batch.target, pos[:, : batch.ids.shape[1]], -1)
        chosen, own = asked.flatten().nonzero().squeeze(1), batch.target.flatten().nonzero().squeeze(1)
        clean = blocks.clean_stream(full, spec, spec.network.attention, ends, exact)
        request = Forward(
            tokens=noisy,
            positions=torch.where(full.valid, pos, -1),
            targets=torch.where(asked, pos, -1),
            attention=attend,
            prompt=batch.prompt if spec.network.prompt_encoder else None,
            extra=(DraftQuery(0, begin), *(() if clean is None else (clean,))),
        )
        return HybridBatch(
            request=request if begin is None else _from(request, begin),
            target=torch.cat([full.ids.flatten()[chosen], batch.ids.flatten()[own]]),
            weight=torch.cat(
                [self.diffusion * weight.flatten()[chosen].float(), torch.ones(len(own)).to(weight.device)]
            ),
            row=torch.cat([chosen // full.ids.shape[1], own // batch.ids.shape[1]]),
            rows=rows,
            tokens=tokens,
            forbidden=forbidden_ids(spec, batch.ids.device, mask=not uniform),
            exact=torch.arange(len(chosen) + len(own), device=batch.ids.device) >= len(chosen),
        )

    def loss(self, logits: torch.Tensor, prepared: HybridBatch) -> LossTerms:
        """The sum of both losses, and the exact nats of each row's target. The logits [N, V] are overwritten."""
        nll, train = cross_entropy(logits, prepared.target, prepared.forbidden, self.label_smoothing)
        return LossTerms(
            loss=(train * prepared.weight).sum() / max(prepared.tokens, 1),
            nats=per_row(nll * prepared.exact, prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=False,
        )


def masks(spec: Spec) -> bool:
    """Does the noise of the blocks consist of masks?"""
    return spec.family.drafter is None or spec.family.drafter.masks


def _from(request: Forward, begin: torch.Tensor) -> Forward:
    """The request whose noisy stream begins at the positions ``begin`` [B]: the text before is in the clean one."""
    width = max(1, int((request.positions.amax(1) + 1 - begin).max()))
    columns = begin[:, None] + torch.arange(width, device=begin.device)
    real, at = columns < request.positions.shape[1], columns.clamp(max=request.positions.shape[1] - 1)
    positions, targets = (torch.where(real, part.gather(1, at), -1) for part in (request.positions, request.targets))
    return replace(request, tokens=request.tokens.gather(1, at), positions=positions, targets=targets)
