"""Exact: reuse what was computed from the same tokens and could not have seen anything else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from redraft.types import Forward


@dataclass(frozen=True)
class Exact:
    """Prefix reuse without any error.

    A cell still holds if its token and every token it could see are unchanged. Seen from the front, that is the
    longest prefix whose tokens match the record, cut back to where a stage begins: any position of a causal model,
    the end of an isolated prompt, a block of a block-causal model, nothing of a fully bidirectional one. In a network
    told the time every cell depends on it, and the time changes at every pass: nothing holds.
    """

    def narrow(self, ask: Forward, cells: np.ndarray, shift: int) -> Forward:
        """Drop the positions that need not run.

        Args:
            cells: [R, C] token on record for each cell, -1 for none.
            shift: the network's; the position before the first wanted one must run where it is 1.
        """
        x, pos, want = ask.x.numpy(), ask.pos.numpy(), ask.want.numpy()
        rows, width = x.shape
        same = np.full((rows, width + 1), False)  # the last column ends every match
        np.equal(x, cells[:, :width], out=same[:, :width])
        same[:, :width] &= pos >= 0
        match = same.argmin(1)
        first = want[:, 0] if want.shape[1] == 1 else np.where(want < 0, width + shift, want).min(1)
        keep = self._stage_start(ask, np.minimum(match, first - shift) if ask.t is None else np.zeros_like(match))
        read = torch.from_numpy(keep)
        low = int(keep.min())
        if low == 0 and not keep.any():
            return replace(ask, read=read)
        if (keep == low).all():
            return replace(ask, x=ask.x[:, low:], pos=ask.pos[:, low:], read=read)
        count = np.where(pos < 0, 0, 1).sum(1) - keep
        column = np.minimum(keep[:, None] + np.arange(count.max()), width - 1)
        real = np.arange(count.max()) < count[:, None]
        return replace(
            ask,
            x=torch.from_numpy(np.take_along_axis(x, column, 1)),
            pos=torch.from_numpy(np.where(real, np.take_along_axis(pos, column, 1), -1)),
            read=read,
        )

    def _stage_start(self, ask: Forward, match: np.ndarray) -> np.ndarray:
        prompt = np.zeros_like(match) if ask.prompt is None else ask.prompt.numpy()
        after = match - prompt
        if ask.attend.kind == "causal":
            return np.where(after >= 0, match, 0)
        if ask.attend.kind == "full":
            return np.where(after >= 0, prompt, 0)
        return np.where(after >= 0, prompt + after // ask.attend.block * ask.attend.block, 0)
