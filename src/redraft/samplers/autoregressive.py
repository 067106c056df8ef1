"""Autoregressive: generate the leftmost free position at each pass; greedy, sampled, or beam search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.limits import MAX_ROWS
from redraft.options import setting
from redraft.runtime import download
from redraft.samplers.base import Draws, Sampler, draws_option
from redraft.types import FREE, SEALED, Canvas, Drawing, Output, Request, Spec, Step


@dataclass(frozen=True)
class Autoregressive(Sampler):
    """Left to right. ``beams`` > 1 is beam search over sum(log p) / length^``length_penalty`` (Wu et al. 2016,
    arXiv:1609.08144, without coverage): finished hypotheses stay in the beam and compete with the live ones.
    """

    beams: int = setting(1, "Number of sequences that beam search keeps; 1 is off.", least=1, most=MAX_ROWS)
    length_penalty: float = setting(
        1.0, "Power of the length by which beam search divides log-probabilities.", least=-10, most=10
    )
    draws: Draws = draws_option("inverse_cdf")

    exact = True
    tries = {"beams": (1, 2, 4)}

    @property
    def width(self) -> int:
        return self.beams

    def start(self, canvas: Canvas, spec: Spec) -> None:
        if self.beams > 1 and bool((canvas.sampling.temperature > 0).any()):
            raise UserError(
                "Beam search keeps the likeliest sequences and does not sample.", "Set temperature 0, or beams 1."
            )
        if spec.network.shift != 1:
            raise UserError("This model does not predict left to right.", "Use a diffusion sampler.")

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        free = canvas.status.numpy() == FREE
        live = np.flatnonzero(free.any(1))
        if not len(live):
            return []
        frontier = free[live].argmax(1)
        positions, rows = np.arange(frontier.max()), torch.from_numpy(live)
        return [
            Request(
                tokens=torch.from_numpy(canvas.ids.numpy()[live, : len(positions)]),
                positions=torch.from_numpy(np.where(positions < frontier[:, None], positions, -1)),
                targets=torch.from_numpy(frontier[:, None]),
                attention=spec.network.attention,
                prompt=canvas.prompt[rows] if spec.network.prompt_encoder else None,
                # Samples are keyed by seed and position.
                drawing=Drawing(rows, torch.zeros_like(rows), gumbel=self.draws == "gumbel"),
            )
        ]

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        if self.beams > 1:
            return None, self._beam(canvas, request, out)
        sealed = torch.full_like(request.rows, SEALED)
        return None, Step(request.rows, request.targets[:, 0], out.token[:, 0], sealed, out.conf[:, 0])

    def _beam(self, canvas: Canvas, request: Request, out: Output) -> Step:
        """Keep the best ``beams`` among finished rows and the continuations of unfinished ones, per prompt."""
        k, batch = self.beams, len(canvas.ids)
        fan_out = min(k, out.log_p.shape[1])
        log_p, token = out.log_p.topk(fan_out, -1)
        length = (canvas.status == SEALED).sum(1)
        # Candidates of a row: column 0 is the unchanged row if it is finished, columns 1..fan_out continue it.
        score = torch.full((batch, fan_out + 1), -torch.inf, dtype=torch.float64)
        gain, tokens = torch.zeros_like(score), torch.full_like(score, -1, dtype=torch.int64)
        live = torch.zeros(batch, dtype=torch.bool)
        live[request.rows] = True
        log_p, token = download(log_p, token)
        gain[request.rows, 1:], tokens[request.rows, 1:] = log_p.double(), token
        score[~live, 0] = self._normalised(canvas.score[~live], length[~live])
        continued = self._normalised(canvas.score[live, None] + gain[live, 1:], length[live, None] + 1)
        # Finite, so that impossible candidates fill the beam if a constraint allows fewer than k.
        score[live, 1:] = continued.clamp(min=-1e30)
        duplicate = (length == 0) & (torch.arange(batch) % k != 0)  # all beams are equal at the start: expand one
        score[duplicate & live] = -torch.inf
        top = score.view(-1, k * (fan_out + 1)).topk(k, -1).indices
        parent = (top.div(fan_out + 1, rounding_mode="floor") + torch.arange(0, batch, k)[:, None]).flatten()
        column = (top % (fan_out + 1)).flatten()
        row = (column > 0).nonzero()[:, 0]
        source, column = parent[row], column[row]
        position = (canvas.status[source] == FREE).to(torch.int8).argmax(1)
        sealed = torch.full_like(row, SEALED)
        return Step(row, position, tokens[source, column], sealed, gain[source, column], parents=parent)

    def _normalised(self, score: Tensor, length: Tensor) -> Tensor:
        return score / length.clamp(min=1).double() ** self.length_penalty
