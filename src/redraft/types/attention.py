"""Which positions attend to which."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionPattern:
    """Which positions attend to which: position i attends to j iff ``group(j) <= group(i)``.

    ``full``: one group. ``causal``: a group per position. ``block``: a group per ``block`` positions. Where a request
    has prompt lengths, the prompt is a group of its own before all others, and blocks are counted from its end. The
    prompt then attends to all of itself and never to the answer (as in an encoder-decoder), so its keys and values are
    exact for every later pass.

    This is what a request allows. Layers may attend to less: sliding windows (``models.parts.attention.see``).
    """

    kind: str = "full"  # full | causal | block
    block: int = 0

    def group(self, positions: Tensor, prompt: Tensor | None) -> Tensor:
        """Group of each position. ``positions`` [R, Q], ``prompt`` [R] or None -> [R, Q]."""
        offset = positions if prompt is None else positions - prompt[:, None]
        if self.kind == "full":
            group = torch.zeros_like(positions)
        elif self.kind == "causal":
            group = offset
        else:
            group = offset.div(self.block, rounding_mode="floor")
        return group if prompt is None else torch.where(offset >= 0, group + 1, 0)
