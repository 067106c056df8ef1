"""Block diffusion: the chain rule over blocks and masked diffusion within each, in one pass over two streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.objectives.base import Objective
from redraft.objectives.masked import MaskedBatch, repeat_rows
from redraft.objectives.shared import blocks as blocks
from redraft.objectives.shared.cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.objectives.shared.noise import forbidden_ids
from redraft.types import Batch, Forward, LossTerms, Spec


@dataclass(frozen=True)
class Block(Objective[MaskedBatch]):
    """The bound of BD3-LM (Arriola et al. 2025, arXiv:2503.09573, eq. 7). With blocks x^1 .. x^K and x_r^b the block b
    with a share r of its tokens masked,

        -log p(x) <= sum_b E_r [ 1/r sum_{i in b masked} -log p_i(x_i | x_r^b, x^{<b}) ],   r uniform on (0, 1]

    A single block is masked diffusion. Blocks of one token are the chain rule, exactly and for all r. The blocks are
    those of ``spec.network.attention``. All blocks are trained in one forward pass over a noisy and a clean stream
    (``types.CleanStream``). The clean stream is omitted if no position attends to it.

    Fields:
        rate_min, rate_max: training draws r from (rate_min, rate_max]. Very low and very high noise
            increase the variance of the loss. The reported bound is always that of (0, 1].
        search: at each validation, select the interval of ``INTERVALS`` with the lowest variance of the loss.
        weight: what is minimised. ``bound``: the terms above. ``uniform``: the mean over the batch's masked tokens.
        complementary: train on every row twice, where the second copy masks exactly the tokens that are visible in the
            first one (Fast-dLLM v2, Wu et al. 2025, arXiv:2509.26328). It takes twice the operations, requires
            ``uniform`` and gives no bound.
        padding: what fills the last block behind the end of an answer. ``end``: end-of-text tokens, which are learnt
            and part of the bound. ``mask``: masks that are not predicted (Fast-dLLM v2); what is generated behind the
            end of a text is cut off.

    **Shift.** In a network that was autoregressive, position p is predicted at p - 1 (``spec.network.shift``; Fast-dLLM
    v2, Wu et al. 2025, arXiv:2509.26328). The first token of a block is then predicted at the last position of the
    block before it: in the clean stream, as in generation, where that block is finished.

    **End of answers.** A block is generated as a whole, so that an answer is padded to the end of its last block.
    """

    rate_min: float = 0.0
    rate_max: float = 1.0
    search: bool = False
    weight: Literal["bound", "uniform"] = "bound"
    label_smoothing: float = 0.0
    complementary: bool = False
    padding: Literal["end", "mask"] = "end"

    additive = True

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        check_interval(self.rate_min, self.rate_max)
        if self.complementary and self.weight != "uniform":
            raise UserError(
                "objective block: complementary rows have no bound.",
                "Set weight = 'uniform', or leave complementary out.",
            )

    def scoring(self) -> Block:
        """The objective whose nats are the bound, over all noise levels."""
        return replace(self, rate_min=0.0, rate_max=1.0, complementary=False)

    def candidates(self) -> Sequence[Block]:
        """The objectives with the noise levels of ``INTERVALS`` if ``search`` is on, else none."""
        return (
            [replace(self, rate_min=rate_min, rate_max=rate_max) for rate_min, rate_max in INTERVALS]
            if self.search
            else []
        )

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> MaskedBatch:
        """Draw a noise level for every block and request the masked tokens, on the device of the batch [B, L]."""
        tokens, rows = int(batch.target.sum()), len(batch.ids)
        batch = blocks.complete_blocks(batch, spec.network.attention, spec, self.padding)
        if batch.hidden is not None:
            return self.request(batch, spec, batch.hidden, torch.ones(batch.hidden.shape), tokens)
        group = blocks.groups(batch, spec.network.attention, spec)
        hidden, weight = blocks.hide(batch.target, group, self.rate_min, self.rate_max, generator)
        if not self.complementary:
            return self.request(batch, spec, hidden, weight, tokens)
        both = torch.cat([hidden, batch.target & ~hidden])
        prepared = self.request(repeat_rows(batch), spec, both, weight.repeat(2, 1), tokens)
        return replace(prepared, row=prepared.row % rows, rows=rows)

    def request(self, batch: Batch, spec: Spec, hidden: Tensor, weight: Tensor, tokens: int) -> MaskedBatch:
        """Request the ``hidden`` [B, L] tokens, which have a ``weight`` [B, L] in the bound."""
        rows, length = batch.ids.shape
        pos = torch.arange(length, device=batch.ids.device).expand(rows, length)
        group = blocks.groups(batch, spec.network.attention, spec)
        last = group.masked_fill(~batch.valid, -1).amax(1, keepdim=True)
        opening = hidden & _opens_block(batch, spec, group)
        clean = blocks.clean_stream(
            batch,
            spec,
            spec.network.attention,
            (group < last).sum(1),  # the last block is never looked back on
            torch.where(opening, pos, -1) if spec.network.shift else None,
        )
        noisy = hidden & ~opening
        chosen = torch.cat([each.flatten().nonzero().squeeze(1) for each in (noisy, opening)])
        bound = weight.flatten()[chosen].float()
        flat = torch.full_like(bound, tokens / max(len(chosen), 1))
        return MaskedBatch(
            request=Forward(
                tokens=batch.ids.masked_fill(hidden, spec.tokens.mask_id),
                positions=torch.where(batch.valid, pos, -1),
                targets=torch.where(noisy, pos, -1),
                attention=spec.network.attention,
                prompt=batch.prompt if spec.network.prompt_encoder else None,
                extra=() if clean is None else (clean,),
            ),
            target=batch.ids.flatten()[chosen],
            weight=bound if self.weight == "bound" else flat,
            row=chosen // length,
            rows=rows,
            tokens=tokens,
            forbidden=forbidden_ids(spec, batch.ids.device),
            bound=bound,
        )

    def loss(self, logits: Tensor, prepared: MaskedBatch) -> LossTerms:
        """The loss to minimise and the bound of each row in nats. The logits [N, V] are overwritten."""
        nll, train = cross_entropy(logits, prepared.target, prepared.forbidden, self.label_smoothing)
        return LossTerms(
            loss=(train * prepared.weight).sum() / max(prepared.tokens, 1),
            nats=per_row(nll * prepared.bound, prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=not self.complementary,
        )


def _opens_block(batch: Batch, spec: Spec, group: Tensor) -> Tensor:
    """[B, L] bool: positions that are predicted at the last position of the block before them, in the clean stream.

    The last position of an isolated prompt is in the noisy stream.
    """
    opens = torch.zeros_like(batch.target)
    if spec.network.shift:
        opens[:, 1:] = group[:, 1:] != group[:, :-1]
        if spec.network.prompt_encoder and batch.prompt is not None:
            opens &= torch.arange(opens.shape[1], device=opens.device) > batch.prompt[:, None]
    return opens


# The intervals of the paper's grid (widths 0.5 to 0.9), and the whole of (0, 1].
INTERVALS = ((0.0, 1.0), (0.0, 0.5), (0.3, 0.8), (0.5, 1.0), (0.2, 0.8), (0.1, 0.9), (0.45, 0.95), (0.05, 0.95))


def check_interval(rate_min: float, rate_max: float) -> None:
    """Check that (rate_min, rate_max] is an interval of masking rates.

    Raises:
        UserError: it is not within (0, 1].
    """
    if not 0 <= rate_min < rate_max <= 1:
        raise UserError(
            f"rate_min = {rate_min} and rate_max = {rate_max} are not an interval of masking rates in (0, 1].",
            "Use rate_min = 0 and rate_max = 1 for all rates.",
        )
