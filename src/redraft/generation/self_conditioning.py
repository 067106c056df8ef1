"""Self-conditioning: each request contains the network's last prediction at positions that are still open."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from redraft.models.parts.self_conditioning import ExpectedEmbedding
from redraft.runtime import download, upload
from redraft.samplers.shared import common
from redraft.types import FREE, Canvas, Extra, Network, Output, Request, SelfConditioning, Spec
from redraft.types.spec import WHOLE


class Memory(ABC):
    """The last prediction at each position of a canvas that is not written yet."""

    @abstractmethod
    def of(self, canvas: Canvas, rows: Tensor) -> tuple[Extra, ...]:
        """The last predictions of ``rows`` [R], none at positions that are written; () before the first one."""

    @abstractmethod
    def keep(self, canvas: Canvas, request: Request, output: Output, network: Network) -> None:
        """Store the predictions of an answer, after guidance and constraint."""

    @abstractmethod
    def reorder(self, parents: Tensor) -> None:
        """Copy rows from their parents [B]."""


def memory(canvas: Canvas, spec: Spec) -> Memory | None:
    """The memory that a network needs; None: it reads no previous predictions."""
    count = spec.network.self_conditioning
    if count == 0:
        return None
    return ExpectedMemory() if count == WHOLE else PredictionMemory(canvas, count)


class PredictionMemory(Memory):
    """The ``count`` likeliest tokens of each prediction.

    The prediction of a position is deleted when its token is written, even if the position is masked again later.
    """

    def __init__(self, canvas: Canvas, count: int) -> None:
        self.last = SelfConditioning.blank(canvas.ids, count)

    def of(self, canvas: Canvas, rows: Tensor) -> tuple[Extra, ...]:
        """The last predictions of ``rows`` [R], with weight 0 at positions that are not free."""
        self.last.weight[rows] *= (canvas.status[rows] == FREE)[:, :, None]
        return (SelfConditioning(self.last.token[rows], self.last.weight[rows]),)

    def keep(self, canvas: Canvas, request: Request, output: Output, network: Network) -> None:
        """Store the predictions of an answer, after guidance and constraint."""
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        at = request.rows[row], request.target_positions[row, column]
        token, weight = SelfConditioning.likeliest(output.log_p, self.last.token.shape[2])
        self.last.token[at], self.last.weight[at] = download(token, weight)

    def reorder(self, parents: Tensor) -> None:
        """Copy rows from their parents [B]."""
        self.last = SelfConditioning(self.last.token[parents], self.last.weight[parents])


class ExpectedMemory(Memory):
    """The mean embedding of each prediction (``Network.expected``), at the temperature of the sampler's schedule.

    It stays on the device: a prediction over a large vocabulary is as large as thousands of embeddings.
    """

    def __init__(self) -> None:
        self.last: Tensor | None = None  # [B, L, D], from the first prediction on

    def of(self, canvas: Canvas, rows: Tensor) -> tuple[Extra, ...]:
        """The last predictions of ``rows`` [R], zero at positions that are not open."""
        if self.last is None:
            return ()
        where = self.last.device
        return (ExpectedEmbedding(self.last[upload(rows, where)] * upload(canvas.open[rows], where)[:, :, None]),)

    def keep(self, canvas: Canvas, request: Request, output: Output, network: Network) -> None:
        """Store the predictions of an answer, after guidance and constraint."""
        read: Any = network
        parts = [read.expected(log_p) for log_p in common.heated(canvas, request, output.log_p)]
        if not parts:
            return
        mean = torch.cat(parts)
        if self.last is None:
            self.last = mean.new_zeros(*canvas.ids.shape, mean.shape[1])
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        at = torch.stack([request.rows[row], request.target_positions[row, column]])
        rows, positions = upload(at, mean.device)
        self.last[rows, positions] = mean

    def reorder(self, parents: Tensor) -> None:
        """Copy rows from their parents [B]."""
        if self.last is not None:
            self.last = self.last[upload(parents, self.last.device)]
