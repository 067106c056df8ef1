"""DAEDAL: find the length of the answer by the certainty of its end, before and during denoising."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_POSITIONS
from redraft.options import setting
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common, growing
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class Daedal(Sampler):
    """Variable length without training (arXiv:2508.00819).

    The certainty of the end is e = (sum of p(end) over the last ``window`` free positions where the end is the
    likeliest token) / ``window``.

    1. While e < ``end`` and there is room, a pass appends ``grow`` masks and writes nothing. Then come 2 ``grow`` more.
    2. A pass writes all positions of the block with p(x) > ``threshold``, and always the most confident one. While
       e < ``expand``, the least confident free position of the block, if below ``low``, becomes ``grow`` masks.

    It needs a model that has learned where a text ends by predicting its end: not one with a length head.
    """

    initial: int = setting(64, "Masks that the answer begins with.", least=1, most=MAX_POSITIONS, unit="positions")
    grow: int = setting(8, "Masks that are added at once.", least=1, most=MAX_POSITIONS, unit="positions")
    end: float = setting(0.5, "Certainty of the end below which the first phase adds masks.", least=0, most=1)
    expand: float = setting(0.9, "Certainty of the end below which the second phase adds masks.", least=0, most=1)
    low: float = setting(0.1, "Confidence below which a position may become several.", least=0, most=1)
    threshold: float = setting(0.9, "Confidence above which a position is written.", above=0, most=1)
    window: int = setting(32, "Positions that show the end.", least=1, most=MAX_POSITIONS, unit="positions")
    block: int = block_option()

    tries = {"threshold": (0.7, 0.9)}

    @property
    def initial_length(self) -> int:
        return self.initial

    def start(self, canvas: Canvas, spec: Spec) -> Tensor:
        """[B] bool: the row is in the first phase."""
        growing.check(canvas, spec)
        return canvas.gap.any(1)

    def plan(self, canvas: Canvas, state: Tensor, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, 0, spec))

    def apply(
        self, canvas: Canvas, state: Tensor, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[Tensor, Step]:
        request, out = requests[0], outputs[0]
        rows = request.rows
        p_end, is_end = growing.ends(request, out, spec)
        certainty = self._certainty(p_end, is_end)
        room = growing.room(canvas)[rows]

        lengthening = state[rows] & (certainty < self.end) & (room > 0)
        begins = state[rows] & ~lengthening
        added = torch.where(lengthening, self.grow, torch.where(begins, 2 * self.grow, 0))
        steps = [growing.append(canvas, spec, rows, torch.minimum(added, room))]

        conf = growing.confident(canvas, spec, request, out, self.block).masked_fill(lengthening[:, None], -torch.inf)
        chosen = (conf > math.log(self.threshold)) | common.best(conf, torch.ones_like(rows))
        steps.append(common.write(request, out, chosen))

        doubt = -conf.masked_fill(chosen, -torch.inf)
        low = math.log(self.low) if self.low else -math.inf
        doubt = doubt.masked_fill((doubt == torch.inf) | (-doubt >= low), -torch.inf)
        widens = common.best(doubt, ((certainty < self.expand) & ~state[rows]).long())
        steps.append(growing.widen(canvas, spec, request, widens, self.grow - 1))
        state = state.clone()
        state[rows] = lengthening
        return state, growing.combined(steps)

    def _certainty(self, p_end: Tensor, is_end: Tensor) -> Tensor:
        """[R] the certainty of the end, from its probability and whether it is the likeliest token, [R, W] each."""
        after = is_end.flip(1).cumsum(1).flip(1)  # ends from here on
        counted = is_end & (after <= self.window)
        return (p_end * counted).sum(1) / self.window
