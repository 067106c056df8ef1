"""How much arithmetic a training step is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft import runtime
from redraft.models.cross_attention import CrossAttention
from redraft.types import Forward, Prepared


@dataclass(frozen=True)
class Arithmetic:
    """What a network's positions cost, counted off its weights.

    A matrix of p entries takes 2p FLOPs a position forward and 4p backward; attention takes 4 D FLOPs a layer forward
    and 8 D backward for each pair of positions of which one sees the other (Chowdhery et al. 2022, arXiv:2204.02311,
    appendix B, but pairs that are masked out aren't counted, and the output projection only where a prediction is
    wanted). Padding, softmaxes, norms and the second forward of activation
    checkpointing aren't counted; matrices that only an adapter changes are, as if they were trained.
    """

    body: int  # entries of the matrices every position passes through; with an encoder, those of the decoder
    head: int  # entries of the output projection
    pairs: int  # layers x width
    encoder: int = 0  # entries of the matrices that a position of the prompt passes through, where an encoder reads it
    encoder_pairs: int = 0  # the encoder's layers x width

    @classmethod
    def of(cls, network: Any) -> Arithmetic:
        """Count a transformer: its blocks' attention and mlp, and one projection onto the vocabulary."""
        shape = network.config
        parts = [part for block in network.blocks for part in (block.attention, block.mlp)]
        parts += [network.guess] if getattr(network, "guess", None) is not None else []
        outputs = shape.vocab_size * (2 if getattr(shape, "edits", False) else 1)  # insertion and substitution
        found = cls(body=_entries(parts), head=outputs * shape.dim, pairs=shape.layers * shape.dim)
        if not isinstance(network, CrossAttention):
            return found
        across = [part for block in network.blocks for part in (block.cross.query, block.cross.out)]  # type: ignore[union-attr]
        read = [*network.encoder, *(block.cross.key_value for block in network.blocks)]  # type: ignore[union-attr]
        return replace(
            found,
            body=found.body + _entries(across),
            encoder=_entries(read),
            encoder_pairs=shape.encoder_layers * shape.dim,
        )

    def training(self, prepared: Prepared) -> int:
        """FLOPs of one forward and backward pass over a prepared batch."""
        return 3 * self._once(prepared.ask, len(prepared.target))

    def forward(self, ask: Forward) -> int:
        """FLOPs of one pass without gradient. Making vectors of a text isn't counted: it is little beside them."""
        if ask.vectors is not None and ask.vectors.kind == "encode":
            return 0
        return self._once(ask, int((ask.want >= 0).sum()))

    def _once(self, ask: Forward, wanted: int) -> int:
        positions, pairs, encoder = int((ask.streams[1] >= 0).sum()), seen_pairs(ask), 0
        if self.encoder and ask.prompt is not None:  # reads all of a prompt but its last token
            encoded = ask.prompt - 1
            positions -= int(encoded.sum())
            pairs -= int((encoded * ask.prompt).sum())
            encoder = 2 * self.encoder * int(encoded.sum()) + 4 * self.encoder_pairs * int((encoded**2).sum())
        return encoder + 2 * self.body * positions + 2 * self.head * wanted + 4 * self.pairs * pairs


def _entries(parts: Iterable[Any]) -> int:
    return sum(p.numel() for part in parts for p in part.parameters() if p.ndim == 2)


def seen_pairs(ask: Forward) -> int:
    """How many (query, key) pairs of a request attend, by its ``Attend`` or mask; padding is in none of them."""
    if ask.mask is not None:
        return int((ask.mask & (ask.pos >= 0)[:, :, None]).sum())
    real, stage = ask.pos >= 0, ask.stage(ask.pos)
    seen = _below(stage, real, stage, True)
    if ask.clean is None:
        return int(seen[real].sum())
    # The second stream (``types.Clean``): noise sees its own stage, and clean text what came before it.
    clean, order = ask.clean.pos >= 0, ask.clean.attend.stage(ask.clean.pos, ask.prompt)
    prompt = torch.zeros_like(stage) if ask.prompt is None else ask.prompt[:, None].expand_as(stage)
    own = seen - _below(stage, real, stage, False) + prompt.masked_fill(ask.pos < prompt, 0)
    before = _below(ask.stage(ask.clean.pos), clean, stage, False)
    theirs = _below(order, clean, order, True) + prompt[:, :1]
    return int((own + before)[real].sum() + theirs[clean].sum())


def _below(keys: Tensor, real: Tensor, queries: Tensor, equal: bool) -> Tensor:
    """How many real ``keys`` [R, K] of its row are below each of ``queries`` [R, Q], or equal to it -> [R, Q]."""
    last = torch.iinfo(torch.int64).max
    return torch.searchsorted(keys.masked_fill(~real, last).sort(1).values, queries, right=equal)


class Meter:
    """Tokens and FLOPs per second of training between two calls, the device's queued work included, pauses left out."""

    def __init__(self, device: torch.device, tokens: int, flops: int) -> None:
        self._device, self._first, self._paused, self._pace = device, tokens, 0.0, 0.0
        self._last = (time.perf_counter(), tokens, flops)

    def lap(self, tokens: int, flops: int) -> tuple[float, float]:
        """(tokens per second, FLOP/s) since the last lap, given the counts by now."""
        runtime.synchronise(self._device)
        before, self._last = self._last, (time.perf_counter(), tokens, flops)
        seconds = max(self._last[0] - before[0], 1e-9)
        self._pace = seconds / max(tokens - before[1], 1)
        return (tokens - before[1]) / seconds, (flops - before[2]) / seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What is done inside, a validation for example, is no training."""
        runtime.synchronise(self._device)
        begun = time.perf_counter()
        yield
        runtime.synchronise(self._device)
        gone = time.perf_counter() - begun
        self._paused += gone
        self._last = (self._last[0] + gone, *self._last[1:])

    def ahead(self, tokens: float) -> float:
        """Seconds that so many more tokens take at the speed of the last lap, with as much pause a token as so far."""
        return tokens * (self._pace + self._paused / max(self._last[1] - self._first, 1))
