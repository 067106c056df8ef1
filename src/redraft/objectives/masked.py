"""Masked diffusion: hide a random part of the text, predict what was hidden, weigh it into a likelihood bound."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise.absorbing import Absorbing
from redraft.objectives import _noise as noise
from redraft.objectives import _times as times
from redraft.objectives._cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec


@dataclass(frozen=True)
class Masked:
    """The bound of MDLM (Sahoo et al. 2024, arXiv:2406.07524, eq. 10) and of LLaDA (Nie et al. 2025, 2502.09992):

        -log p(x) <= E_t [ -alpha'(t) / (1 - alpha(t)) sum_{i masked} -log p_i(x_i | x_t) ],  t uniform on (0, 1]

    Fields:
        steps: 0 for continuous time. T > 0 for the bound of D3PM (Austin et al. 2021, arXiv:2107.03006) at T steps,
            t in {1/T, ..., 1}, with the weight T (alpha(s) - alpha(t)) / (1 - alpha(t)), s = t - 1/T; at s = 0 this
            is the reconstruction term. Looser than continuous time, which it approaches as T grows.
        weight: what is minimised. ``bound``: the bound. ``flat``: the mean over the masked tokens of the batch,
            whatever their noise level. The reported nats are the bound's either way.
        length_weight: weight in the loss of the length head's cross-entropy (mean over rows).
        label_smoothing: in the loss only, never in the reported nats.
        low, high: the span of time that t is drawn from, for training with less variance (``families``' ``training``).
            With anything but 0 and 1 the nats are those of this span alone, and no bound.
        complementary: train on every row twice, where the second copy hides what the first one shows, so that each
            token is learnt from once a pass, as in autoregression (LLaDA2.0, Bie et al. 2025, arXiv:2512.15745).
            Twice the arithmetic; needs ``flat``, continuous time and a network that isn't told it; no bound.

    **Length.** With a length head, the prediction at the last prompt position is a distribution over ids that are
    read as numbers of target tokens, end-of-text counted. The reported nats are then -log p(n) - log p(x | n), of
    length and text, and compare with an autoregressive model's, which pays for its end-of-text. Given n the closing
    end-of-text is certain: it is never hidden, just as samplers begin with it in place. It stays in the count of
    tokens. Without a length head the bound is given the length, for which an autoregressive model pays.

    **Count.** In continuous time, and with a network that isn't told the time, the number of masks isn't left to
    chance: exactly ``k = ceil((1 - alpha(t)) n)`` of n tokens are hidden, with the weight -alpha'(t) n / k.
    The integral over r of Binomial(k; n, r) / r is 1 / k for every k, so the expectation is the same, and the
    variance due to the count is gone (LLaDA's likelihood estimate; used in training too).

    **Ends.** A schedule may begin short of 1 and end short of 0 by its epsilon, which would leave a prior and a
    reconstruction term out of the bound. Here alpha is stretched to run from 1 to 0 exactly.
    """

    steps: int = 0
    weight: Literal["bound", "flat"] = "bound"
    length_weight: float = 0.1
    label_smoothing: float = 0.0
    low: float = 0.0
    high: float = 1.0
    complementary: bool = False

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        times.check_span(self.low, self.high, self.steps)
        if self.steps < 0:
            raise UserError(f"objective masked: steps {self.steps} is negative.", "Use 0 for continuous time.")
        if self.weight not in ("bound", "flat"):
            raise UserError(f"objective masked: weight '{self.weight}' is unknown.", "Known: bound, flat.")
        if self.complementary and (self.steps or self.weight != "flat"):
            raise UserError(
                "objective masked: complementary rows have no bound.",
                "Set weight = 'flat' and steps = 0, or leave it out.",
            )

    def plain(self) -> Masked:
        """The bound alone, for what trains on more than it."""
        return Masked(**{each.name: getattr(self, each.name) for each in fields(Masked)})

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """Draw noise for the target positions of ``batch`` and ask for what it hid. Works on the batch's device."""
        schedule, rows, where = noise.stretched(spec), batch.ids.shape[0], batch.ids.device
        if self.steps:
            t = times.discrete(rows, self.steps, generator, where)
        else:
            t = self.low + (self.high - self.low) * times.continuous(rows, generator, where)
        can = noise.noisable(batch, spec)
        if self.complementary and spec.timed:
            raise UserError("complementary rows are for networks that aren't told the time.", "Set timed = false.")
        if self.steps or spec.timed:
            x = Absorbing().corrupt(batch.ids, schedule.alpha(t), can, spec, generator)
            return self.request(batch, spec, can & (x == spec.mask_id), self.rate(spec, t), t)
        count = can.sum(1)
        hide = size_of(1 - schedule.alpha(t), count)
        weight = -schedule.dalpha(t) * count / hide.clamp(min=1)
        hidden = choose(can, hide, generator)
        if not self.complementary:
            return self.request(batch, spec, hidden, weight, t)
        prepared = self.request(_twice(batch), spec, torch.cat([hidden, can & ~hidden]), weight.repeat(2), t.repeat(2))
        rows = prepared.rows // 2
        return replace(
            prepared, weight=prepared.weight / 2, row=prepared.row % rows, rows=rows, tokens=prepared.tokens // 2
        )

    def rate(self, spec: Spec, t: Tensor) -> Tensor:
        """Weight in the bound of a token masked at time ``t`` [B], where each is masked by chance -> [B]."""
        schedule = noise.stretched(spec)
        alpha = schedule.alpha(t)
        if not self.steps:
            return -schedule.dalpha(t) / (1 - alpha)
        return self.steps * (schedule.alpha((t - 1 / self.steps).clamp(min=0)) - alpha) / (1 - alpha)

    def request(self, batch: Batch, spec: Spec, hidden: Tensor, weight: Tensor, t: Tensor) -> Prepared:
        """Ask for the ``hidden`` [B, L] tokens, each of which counts ``weight`` [B] in the bound of its row."""
        rows, length = batch.ids.shape
        pos = torch.arange(length, device=batch.ids.device).expand(rows, length)
        count = batch.target.sum(1)
        tokens = int(count.sum())

        # the length is asked for at the last prompt position, and its answer is a number, not a token
        wanted, answer = hidden, batch.ids
        with_length = spec.length_head and batch.prompt is not None
        if with_length and batch.prompt is not None:
            last = batch.prompt[:, None] - 1
            wanted = hidden.scatter(1, last, True)
            answer = batch.ids.scatter(1, last, count.clamp(max=spec.vocab_size - 1)[:, None])

        chosen = wanted.flatten().nonzero().squeeze(1)
        row = chosen // length
        bound = weight.float()[row]
        extra = {"forbidden": torch.tensor(sorted({*spec.forbidden, spec.mask_id}), device=batch.ids.device)}
        loss_weight = bound if self.weight == "bound" else torch.full_like(bound, tokens) / hidden.sum().clamp(min=1)
        if with_length:
            is_length = ~hidden.flatten()[chosen]
            extra["is_length"] = is_length
            bound = bound.masked_fill(is_length, 1.0)
            loss_weight = loss_weight.masked_fill(is_length, self.length_weight * tokens / rows)
        return Prepared(
            ask=Forward(
                x=batch.ids.masked_fill(hidden, spec.mask_id),
                pos=torch.where(batch.valid, pos, -1),
                want=torch.where(wanted, pos, -1),
                attend=spec.attend,
                prompt=batch.prompt if spec.isolate_prompt else None,
                t=t.float() if spec.timed else None,
            ),
            target=answer.flatten()[chosen],
            weight=loss_weight,
            row=row,
            rows=rows,
            tokens=tokens,
            extra={**extra, "bound": bound},
        )

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """The loss to minimise, and the bound of each row in nats. The logits [N, V] are consumed."""
        extra = prepared.extra
        nll, train = cross_entropy(
            logits, prepared.target, extra["forbidden"], self.label_smoothing, extra.get("is_length")
        )
        return LossTerms(
            loss=(train * prepared.weight).sum() / max(prepared.tokens, 1),
            nats=per_row(nll * extra["bound"], prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=(self.low, self.high, self.complementary) == (0.0, 1.0, False),
        )


def size_of(share: Tensor, count: Tensor) -> Tensor:
    """[B] how many of ``count`` [B] positions such a share is: at least one, where there is one."""
    return torch.ceil(share * count).clamp_(min=1).minimum(count)


def choose(can: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
    """Exactly ``count`` [B] of each row's True positions of ``can`` [B, L] (no more than it has), all subsets alike."""
    draw = torch.rand(can.shape, generator=generator, device=generator.device, dtype=torch.float64).to(can.device)
    return draw.masked_fill(~can, 2.0).argsort(1).argsort(1) < count[:, None]


def _twice(batch: Batch) -> Batch:
    """The rows of a batch, and the same rows once more."""
    prompt = None if batch.prompt is None else batch.prompt.repeat(2)
    ids, target, valid = (part.repeat(2, 1) for part in (batch.ids, batch.target, batch.valid))
    return Batch(ids, target, valid, prompt, batch.bytes.repeat(2))
