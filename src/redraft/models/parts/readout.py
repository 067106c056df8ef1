"""Input and output layers of token networks: self-conditioning, time conditioning, token logits or edit rates."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.models.parts.backbone import EVERY, Backbone
from redraft.models.parts.edits import EditRates
from redraft.models.parts.flops import ForwardCost, matrix_entries
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.self_conditioning import SelfConditioningProjection, previous_mean
from redraft.models.parts.time import Modulation, TimeEmbedding
from redraft.runtime import upload
from redraft.types import Forward


class Readout(Backbone):
    """The layers before and after the blocks of a token network; None for layers that a network doesn't have."""

    norm: RMSNorm
    time: TimeEmbedding | None
    final_modulation: Modulation | None
    edits: EditRates | None
    self_conditioning: SelfConditioningProjection | None

    def enable_self_conditioning(self, enabled: bool) -> None:
        """Add the input for previous predictions, with weights of zero; or remove it."""
        if enabled != self.config.self_conditioning:
            weight = self.embedding.weight
            projection = SelfConditioningProjection(weight.shape[1]).to(weight.device, weight.dtype)
            self.self_conditioning = projection if enabled else None
            self.config = replace(self.config, self_conditioning=enabled)

    def forward_cost(self) -> ForwardCost:
        """As ``Backbone``, plus the self-conditioning projection of every position; edits have two rates per token."""
        cost = super().forward_cost()
        if self.self_conditioning is not None:
            cost = replace(cost, position=cost.position + 2 * matrix_entries(self.self_conditioning))
        return cost if self.edits is None else replace(cost, prediction=2 * cost.prediction)

    def embed(self, request: Forward) -> Tensor:
        """Inputs [R, Q, D] of the blocks: token embeddings, plus the previous prediction if the request has one."""
        x = super().embed(request)
        mean = None if self.self_conditioning is None else previous_mean(request, self.embedding.weight)
        if self.self_conditioning is None or mean is None:
            return x
        added = self.self_conditioning(mean)
        return x + (added if added.shape == x.shape else F.pad(added, (0, 0, 0, x.shape[1] - added.shape[1])))

    def condition(self, request: Forward) -> Tensor | None:
        """The embedded time [R, D] of a request; None for networks without time conditioning.

        Raises:
            ValueError: the network needs a time and the request has none.
        """
        if self.time is None:
            return None
        if request.time is None:
            raise ValueError("This network is conditioned on time, but the request has no time.")
        embedded: Tensor = self.time(upload(request.time, self.device))
        return embedded

    def finish(self, x: Tensor, request: Forward, condition: Tensor | None) -> Tensor:
        """The last norm of the hidden states [N, D] of the target positions, with time conditioning -> [N, D]."""
        x = self.norm(x)
        if self.final_modulation is not None and condition is not None:
            row = upload((request.targets >= 0).nonzero()[:, 0], self.device)
            shift, scale = self.final_modulation(condition)
            x = torch.addcmul(shift[row, 0], x, 1 + scale[row, 0])
        return x

    def project(self, states: Tensor, request: Forward, part: slice = EVERY) -> Tensor:
        """Hidden states [n, D] -> logits [n, V], or log-rates of edits [n, 2V + 1]."""
        if self.edits is not None:
            rates: Tensor = self.edits(states, self.embedding.weight)
            return rates
        return self.beside_states(states, request, self.onto_vocabulary)

    @property
    def logit_width(self) -> int:
        """V, or 2V + 1 for edits."""
        size = super().logit_width
        return size if self.edits is None else 2 * size + 1
