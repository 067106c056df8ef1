"""Masked diffusion: mask random tokens, predict them, and weight their cross-entropy into a likelihood bound."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise.absorbing import Absorbing
from redraft.objectives.base import Objective
from redraft.objectives.shared import noise as noise
from redraft.objectives.shared import times as times
from redraft.objectives.shared.cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.objectives.shared.noise import forbidden_ids
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec


@dataclass
class MaskedBatch(Prepared):
    """A batch with masks."""

    bound: Tensor  # [N] weight of each target position in the bound
    is_length: Tensor | None = None  # [N] bool: the target is a length; None: none of them is


@dataclass(frozen=True)
class Masked(Objective[MaskedBatch]):
    """The bound of MDLM (Sahoo et al. 2024, arXiv:2406.07524, eq. 10) and LLaDA (Nie et al. 2025, arXiv:2502.09992):

        -log p(x) <= E_t [ -alpha'(t) / (1 - alpha(t)) sum_{i masked} -log p_i(x_i | x_t) ],  t uniform on (0, 1]

    Fields:
        steps: 0 for continuous time. T > 0 for the bound of D3PM (Austin et al. 2021, arXiv:2107.03006) at T steps,
            t in {1/T, ..., 1}, with weights T (alpha(s) - alpha(t)) / (1 - alpha(t)), s = t - 1/T; at s = 0 this is
            the reconstruction term. It is looser than the bound in continuous time, its limit for large T.
        weight: what is minimised. ``bound``: the bound. ``uniform``: the mean over the masked tokens of the batch,
            independent of their noise level. The reported nats are those of the bound in both cases.
        length_weight: weight of the length head's cross-entropy (mean over rows) in the loss.
        label_smoothing: applies to the loss, not to the reported nats.
        t_min, t_max: t is drawn from this interval, to train with less variance (``Family.training``). Unless it is
            [0, 1], the nats are those of this interval and not a bound.
        complementary: train on every row twice, where the second copy masks exactly the tokens that are visible in the
            first one, so that each token contributes to the loss once per row, as in autoregressive training
            (LLaDA2.0, Bie et al. 2025, arXiv:2512.15745). It takes twice the operations, requires ``uniform``,
            continuous time and a network without time conditioning, and gives no bound.

    **Length.** With a length head, the prediction at the last prompt position is a distribution over the number of
    target tokens, end-of-text included, whose values are represented by token ids. The reported nats are then
    -log p(n) - log p(x | n), comparable with those of an autoregressive model, which include end-of-text. Given n, the
    closing end-of-text is certain: it is never masked, as samplers start with it in place, but it counts as a token.
    Without a length head the bound is conditioned on the length, which is part of an autoregressive model's nats.

    **Number of masks.** In continuous time and without time conditioning, the number of masks is fixed: exactly
    ``k = ceil((1 - alpha(t)) n)`` of n tokens are masked, with weight -alpha'(t) n / k. The integral over r of
    Binomial(k; n, r) / r is 1 / k for every k, so that the expectation is unchanged, without the variance of a random
    number of masks (as in LLaDA's likelihood estimate; here also in training).

    **Ends of the schedule.** A schedule may start below 1 and end above 0 by its epsilon, so that a prior and a
    reconstruction term would be missing from the bound. Alpha is therefore rescaled to run from exactly 1 to exactly 0.
    """

    steps: int = 0
    weight: Literal["bound", "uniform"] = "bound"
    length_weight: float = 0.1
    label_smoothing: float = 0.0
    t_min: float = 0.0
    t_max: float = 1.0
    complementary: bool = False

    additive = True

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        times.check_span(self.t_min, self.t_max, self.steps)
        if self.steps < 0:
            raise UserError(f"objective masked: steps = {self.steps} must be at least 0.", "Use 0 for continuous time.")
        if self.weight not in ("bound", "uniform"):
            raise UserError(f"objective masked: unknown weight '{self.weight}'.", "Use 'bound' or 'uniform'.")
        if self.complementary and (self.steps or self.weight != "uniform"):
            raise UserError(
                "objective masked: complementary rows have no bound.",
                "Set weight = 'uniform' and steps = 0, or leave complementary out.",
            )

    def plain(self) -> Masked:
        """The objective of this class with the same options, for subclasses with additional terms."""
        return Masked(**{each.name: getattr(self, each.name) for each in fields(Masked)})

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> MaskedBatch:
        """Mask random target positions and request them, on the device of the batch [B, L]."""
        schedule, rows, where = noise.rescaled_schedule(spec), batch.ids.shape[0], batch.ids.device
        if self.steps:
            t = times.discrete(rows, self.steps, generator, where)
        else:
            t = self.t_min + (self.t_max - self.t_min) * times.continuous(rows, generator, where)
        can = noise.noisable(batch, spec)
        if batch.hidden is not None:
            return self.request(batch, spec, batch.hidden & can, torch.ones_like(t), t)
        if self.complementary and spec.network.timed:
            raise UserError("complementary doesn't work with time conditioning.", "Set timed = false.")
        if self.steps or spec.network.timed:
            x = Absorbing().corrupt(batch.ids, schedule.alpha(t), can, spec, generator)
            return self.request(batch, spec, can & (x == spec.tokens.mask_id), self.rate(spec, t), t)
        count = can.sum(1)
        size = mask_count(1 - schedule.alpha(t), count)
        weight = -schedule.dalpha(t) * count / size.clamp(min=1)
        hidden = choose_positions(can, size, generator)
        if not self.complementary:
            return self.request(batch, spec, hidden, weight, t)
        both = torch.cat([hidden, can & ~hidden])
        prepared = self.request(repeat_rows(batch), spec, both, weight.repeat(2), t.repeat(2))
        rows = prepared.rows // 2
        return replace(
            prepared, weight=prepared.weight / 2, row=prepared.row % rows, rows=rows, tokens=prepared.tokens // 2
        )

    def rate(self, spec: Spec, t: Tensor) -> Tensor:
        """Weight [B] in the bound of a token masked at time ``t`` [B], if tokens are masked independently."""
        schedule = noise.rescaled_schedule(spec)
        alpha = schedule.alpha(t)
        if not self.steps:
            return -schedule.dalpha(t) / (1 - alpha)
        return self.steps * (schedule.alpha((t - 1 / self.steps).clamp(min=0)) - alpha) / (1 - alpha)

    def request(self, batch: Batch, spec: Spec, hidden: Tensor, weight: Tensor, t: Tensor) -> MaskedBatch:
        """Mask and request the ``hidden`` [B, L] tokens, which have a ``weight`` [B] in the bound of their row."""
        rows, length = batch.ids.shape
        pos = torch.arange(length, device=batch.ids.device).expand(rows, length)
        count = batch.target.sum(1)
        tokens = int(count.sum())

        # The length is requested at the last prompt position; its target is a number in place of a token.
        is_target, answer = hidden, batch.ids
        with_length = spec.network.length_head and batch.prompt is not None
        if with_length and batch.prompt is not None:
            last = batch.prompt[:, None] - 1
            is_target = hidden.scatter(1, last, True)
            answer = batch.ids.scatter(1, last, count.clamp(max=spec.tokens.vocab_size - 1)[:, None])

        chosen = is_target.flatten().nonzero().squeeze(1)
        row = chosen // length
        bound = weight.float()[row]
        loss_weight = bound if self.weight == "bound" else torch.full_like(bound, tokens) / hidden.sum().clamp(min=1)
        is_length: Tensor | None = None
        if with_length:
            is_length = ~hidden.flatten()[chosen]
            bound = bound.masked_fill(is_length, 1.0)
            loss_weight = loss_weight.masked_fill(is_length, self.length_weight * tokens / rows)
        return MaskedBatch(
            request=Forward(
                tokens=batch.ids.masked_fill(hidden, spec.tokens.mask_id),
                positions=torch.where(batch.valid, pos, -1),
                targets=torch.where(is_target, pos, -1),
                attention=spec.network.attention,
                prompt=batch.prompt if spec.network.prompt_encoder else None,
                time=t.float() if spec.network.timed else None,
            ),
            target=answer.flatten()[chosen],
            weight=loss_weight,
            row=row,
            rows=rows,
            tokens=tokens,
            forbidden=forbidden_ids(spec, batch.ids.device),
            bound=bound,
            is_length=is_length,
        )

    def loss(self, logits: Tensor, prepared: MaskedBatch) -> LossTerms:
        """The loss to minimise and the bound of each row in nats. The logits [N, V] are overwritten."""
        nll, train = cross_entropy(
            logits, prepared.target, prepared.forbidden, self.label_smoothing, prepared.is_length
        )
        return LossTerms(
            loss=(train * prepared.weight).sum() / max(prepared.tokens, 1),
            nats=per_row(nll * prepared.bound, prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=(self.t_min, self.t_max, self.complementary) == (0.0, 1.0, False),
        )


def mask_count(share: Tensor, count: Tensor) -> Tensor:
    """The number [B] of positions to mask, for a ``share`` [B] of ``count`` [B] positions: at least one if any."""
    return torch.ceil(share * count).clamp_(min=1).minimum(count)


def choose_positions(can: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
    """Choose a uniformly random subset of ``count`` [B] positions of each row among those that ``can`` [B, L] be chosen
    (at most all) -> [B, L] bool."""
    draw = torch.rand(can.shape, generator=generator, device=generator.device, dtype=torch.float64).to(can.device)
    return draw.masked_fill(~can, 2.0).argsort(1).argsort(1) < count[:, None]


def repeat_rows(batch: Batch) -> Batch:
    """The rows of a batch [B, L], followed by a copy of them -> [2 B, L]."""
    prompt = None if batch.prompt is None else batch.prompt.repeat(2)
    ids, target, valid = (part.repeat(2, 1) for part in (batch.ids, batch.target, batch.valid))
    return Batch(ids, target, valid, prompt, batch.bytes.repeat(2))
