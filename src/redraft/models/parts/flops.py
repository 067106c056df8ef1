"""Counts of floating-point operations of forward passes, from the shapes of a network's weights.

A multiply-add counts as two operations. Matrix products are counted; norms, rotations, softmax and activations are not
(a few per cent), as is usual (Kaplan et al. 2020, arXiv:2001.08361, appendix; Hoffmann et al. 2022, arXiv:2203.15556).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redraft.models.parts.moe import MixtureOfExperts
from redraft.models.parts.packed import packed_in
from redraft.types import CleanStream, Forward, Prepared, QueryMask, StateQuery, VectorQuery


@dataclass(frozen=True)
class ForwardCost:
    """Operations of a forward pass per unit of work (``Backbone.forward_cost``).

    A matrix of p entries takes 2 p operations per position. A layer takes 4 D operations per pair of a query and a key
    that it attends to (scores and weighted sum). Layers with local attention are counted as if they attended to every
    position: an upper bound. With adapters, the adapted matrices are counted as if they were trained.
    """

    position: int  # per position that runs through the blocks (of the decoder, if there is an encoder)
    pair: int  # per (query, key) pair
    prediction: int  # per position projected onto the vocabulary
    timed_row: int = 0  # per row and forward pass, if the network is conditioned on time
    encoder_position: int = 0  # per position that the encoder reads; 0: there is no encoder
    encoder_pair: int = 0

    def of_counts(
        self, queries: int, pairs: int, targets: int, timed_rows: int = 0, encoded: int = 0, encoded_pairs: int = 0
    ) -> float:
        """Operations of decoding, from the counts of the decode loop.

        Args:
            queries: positions that run through the network, without padding.
            pairs: sum over these positions of the number of keys, masked ones included.
            targets: positions projected onto the vocabulary.
            timed_rows: rows times forward passes.
            encoded, encoded_pairs: those queries and pairs that belong to prompts; an encoder, if any, runs them.
        """
        if not self.encoder_position:
            encoded = encoded_pairs = 0
        return float(
            self.position * (queries - encoded)
            + self.pair * (pairs - encoded_pairs)
            + self.prediction * targets
            + self.timed_row * timed_rows
            + self.encoder_position * encoded
            + self.encoder_pair * encoded_pairs
        )

    def of_request(self, request: Forward) -> int:
        """Operations of one forward pass without gradient. Encoding into vectors is not counted, as it takes few."""
        query = request.find(VectorQuery)
        if query is not None and query.kind == "encode":
            return 0
        states = request.find(StateQuery)
        return self._once(request, 0 if states is not None and states.only else int((request.targets >= 0).sum()))

    def of_training(self, prepared: Prepared) -> int:
        """Operations of one forward and backward pass over a prepared batch.

        The backward pass takes twice the operations of the forward pass (Chowdhery et al. 2022, arXiv:2204.02311,
        appendix B). Masked pairs, padding, time conditioning and the second forward pass of activation checkpointing
        are not counted.
        """
        return 3 * self._once(prepared.request, len(prepared.target))

    def _once(self, request: Forward, predictions: int) -> int:
        positions, pairs, encoder = int((request.streams[1] >= 0).sum()), attended_pairs(request), 0
        if self.encoder_position and request.prompt is not None:  # the encoder reads all but a prompt's last token
            encoded = request.prompt - 1
            positions -= int(encoded.sum())
            pairs -= int((encoded * request.prompt).sum())
            encoder = self.encoder_position * int(encoded.sum()) + self.encoder_pair * int((encoded**2).sum())
        return encoder + self.position * positions + self.prediction * predictions + self.pair * pairs


def matrix_entries(*modules: nn.Module) -> int:
    """Entries of the matrices that multiply one position in these modules; of experts, only the active ones count."""
    found = 0
    for module in modules:
        found += sum(weight.numel() for weight in module.parameters() if weight.ndim == 2)
        found += sum(matrix.numel() for matrix in packed_in(module) if len(matrix.shape) == 2)
        if isinstance(module, MixtureOfExperts):
            total = module.experts_gate_up.numel() + module.experts_down.numel()
            found += total * module.experts.active // module.experts.count
    return found


def attended_pairs(request: Forward) -> int:
    """Number of (query, key) pairs of a request that the attention pattern or mask allows, without padding."""
    queries, real = request.find(QueryMask), request.positions >= 0
    if queries is not None:
        return int((queries.mask & real[:, :, None]).sum())
    group = request.group(request.positions)
    visible = _below(group, real, group, True)
    stream = request.find(CleanStream)
    if stream is None:
        return int(visible[real].sum())
    # Two streams: noisy positions attend to their own group and to clean positions of earlier groups.
    clean, order = stream.positions >= 0, stream.attention.group(stream.positions, request.prompt)
    prompt = torch.zeros_like(group) if request.prompt is None else request.prompt[:, None].expand_as(group)
    own = visible - _below(group, real, group, False) + prompt.masked_fill(request.positions < prompt, 0)
    before = _below(request.group(stream.positions), clean, group, False)
    within_clean = _below(order, clean, order, True) + prompt[:, :1]
    return int((own + before)[real].sum() + within_clean[clean].sum())


def _below(keys: Tensor, real: Tensor, queries: Tensor, equal: bool) -> Tensor:
    """For each of ``queries`` [R, Q], the number of real ``keys`` [R, K] of its row below it (or equal) -> [R, Q]."""
    last = torch.iinfo(torch.int64).max
    return torch.searchsorted(keys.masked_fill(~real, last).sort(1).values, queries, right=equal)
