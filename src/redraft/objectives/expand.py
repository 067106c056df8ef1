"""Expand: masked diffusion in which a mask may stand for no token, one token or several."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.objectives.base import Objective
from redraft.objectives.masked import Masked, MaskedBatch, choose_positions, mask_count
from redraft.objectives.shared import times as times
from redraft.objectives.shared.cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.objectives.shared.noise import RescaledSchedule, forbidden_ids, noisable
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec


@dataclass
class ExpandBatch(Prepared):
    """Rows whose masks were merged or added."""

    is_length: Tensor  # [N] bool: the target is a length


@dataclass(frozen=True)
class Expand(Objective[MaskedBatch | ExpandBatch]):
    """DreamOn (Wu et al. 2026, arXiv:2602.01326): learns the length of a missing part together with its tokens.

    A share 1 - alpha(t) of the tokens is masked. Then

    - neighbouring masks are merged with a probability that is drawn for each row, uniformly from 0 to ``merge``. The
      target of a mask that stands for two or more tokens is ``expand``, which replaces it by two masks;
    - between 1 and ``surplus`` additional masks are appended, with target ``delete``.

    Each of the two is applied to half of the rows, independently. The loss is the cross-entropy of all masks, in which
    the ``delete`` targets of a row together have the weight of one token, because there would be too many of them
    otherwise (DreamOn reduces their weight too). For plain text, a random span may be masked, as in infilling; for
    pairs the whole answer, except for its closing end-of-text.

    This loss is not a bound on the likelihood. The reported nats are the bound of masked diffusion of the same network
    with ``expand`` and ``delete`` forbidden, given the length or including its prediction (``scoring``).
    """

    merge: float = 0.0
    surplus: int = 0
    length_weight: float = 0.1
    label_smoothing: float = 0.0

    additive = True

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        if not 0 <= self.merge < 1:
            raise UserError(f"objective expand: merge = {self.merge} must be at least 0 and below 1.")
        if self.surplus < 0:
            raise UserError(f"objective expand: surplus = {self.surplus} must be at least 0.")

    @property
    def _plain(self) -> Masked:
        return Masked(length_weight=self.length_weight, label_smoothing=self.label_smoothing)

    @property
    def _resizes(self) -> bool:
        return self.merge > 0 or self.surplus > 0

    def scoring(self) -> Expand:
        """The bound of masked diffusion."""
        return replace(self, merge=0.0, surplus=0)

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> MaskedBatch | ExpandBatch:
        """Mask tokens, merge and append masks, and request every mask, on the device of the batch [B, L]."""
        if not self._resizes:
            forbidden = {*spec.tokens.forbidden, spec.tokens.expand_id, spec.tokens.delete_id}
            return self._plain.prepare(batch, spec.with_tokens(forbidden=tuple(sorted(forbidden))), generator)
        where, (rows, width) = batch.ids.device, batch.ids.shape
        assert spec.family.schedule is not None

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).to(where)

        # 1. Choose the masked tokens.
        can = noisable(batch, spec)
        if batch.prompt is None:
            can = _span(can, draw(rows, 2))
        count = can.sum(1)
        share = 1 - RescaledSchedule(spec.family.schedule).alpha(times.continuous(rows, generator, where))
        hidden = choose_positions(can, mask_count(share, count), generator)

        # 2. Choose the masks that are merged into the mask before them; that one stands for several tokens.
        chance = draw(rows) * self.merge * (draw(rows) < 0.5)
        joined = torch.zeros_like(hidden)
        joined[:, 1:] = hidden[:, 1:] & hidden[:, :-1] & (draw(rows, width)[:, 1:] < chance[:, None])
        several = torch.zeros_like(hidden)
        several[:, :-1] = joined[:, 1:]
        target = torch.where(several, spec.tokens.expand_id, batch.ids)

        # 3. Choose the number of additional masks.
        more = (draw(rows) * self.surplus).floor().long() + 1
        more = torch.where((draw(rows) < 0.5) & (count > 0) & (self.surplus > 0), more, 0)
        return self._request(batch, spec, can, hidden, joined, target, more)

    def _request(
        self, batch: Batch, spec: Spec, can: Tensor, hidden: Tensor, joined: Tensor, target: Tensor, more: Tensor
    ) -> ExpandBatch:
        """Build rows without the ``joined`` [B, L] positions, and with ``more`` [B] masks after the last position that
        ``can`` [B, L] be masked."""
        where, (rows, width) = batch.ids.device, batch.ids.shape
        column = torch.arange(width, device=where)
        last = torch.where(can, column, -1).amax(1)
        kept = batch.valid & ~joined
        place = kept.cumsum(1) - 1
        begin = place.gather(1, last.clamp(min=0)[:, None]) + 1  # first additional mask
        place = place + more[:, None] * (column > last[:, None])
        length = kept.sum(1) + more
        size = max(1, int(length.max()))
        row, old = kept.nonzero(as_tuple=True)
        at = row, place[row, old]
        x = torch.full((rows, size), spec.tokens.mask_id, device=where)
        answer = torch.full_like(x, spec.tokens.delete_id)
        x[at] = torch.where(hidden, spec.tokens.mask_id, batch.ids)[row, old]
        answer[at] = target[row, old]
        cell = torch.arange(size, device=where).expand(rows, size)
        extra = (cell >= begin) & (cell < begin + more[:, None])
        is_target = extra.clone()
        is_target[at] = hidden[row, old]
        x = torch.where(cell < length[:, None], x, spec.tokens.pad_id)

        weight = torch.where(extra, 1 / more.clamp(min=1)[:, None].double(), 1.0)
        tokens = int(batch.target.sum())
        weight = weight * tokens / (weight * is_target).sum().clamp(min=1)
        is_length = torch.zeros_like(is_target)
        if spec.network.length_head and batch.prompt is not None:
            is_length.scatter_(1, batch.prompt[:, None] - 1, batch.target.any(1)[:, None])
            answer = torch.where(is_length, batch.target.sum(1).clamp(max=spec.tokens.vocab_size - 1)[:, None], answer)
            weight = torch.where(is_length, self.length_weight * tokens / rows, weight)
            is_target = is_target | is_length
        row, column = is_target.nonzero(as_tuple=True)
        return ExpandBatch(
            request=Forward(
                tokens=x,
                positions=torch.where(cell < length[:, None], cell, -1),
                targets=torch.where(is_target, cell, -1),
                attention=spec.network.attention,
                prompt=batch.prompt if spec.network.prompt_encoder else None,
            ),
            target=answer[row, column],
            weight=weight[row, column].float(),
            row=row,
            rows=rows,
            tokens=tokens,
            forbidden=forbidden_ids(spec, where),
            is_length=is_length[row, column],
        )

    def loss(self, logits: Tensor, prepared: MaskedBatch | ExpandBatch) -> LossTerms:
        """The loss to minimise and the nats of each row: the bound, or in training the cross-entropy of its masks.

        The logits are [N, V].
        """
        if isinstance(prepared, MaskedBatch):
            return self._plain.loss(logits, prepared)
        nll, train = cross_entropy(
            logits, prepared.target, prepared.forbidden, self.label_smoothing, prepared.is_length
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
