"""Autoregressive: the leftmost free position at each pass; greedy, sampled, or beam search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.types import FREE, SEALED, Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class Autoregressive:
    """Left to right. ``beams`` > 1 is beam search over sum(log p) / length^``length_penalty`` (Wu et al. 2016,
    arXiv:1609.08144, without coverage): finished hypotheses stay in the beam and compete with the live ones.
    """

    beams: int = 1
    length_penalty: float = 1.0

    exact = True
    tries = {"beams": (1, 2, 4)}
    retracts = False

    @property
    def width(self) -> int:
        return self.beams

    def start(self, canvas: Canvas, spec: Spec) -> None:
        if self.beams < 1:
            raise UserError(f"beams = {self.beams} must be at least 1.")
        if self.beams > 1 and bool((canvas.draw.temperature > 0).any()):
            raise UserError(
                "beam search keeps the likeliest texts and draws nothing.", "Set temperature 0, or beams 1."
            )
        if spec.shift != 1:
            raise UserError("this model does not predict left to right.", "Pick a diffusion sampler.")

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        free = canvas.status.numpy() == FREE
        live = np.flatnonzero(free.any(1))
        if not len(live):
            return []
        frontier = free[live].argmax(1)
        positions, rows = np.arange(frontier.max()), torch.from_numpy(live)
        return [
            Forward(
                x=torch.from_numpy(canvas.ids.numpy()[live, : len(positions)]),
                pos=torch.from_numpy(np.where(positions < frontier[:, None], positions, -1)),
                want=torch.from_numpy(frontier[:, None]),
                attend=spec.attend,
                prompt=canvas.prompt[rows] if spec.isolate_prompt else None,
                rows=rows,
                stamp=torch.zeros_like(rows),  # the position alone keys the draw
            )
        ]

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None
        if self.beams > 1:
            return None, self._beam(canvas, ask, out)
        sealed = torch.full_like(ask.rows, SEALED)
        return None, Step(ask.rows, ask.want[:, 0], out.token[:, 0], sealed, out.conf[:, 0])

    def _beam(self, canvas: Canvas, ask: Forward, out: Output) -> Step:
        """Keep the best ``beams`` among finished rows and the continuations of live ones, per request."""
        assert ask.rows is not None
        k, batch = self.beams, len(canvas.ids)
        fan = min(k, out.log_p.shape[1])
        log_p, token = out.log_p.topk(fan, -1)
        written = (canvas.status == SEALED).sum(1)
        # Candidates of row r: column 0 is "stay as you are" (finished rows), columns 1..fan continue it.
        score = torch.full((batch, fan + 1), -torch.inf, dtype=torch.float64)
        gain, tokens = torch.zeros_like(score), torch.full_like(score, -1, dtype=torch.int64)
        live = torch.zeros(batch, dtype=torch.bool)
        live[ask.rows] = True
        gain[ask.rows, 1:], tokens[ask.rows, 1:] = log_p.cpu().double(), token.cpu()
        score[~live, 0] = self._normal(canvas.score[~live], written[~live])
        ahead = self._normal(canvas.score[live, None] + gain[live, 1:], written[live, None] + 1)
        score[live, 1:] = ahead.clamp(min=-1e30)  # where a constraint leaves fewer than k, the impossible fill the beam
        twin = (written == 0) & (torch.arange(batch) % k != 0)  # at the start all beams are equal: expand one
        score[twin & live] = -torch.inf
        top = score.view(-1, k * (fan + 1)).topk(k, -1).indices
        parent = (top.div(fan + 1, rounding_mode="floor") + torch.arange(0, batch, k)[:, None]).flatten()
        column = (top % (fan + 1)).flatten()
        row = (column > 0).nonzero()[:, 0]
        source, column = parent[row], column[row]
        position = (canvas.status[source] == FREE).to(torch.int8).argmax(1)
        sealed = torch.full_like(row, SEALED)
        return Step(row, position, tokens[source, column], sealed, gain[source, column], parents=parent)

    def _normal(self, score: Tensor, length: Tensor) -> Tensor:
        return score / length.clamp(min=1).double() ** self.length_penalty
