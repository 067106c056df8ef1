"""Edit: learn the rates of the edits that turn an unfinished text into the finished one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise.edit import BLANK, END, align
from redraft.noise.edit import Edit as Process
from redraft.noise.uniform import alphabet
from redraft.objectives import _times as times
from redraft.objectives._cross_entropy import per_row
from redraft.objectives._noise import stretched
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec


@dataclass(frozen=True)
class Edit:
    """Edit Flows (Havasi et al. 2025, arXiv:2506.09018, eq. 23), with x_t from ``noise.edit``:

        loss = E_t w(t) [ sum over all edits of lambda(edit) - sum over edits to be made of log lambda(edit) ]

    with w = -alpha' / (1 - alpha), at most ``clamp``. The model's rate is w lambda, so that lambda is least costly
    where it is the expected number of edits of that kind at that place that are still to be made.

    A text begins empty, or in a share ``noise`` of the rows as random tokens, up to twice as many as it will have.

    **Bound.** From an empty start, the rates w lambda define a distribution of finished texts, and a path from x_0 to
    x_1 bounds its likelihood. With w' the clamped w and m(edit) how many cells ask for the same edit,

        -log p(x_1) <= E_t sum over edits of [ w' lambda - m w + m w log(m w / (w' lambda)) ]

    every term of which is at least 0. The length is included: nothing is given but the prompt. It is tight for a
    perfect model of texts in which no token comes twice; else which of two equal tokens came first makes a difference
    to the path and none to the text.
    """

    noise: float = 0.0
    clamp: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise UserError(f"objective edit: noise {self.noise} is not in [0, 1].")
        if self.clamp <= 0:
            raise UserError(f"objective edit: clamp {self.clamp} must be positive.")

    def scoring(self) -> Edit:
        """The bound, for texts that begin empty."""
        return replace(self, noise=0.0)

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """Draw a time and an unfinished text for every row, and ask for its edits. Works on the batch's device."""
        schedule, rows, where = stretched(spec), len(batch.ids), batch.ids.device
        t = times.continuous(rows, generator, where)
        x1, n1 = _text(batch, spec)
        x0, n0 = self._source(n1, spec, generator)
        z0, z1 = align(x0, n0, x1, n1)
        zt = Process().mix(z0, z1, schedule.alpha(t), generator)
        weight = -schedule.dalpha(t) / (1 - schedule.alpha(t))
        return self._request(batch, spec, zt, z1, weight, t)

    def _source(self, n1: Tensor, spec: Spec, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where each row begins: ids [B, N], and how many of them count [B]."""
        rows, where = len(n1), n1.device
        draw = torch.rand((2, rows), generator=generator, device=generator.device, dtype=torch.float64).to(where)
        count = (draw[0] * (2 * n1 + 1)).floor().long() * (draw[1] < self.noise)
        letters = alphabet(spec).to(where)
        shape = (rows, int(count.max()) if rows else 0)
        which = torch.randint(len(letters), shape, generator=generator, device=generator.device).to(where)
        return letters[which], count

    def _request(self, batch: Batch, spec: Spec, zt: Tensor, z1: Tensor, weight: Tensor, t: Tensor) -> Prepared:
        """Ask for the edits of the unfinished texts that ``zt`` [B, Z] holds, on their way to ``z1`` [B, Z]."""
        where, rows = batch.ids.device, len(batch.ids)
        counts = batch.target.any(1)
        begin = torch.where(counts, batch.target.long().argmax(1), batch.valid.sum(1))
        real = zt >= 0
        before = real.cumsum(1) - real.long()  # of a cell of the alignment: its place in the text, or that of the next
        length = begin + real.sum(1) + counts.long()  # with the cell that closes it
        size = max(1, int(length.max()))
        cell = torch.arange(size, device=where).expand(rows, size)
        x = torch.full((rows, size), spec.pad_id, device=where)
        width = min(size, batch.ids.shape[1])
        x[:, :width] = torch.where(cell[:, :width] < begin[:, None], batch.ids[:, :width], spec.pad_id)
        row, old = real.nonzero(as_tuple=True)
        x[row, begin[row] + before[row, old]] = zt[row, old]
        last = counts.nonzero()[:, 0]
        x[last, length[last] - 1] = spec.eos_id
        wanted = (cell >= begin[:, None]) & (cell < length[:, None])

        number = torch.full_like(x, -1)
        number[wanted] = torch.arange(int(wanted.sum()), device=where)
        row, old = ((zt != z1) & (z1 != END)).nonzero(as_tuple=True)
        here, there = zt[row, old], z1[row, old]
        op = torch.where(here == BLANK, there, spec.vocab_size + there)
        op = torch.where(there == BLANK, 2 * spec.vocab_size, op)
        owner = wanted.nonzero()[:, 0]
        return Prepared(
            ask=Forward(
                x=x,
                pos=torch.where(cell < length[:, None], cell, -1),
                want=torch.where(wanted, cell, -1),
                attend=spec.attend,
                prompt=batch.prompt if spec.isolate_prompt else None,
                t=t.float() if spec.timed else None,
            ),
            target=x[wanted],
            weight=weight.clamp(max=self.clamp).float()[owner],
            row=owner,
            rows=rows,
            tokens=int(batch.target.sum()),
            extra={
                "forbidden": torch.tensor(sorted({*spec.forbidden, spec.mask_id}), device=where),
                "closing": (cell == length[:, None] - 1)[wanted],
                "at": number[row, begin[row] + before[row, old]],
                "op": op,
                "edit_row": row,
                "w": weight,
            },
        )

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """The loss to minimise, and the bound of each row in nats. Log-rates [N, 2V + 1] are consumed."""
        extra, rows = prepared.extra, prepared.rows
        at, op, row = extra["at"], extra["op"], extra["edit_row"]
        total, log_rate = sums(logits, extra["forbidden"], prepared.target, extra["closing"], at, op)
        clamped = extra["w"].clamp(max=self.clamp)
        loss = (total * prepared.weight).sum() - (log_rate * clamped.float()[row]).sum()

        w = extra["w"][row]
        _, same, many = (at * logits.shape[1] + op).unique(return_inverse=True, return_counts=True)
        edits = w * ((many[same] * w / clamped[row]).log() - log_rate.detach().double() - 1)
        nats = per_row(total.double() * prepared.weight, prepared.row, rows) + per_row(edits, row, rows)
        return LossTerms(
            loss=loss / max(prepared.tokens, 1),
            nats=nats.clamp(min=0),
            tokens=prepared.tokens,
            is_bound=self.noise == 0,
        )


def _text(batch: Batch, spec: Spec) -> tuple[Tensor, Tensor]:
    """The target of each row without the end-of-text that closes it: ids [B, M], and how many of them count [B]."""
    seen = batch.target.cumsum(1)
    closing = batch.target & (seen == seen[:, -1:]) & (batch.ids == spec.eos_id)
    inside = batch.target & ~closing
    count = inside.sum(1)
    first = torch.sort((~inside).to(torch.int8), dim=1, stable=True).indices[:, : int(count.max())]
    return batch.ids.gather(1, first), count


_STEEP = 12.0  # log-rate from which on exp goes on as its tangent: no rate is infinite, and no gradient vanishes
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 27}  # as in ``_cross_entropy``: what is worked on stays in the cache


def sums(
    logits: Tensor, forbidden: Tensor, own: Tensor, closing: Tensor, at: Tensor, op: Tensor
) -> tuple[Tensor, Tensor]:
    """Total rate of each cell, and the log-rates of some edits, from log-rates that are consumed.

    Args:
        logits: [N, 2V + 1] (``models.parts.edits``). forbidden: [F] ids. own: [N] token of each cell, which does not
            replace itself. closing: [N] bool, cells that nothing replaces or deletes. at, op: [E] cells, and edits.
    Returns:
        [N] and [E] float32.
    """
    logits = logits.clone() if logits.is_leaf and logits.requires_grad else logits  # a leaf isn't ours to consume
    total, log_rate = _Sums.apply(logits, forbidden, own, closing, at, op)
    return total, log_rate


class _Sums(torch.autograd.Function):
    """d sum_k exp(z_k) / dz_k = exp(z_k), which takes the place of z in memory, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, forbidden: Tensor, own: Tensor, closing: Tensor, at: Tensor, op: Tensor
    ) -> tuple[Tensor, Tensor]:
        count, width = logits.shape
        half = width // 2
        barred = torch.cat([forbidden, half + forbidden])
        log_rate = logits[at, op].float()
        total = logits.new_empty(count, dtype=torch.float32)
        size = max(1, _CHUNK.get(logits.device.type, _CHUNK["cuda"]) // width)
        for begin in range(0, count, size):
            part = slice(begin, begin + size)
            z = logits[part].float()
            z.index_fill_(1, barred, -1e4)
            z.scatter_(1, half + own[part, None], -1e4)
            z[closing[part].nonzero()[:, 0], half:] = -1e4
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
        rate, ctx.rate = ctx.rate, None  # used up: a second backward is an error
        found = rate.mul_(grads[0].to(rate.dtype)[:, None])
        found.index_put_((at, op), grads[1].to(found.dtype), accumulate=True)
        return found, None, None, None, None, None
