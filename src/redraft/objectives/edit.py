"""Edit: learn the rates of the edits that turn an intermediate sequence into the final one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise.edit import BLANK, END, align
from redraft.noise.edit import Edit as Process
from redraft.noise.uniform import alphabet
from redraft.objectives.base import Objective
from redraft.objectives.shared import times as times
from redraft.objectives.shared.cross_entropy import per_row
from redraft.objectives.shared.noise import forbidden_ids, rescaled_schedule
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec


@dataclass
class EditBatch(Prepared):
    """Intermediate sequences and the edits that remain to be made. E: edits of the batch."""

    shared: ClassVar[frozenset[str]] = frozenset({"forbidden", "at", "op", "edit_row", "time_weight", "repeats"})

    closing: Tensor  # [N] bool: the last position of a sequence, which can't be substituted or deleted
    at: Tensor  # [E] index of the target position of each edit
    op: Tensor  # [E] the edit, as a column of the network's output
    edit_row: Tensor  # [E] batch row of each edit
    time_weight: Tensor  # [B] float64 weight of each row's time in the bound
    repeats: Tensor  # [E] number of remaining edits of the same kind at the same position

    def part(self, begin: int, end: int) -> Self:
        """As ``Prepared.part``, with the edits at these target positions."""
        inside = (self.at >= begin) & (self.at < end)
        edits: dict[str, Any] = {
            "at": self.at[inside] - begin,
            "op": self.op[inside],
            "edit_row": self.edit_row[inside],
            "repeats": self.repeats[inside],
        }
        return replace(super().part(begin, end), **edits)


@dataclass(frozen=True)
class Edit(Objective[EditBatch]):
    """Edit Flows (Havasi et al. 2025, arXiv:2506.09018, eq. 23), with x_t from ``noise.edit``:

        loss = E_t w(t) [ sum over all edits of lambda(edit) - sum over remaining edits of log lambda(edit) ]

    with w = -alpha' / (1 - alpha), clamped to at most ``clamp``. The rate of the model is w lambda. The loss is lowest
    if lambda is the expected number of remaining edits of that kind at that position.

    A sequence starts empty, or in a share ``noise`` of the rows as random tokens, at most twice as many as the final
    sequence has.

    **Bound.** From an empty start, the rates w lambda define a distribution of final sequences, and a path from x_0 to
    x_1 bounds its likelihood. With w' the clamped w and m(edit) the number of aligned positions with the same edit,

        -log p(x_1) <= E_t sum over edits of [ w' lambda - m w + m w log(m w / (w' lambda)) ]

    where every term is at least 0. The bound includes the length: only the prompt is given. It is tight for a perfect
    model of sequences without repeated tokens. With repeated tokens, several paths lead to the same sequence.
    """

    noise: float = 0.0
    clamp: float = 20.0

    additive = True

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise UserError(f"objective edit: noise = {self.noise} must be between 0 and 1.")
        if self.clamp <= 0:
            raise UserError(f"objective edit: clamp = {self.clamp} must be above 0.")

    def scoring(self) -> Edit:
        """The bound, for sequences that start empty."""
        return replace(self, noise=0.0)

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> EditBatch:
        """Draw a time and an intermediate sequence for every row, and request its edits, on the batch's device."""
        schedule, rows, where = rescaled_schedule(spec), len(batch.ids), batch.ids.device
        t = times.continuous(rows, generator, where)
        x1, n1 = _final(batch, spec)
        x0, n0 = self._source(n1, spec, generator)
        z0, z1 = align(x0, n0, x1, n1)
        zt = Process().mix(z0, z1, schedule.alpha(t), generator)
        weight = -schedule.dalpha(t) / (1 - schedule.alpha(t))
        return self._request(batch, spec, zt, z1, weight, t)

    def _source(self, n1: Tensor, spec: Spec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The sequences x_0 that rows start from: ids [B, N] and lengths [B]."""
        rows, where = len(n1), n1.device
        draw = torch.rand((2, rows), generator=generator, device=generator.device, dtype=torch.float64).to(where)
        count = (draw[0] * (2 * n1 + 1)).floor().long() * (draw[1] < self.noise)
        letters = alphabet(spec).to(where)
        shape = (rows, int(count.max()) if rows else 0)
        which = torch.randint(len(letters), shape, generator=generator, device=generator.device).to(where)
        return letters[which], count

    def _request(self, batch: Batch, spec: Spec, zt: Tensor, z1: Tensor, weight: Tensor, t: Tensor) -> EditBatch:
        """Request the edits that turn the aligned sequences ``zt`` [B, Z] into ``z1`` [B, Z]."""
        where, rows = batch.ids.device, len(batch.ids)
        has_target = batch.target.any(1)
        begin = torch.where(has_target, batch.target.long().argmax(1), batch.valid.sum(1))
        real = zt >= 0
        before = real.cumsum(1) - real.long()  # index in x_t of an aligned position, or of the next token
        length = begin + real.sum(1) + has_target.long()  # with the closing position
        size = max(1, int(length.max()))
        cell = torch.arange(size, device=where).expand(rows, size)
        x = torch.full((rows, size), spec.tokens.pad_id, device=where)
        width = min(size, batch.ids.shape[1])
        x[:, :width] = torch.where(cell[:, :width] < begin[:, None], batch.ids[:, :width], spec.tokens.pad_id)
        row, old = real.nonzero(as_tuple=True)
        x[row, begin[row] + before[row, old]] = zt[row, old]
        last = has_target.nonzero()[:, 0]
        x[last, length[last] - 1] = spec.tokens.eos_id
        is_target = (cell >= begin[:, None]) & (cell < length[:, None])

        number = torch.full_like(x, -1)
        number[is_target] = torch.arange(int(is_target.sum()), device=where)
        row, old = ((zt != z1) & (z1 != END)).nonzero(as_tuple=True)
        here, there = zt[row, old], z1[row, old]
        op = torch.where(here == BLANK, there, spec.tokens.vocab_size + there)
        op = torch.where(there == BLANK, 2 * spec.tokens.vocab_size, op)
        owner = is_target.nonzero()[:, 0]
        at = number[row, begin[row] + before[row, old]]
        _, which, count = (at * (2 * spec.tokens.vocab_size + 1) + op).unique(return_inverse=True, return_counts=True)
        return EditBatch(
            request=Forward(
                tokens=x,
                positions=torch.where(cell < length[:, None], cell, -1),
                targets=torch.where(is_target, cell, -1),
                attention=spec.network.attention,
                prompt=batch.prompt if spec.network.prompt_encoder else None,
                time=t.float() if spec.network.timed else None,
            ),
            target=x[is_target],
            weight=weight.clamp(max=self.clamp).float()[owner],
            row=owner,
            rows=rows,
            tokens=int(batch.target.sum()),
            forbidden=forbidden_ids(spec, where),
            closing=(cell == length[:, None] - 1)[is_target],
            at=at,
            op=op,
            edit_row=row,
            time_weight=weight,
            repeats=count[which],
        )

    def loss(self, logits: Tensor, prepared: EditBatch) -> LossTerms:
        """The loss to minimise and the bound of each row in nats. The log-rates [N, 2V + 1] are overwritten."""
        rows, at, op, row = prepared.rows, prepared.at, prepared.op, prepared.edit_row
        total, log_rate = total_rates(logits, prepared.forbidden, prepared.target, prepared.closing, at, op)
        clamped = prepared.time_weight.clamp(max=self.clamp)
        loss = (total * prepared.weight).sum() - (log_rate * clamped.float()[row]).sum()

        w = prepared.time_weight[row]
        edits = w * ((prepared.repeats * w / clamped[row]).log() - log_rate.detach().to(w.dtype) - 1)
        nats = per_row(total.to(w.dtype) * prepared.weight, prepared.row, rows) + per_row(edits, row, rows)
        return LossTerms(
            loss=loss / max(prepared.tokens, 1),
            nats=nats.clamp(min=0),
            tokens=prepared.tokens,
            is_bound=self.noise == 0,
        )


def _final(batch: Batch, spec: Spec) -> tuple[Tensor, Tensor]:
    """The target of each row without its closing end-of-text: ids [B, M] and lengths [B]."""
    seen = batch.target.cumsum(1)
    closing = batch.target & (seen == seen[:, -1:]) & (batch.ids == spec.tokens.eos_id)
    inside = batch.target & ~closing
    count = inside.sum(1)
    first = torch.sort((~inside).to(torch.int8), dim=1, stable=True).indices[:, : int(count.max())]
    return batch.ids.gather(1, first), count


_STEEP = 12.0  # log-rate above which exp is replaced by its tangent, so that rates and gradients stay finite
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 27}  # as in ``shared.cross_entropy``: a chunk stays in the cache


def total_rates(
    logits: Tensor, forbidden: Tensor, own: Tensor, closing: Tensor, at: Tensor, op: Tensor
) -> tuple[Tensor, Tensor]:
    """Total rate of each position and log-rates of some edits, from log-rates that are overwritten.

    Args:
        logits: [N, 2V + 1] (``models.parts.edits``). forbidden: [F] ids. own: [N] token of each position, which can't
            be substituted by itself. closing: [N] bool, positions that can't be substituted or deleted. at, op: [E]
            positions and edits.
    Returns:
        [N] and [E] float32.
    """
    logits = logits.clone() if logits.is_leaf and logits.requires_grad else logits  # don't overwrite a leaf
    total, log_rate = _TotalRates.apply(logits, forbidden, own, closing, at, op)
    return total, log_rate


class _TotalRates(torch.autograd.Function):
    """d sum_k exp(z_k) / dz_k = exp(z_k), which replaces z in memory, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, forbidden: Tensor, own: Tensor, closing: Tensor, at: Tensor, op: Tensor
    ) -> tuple[Tensor, Tensor]:
        count, width = logits.shape
        half = width // 2
        disallowed = torch.cat([forbidden, half + forbidden])
        log_rate = logits[at, op].float()
        total = logits.new_empty(count, dtype=torch.float32)
        size = max(1, _CHUNK.get(logits.device.type, _CHUNK["cuda"]) // width)
        for begin in range(0, count, size):
            part = slice(begin, begin + size)
            z = logits[part].float()
            z.index_fill_(1, disallowed, -1e4)
            z.scatter_(1, half + own[part, None], -1e4)
            z[:, half:].masked_fill_(closing[part, None], -1e4)
            low = z.clamp(max=_STEEP)
            rate = low.exp()
            total[part] = (rate * (1 + z - low)).sum(1)
            logits[part] = rate
        ctx.save_for_backward(at, op)
        ctx.rate = logits
        return total, log_rate

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        at, op = ctx.saved_tensors
        rate, ctx.rate = ctx.rate, None  # overwritten below: a second backward pass is an error
        found = rate.mul_(grads[0].to(rate.dtype)[:, None])
        found.index_put_((at, op), grads[1].to(found.dtype), accumulate=True)
        return found, None, None, None, None, None
