"""Expand: masked diffusion whose masks may stand for no token, for one, or for several."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.objectives import _times as times
from redraft.objectives._cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.objectives._noise import Stretched, noisable
from redraft.objectives.masked import Masked, choose, size_of
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec


@dataclass(frozen=True)
class Expand:
    """DreamOn (Wu et al. 2026, arXiv:2602.01326): the length of what is missing is learnt together with its tokens.

    A share 1 - alpha(t) of the tokens is masked. Then

    - neighbouring masks become one, each pair with the row's own probability, drawn evenly from 0 to ``merge``: a mask
      that stands for two tokens or more is to be predicted as ``expand``, which puts two masks in its place;
    - between 1 and ``surplus`` masks more stand at the end, to be predicted as ``delete``.

    Each is done to half of the rows, whatever the other one does. What is minimised is the cross-entropy of all masks,
    the deletes of a row together counting as one token: there would be too many of them otherwise (DreamOn weighs them
    down too). For plain text the part that may be masked is a random span, as in a text with a hole; for pairs it is
    the answer, whose closing end-of-text stands.

    That is no bound on the likelihood of a text. What is reported is: the bound of masked diffusion, given the length
    or with its prediction, by the same network with ``expand`` and ``delete`` forbidden (``scoring``).
    """

    merge: float = 0.0
    surplus: int = 0
    length_weight: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        if not 0 <= self.merge < 1:
            raise UserError(f"objective expand: merge {self.merge} is not in [0, 1).")
        if self.surplus < 0:
            raise UserError(f"objective expand: surplus {self.surplus} is negative.")

    @property
    def _plain(self) -> Masked:
        return Masked(length_weight=self.length_weight, label_smoothing=self.label_smoothing)

    @property
    def _resizes(self) -> bool:
        return self.merge > 0 or self.surplus > 0

    def scoring(self) -> Expand:
        """The bound of masked diffusion."""
        return replace(self, merge=0.0, surplus=0)

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """Mask, merge and add masks, and ask for what every mask stands for. Works on the batch's device."""
        if not self._resizes:
            barred = {*spec.forbidden, spec.expand_id, spec.delete_id}
            return self._plain.prepare(batch, replace(spec, forbidden=tuple(sorted(barred))), generator)
        where, (rows, width) = batch.ids.device, batch.ids.shape
        assert spec.schedule is not None

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).to(where)

        # 1. Which tokens are masked.
        can = noisable(batch, spec)
        if batch.prompt is None:
            can = _span(can, draw(rows, 2))
        count = can.sum(1)
        share = 1 - Stretched(spec.schedule).alpha(times.continuous(rows, generator, where))
        hidden = choose(can, size_of(share, count), generator)

        # 2. Which masks are merged into the one before them, and which stand for several.
        chance = draw(rows) * self.merge * (draw(rows) < 0.5)
        joined = torch.zeros_like(hidden)
        joined[:, 1:] = hidden[:, 1:] & hidden[:, :-1] & (draw(rows, width)[:, 1:] < chance[:, None])
        several = torch.zeros_like(hidden)
        several[:, :-1] = joined[:, 1:]
        target = torch.where(several, spec.expand_id, batch.ids)

        # 3. How many are too many.
        more = (draw(rows) * self.surplus).floor().long() + 1
        more = torch.where((draw(rows) < 0.5) & (count > 0) & (self.surplus > 0), more, 0)
        return self._request(batch, spec, can, hidden, joined, target, more)

    def _request(
        self, batch: Batch, spec: Spec, can: Tensor, hidden: Tensor, joined: Tensor, target: Tensor, more: Tensor
    ) -> Prepared:
        """Lay the rows anew: without the ``joined`` [B, L] cells, with ``more`` [B] masks behind the last that ``can``
        be masked."""
        where, (rows, width) = batch.ids.device, batch.ids.shape
        column = torch.arange(width, device=where)
        last = torch.where(can, column, -1).amax(1)
        kept = batch.valid & ~joined
        place = kept.cumsum(1) - 1
        begin = place.gather(1, last.clamp(min=0)[:, None]) + 1  # of the masks that are too many
        place = place + more[:, None] * (column > last[:, None])
        length = kept.sum(1) + more
        size = max(1, int(length.max()))
        row, old = kept.nonzero(as_tuple=True)
        at = row, place[row, old]
        x = torch.full((rows, size), spec.mask_id, device=where)
        answer = torch.full_like(x, spec.delete_id)
        x[at] = torch.where(hidden, spec.mask_id, batch.ids)[row, old]
        answer[at] = target[row, old]
        cell = torch.arange(size, device=where).expand(rows, size)
        extra = (cell >= begin) & (cell < begin + more[:, None])
        wanted = extra.clone()
        wanted[at] = hidden[row, old]
        x = torch.where(cell < length[:, None], x, spec.pad_id)

        weight = torch.where(extra, 1 / more.clamp(min=1)[:, None].double(), 1.0)
        tokens = int(batch.target.sum())
        weight = weight * tokens / (weight * wanted).sum().clamp(min=1)
        is_length = torch.zeros_like(wanted)
        if spec.length_head and batch.prompt is not None:
            is_length.scatter_(1, batch.prompt[:, None] - 1, batch.target.any(1)[:, None])
            answer = torch.where(is_length, batch.target.sum(1).clamp(max=spec.vocab_size - 1)[:, None], answer)
            weight = torch.where(is_length, self.length_weight * tokens / rows, weight)
            wanted = wanted | is_length
        row, column = wanted.nonzero(as_tuple=True)
        return Prepared(
            ask=Forward(
                x=x,
                pos=torch.where(cell < length[:, None], cell, -1),
                want=torch.where(wanted, cell, -1),
                attend=spec.attend,
                prompt=batch.prompt if spec.isolate_prompt else None,
            ),
            target=answer[row, column],
            weight=weight[row, column].float(),
            row=row,
            rows=rows,
            tokens=tokens,
            extra={
                "forbidden": torch.tensor(sorted({*spec.forbidden, spec.mask_id}), device=where),
                "is_length": is_length[row, column],
            },
        )

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """The loss to minimise; in nats of each row the bound, or in training the cross-entropy of its masks."""
        if not self._resizes:
            return self._plain.loss(logits, prepared)
        extra = prepared.extra
        nll, train = cross_entropy(
            logits, prepared.target, extra["forbidden"], self.label_smoothing, extra["is_length"]
        )
        return LossTerms(
            loss=(train * prepared.weight).sum() / max(prepared.tokens, 1),
            nats=per_row(nll, prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=False,
        )


def _span(can: Tensor, uniform: Tensor) -> Tensor:
    """A random span of each row's positions: ``can`` [B, L] bool, ``uniform`` [B, 2] -> [B, L] bool."""
    ends = (uniform * (can.sum(1, keepdim=True) + 1)).long().sort(1).values
    number = can.cumsum(1) - 1
    inside = can & (number >= ends[:, :1]) & (number < ends[:, 1:])
    return torch.where((ends[:, :1] == ends[:, 1:]), can, inside)
