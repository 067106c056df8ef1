"""The lean form of an encoder-decoder: both stacks as in ``_lean``, with attention across as it is."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.models._lean import MATRICES, Layer, Weights, level, normal, on_cpu, unlevel
from redraft.models.cross_attention import CrossAttention, Looking, check, split
from redraft.models.parts.attention import see
from redraft.models.parts.backbone import pick
from redraft.models.parts.store import KeyValueStore
from redraft.types import Forward


class LeanCross:
    """Equal to the network it is made of up to rounding; see ``Lean``. Weights of attention across stay float32."""

    def __init__(self, network: CrossAttention, weights: Weights = "float32") -> None:
        if not LeanCross.fits(network):
            raise ValueError("lean inference is for float32 networks on a CPU that are not told the time")
        self.network, self.config = network, network.config
        matrix = MATRICES[weights]
        with torch.no_grad():
            self.encoder = [Layer(block, network.config, matrix) for block in network.encoder]
            blocks: list[Any] = list(network.blocks)
            self.layers = [Layer(block, network.config, matrix) for block in blocks]
            self.between = [block.between for block in blocks]
            head = network.embedding.weight if network.head is None else network.head.weight
            self.head = matrix(head * network.norm.weight)
            self.rotary = torch.complex(network.rotary[:, 0], network.rotary[:, 1])

    @staticmethod
    def fits(network: Any) -> bool:
        """Is there a lean form of this network, as it stands, on this machine?"""
        return isinstance(network, CrossAttention) and not network.config.timed and on_cpu(network)

    def store(self, seats: int, cells: int) -> KeyValueStore:
        """A key-value store of this network's shape. Its keys are laid out for this form of the network alone."""
        return self.network.store(seats, cells)

    @torch.inference_mode()
    def __call__(self, ask: Forward, store: KeyValueStore | None = None) -> Tensor:
        """Flat logits [N, V] in the order of ``ask.want >= 0``; errors as of the network."""
        net, c = self.network, self.config
        check(ask, c.shift)
        begin, source, answer = split(ask)
        memory = None if begin is None else net.memory(ask, begin, source, answer, store, self._encode)
        seen = net.sight(answer, begin, store, memory)
        _, pos = answer.streams
        at = (pos if begin is None else pos - begin[:, None]).clamp(min=0)
        turned = Looking(**{**vars(seen), "table": self.rotary[at]})
        x = net.embed(answer)
        x, shape = level(x), x.shape[:-1]
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            picked = partial(pick, ask=answer, shift=c.shift) if last else None
            between = None if memory is None else partial(self.between[number], sight=seen)
            x, shape = layer(x, shape, turned, picked, between)
        if net.edits is not None:
            x = unlevel(x, shape)
            rates: Tensor = net.edits(normal(x, c.norm_eps) * net.norm.weight, net.embedding.weight)
            return rates
        return unlevel(self.head(normal(x, c.norm_eps)), shape)

    def _encode(self, source: Forward) -> Tensor:
        x, sight = F.embedding(source.x, self.network.embedding.weight), see(source, self.rotary, None, False)
        x, shape = level(x), x.shape[:-1]
        for layer in self.encoder:
            x, shape = layer(x, shape, sight)
        encoded: Tensor = self.network.encoder_norm(unlevel(x, shape))
        return encoded
