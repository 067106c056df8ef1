"""What networks of tokens share that may be told the time, or what they predicted before, and may predict edits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.models.parts.backbone import Backbone
from redraft.models.parts.edits import EditRates
from redraft.models.parts.guess import Guessed
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.time import Modulation, TimeEmbedding
from redraft.types import Forward


class Readout(Backbone):
    """What stands before and behind the blocks. None where the network has no such part."""

    norm: RMSNorm
    time: TimeEmbedding | None
    final_modulation: Modulation | None
    edits: EditRates | None
    head: nn.Linear | None  # None: the embedding's own weights
    guess: Guessed | None

    def listen(self, told: bool) -> None:
        """From now on, read what was predicted before, by a map that begins at zero; or no more."""
        if told != self.config.guess:
            weight = self.embedding.weight
            self.guess = Guessed(weight.shape[1]).to(weight.device, weight.dtype) if told else None
            self.config = replace(self.config, guess=told)

    def embed(self, ask: Forward) -> Tensor:
        x = super().embed(ask)
        return x if self.guess is None or ask.guess is None else x + self.guess(ask, self.embedding.weight)

    def condition(self, ask: Forward) -> Tensor | None:
        """[R, D] of the request's time, for networks that are told it."""
        if self.time is None:
            return None
        if ask.t is None:
            raise ValueError("this network is conditioned on time, but the request carries no t")
        told: Tensor = self.time(ask.t.to(self.device))
        return told

    def predict(self, picked: Tensor, ask: Forward, condition: Tensor | None) -> Tensor:
        """[N, D], hidden states of the wanted positions, -> [N, V] logits, or log-rates of edits."""
        x: Tensor = self.norm(picked)
        if self.final_modulation is not None and condition is not None:
            row = (ask.want >= 0).nonzero()[:, 0].to(self.device)
            shift, scale = self.final_modulation(condition)
            x = torch.addcmul(shift[row, 0], x, 1 + scale[row, 0])
        if self.edits is not None:
            rates: Tensor = self.edits(x, self.embedding.weight)
            return rates
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)
