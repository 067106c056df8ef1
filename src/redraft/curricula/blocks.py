"""Blocks: block-causal attention whose blocks grow to the whole sequence, then shrink to the family's own size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from redraft.curricula.base import Curriculum
from redraft.errors import UserError
from redraft.options import check, setting
from redraft.types import AttentionPattern, Spec


@dataclass(frozen=True)
class Blocks(Curriculum):
    """Warm-up, stable, decay of the block size (LLaDA2.0, Bie et al. 2025, arXiv:2512.15745).

    Over the first ``grow`` of training the block size doubles from 1 (causal attention) to the whole sequence. Then
    the sequence is one block: masked diffusion. Over the last ``shrink`` the block size halves down to that of the
    family, if its attention has blocks. Every size gets the same share of training. With family ``block`` the network
    attends to clean copies of earlier blocks; with family ``masked`` earlier blocks are noisy too.
    """

    grow: float = setting(0.5, "Share of training in which blocks grow.", least=0, most=1)
    shrink: float = setting(0.2, "Share of training in which blocks shrink at the end.", least=0, most=1)

    def __post_init__(self) -> None:
        check(self)
        if self.grow + self.shrink > 1:
            what = f"Curriculum 'blocks': grow + shrink = {self.grow + self.shrink:g} must be at most 1."
            raise UserError(what, "Lower one of them: both are shares of training.")

    def spec(self, spec: Spec, length: int, progress: float) -> Spec:
        return spec.with_network(attention=self.attention(spec.network.attention, length, progress))

    def attention(self, own: AttentionPattern, length: int, progress: float) -> AttentionPattern:
        """The attention at this point, for ``length`` positions and a family whose attention is ``own``."""
        doublings = max(1, math.ceil(math.log2(max(length, 2))))
        if progress < self.grow:
            return AttentionPattern("block", 2 ** int(progress / self.grow * doublings))
        if own.kind != "block":
            return own
        left = 1.0 - progress
        if left >= self.shrink:
            return AttentionPattern("full")
        halvings = max(1, doublings - int(math.log2(own.block)))
        return AttentionPattern(
            "block", max(own.block, 2 ** (doublings - 1 - int((1 - left / self.shrink) * halvings)))
        )
