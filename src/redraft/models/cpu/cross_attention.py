"""The CPU form of an encoder-decoder: both stacks as in ``cpu.transformer``, with unchanged cross-attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.models.cpu.layers import MATRIX_TYPES, Layer, flatten_padded, rms_normalise, unflatten
from redraft.models.cpu.transformer import on_cpu
from redraft.models.cross_attention import CrossAttention
from redraft.models.parts.attention import attention_context
from redraft.models.parts.backbone import gather_targets
from redraft.models.parts.prompt_attention import DecoderContext
from redraft.models.parts.prompt_split import check_targets, split_request
from redraft.models.parts.store import KeyValueStore, KeyValueView
from redraft.settings import Weights
from redraft.types import Forward


class CpuCrossAttention:
    """Equal to the network up to rounding; see ``CpuTransformer``. Weights of cross-attention stay float32."""

    def __init__(self, network: CrossAttention, weights: Weights = "float32") -> None:
        if not CpuCrossAttention.fits(network):
            raise ValueError("CPU forms are for float32 networks on a CPU without time conditioning.")
        self.network, self.config = network, network.config
        matrix = MATRIX_TYPES[weights]
        with torch.no_grad():
            self.encoder = [Layer(block, network.config.norm_eps, matrix) for block in network.encoder]
            blocks: list[Any] = list(network.blocks)
            self.layers = [Layer(block, network.config.norm_eps, matrix) for block in blocks]
            self.after_attention = [block.after_attention for block in blocks]
            head = network.embedding.weight if network.head is None else network.head.weight
            self.head = matrix(head * network.norm.weight)
            self.rotary = torch.complex(network.rotary[:, 0], network.rotary[:, 1])

    @staticmethod
    def fits(network: Any) -> bool:
        """Whether this network has a CPU form in its present state on this machine."""
        return isinstance(network, CrossAttention) and not network.config.timed and on_cpu(network)

    def store(self, slots: int, positions: int) -> KeyValueStore:
        """A key-value store for this network. The layout of its keys is specific to the CPU form."""
        return self.network.store(slots, positions)

    def expected(self, log_p: Tensor) -> Tensor:
        """The mean embedding of each distribution [N, V] -> [N, D]."""
        return self.network.expected(log_p)

    @torch.inference_mode()
    def __call__(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """Flat logits [N, V] in the order of ``request.targets >= 0``; errors as those of the network."""
        net, c = self.network, self.config
        check_targets(request, c.shift)
        begin, source, answer = split_request(request, store is not None)
        prompt = None if begin is None else net.encode_prompts(request, begin, source, answer, store, self._encode)
        context = net.decoder_context(answer, begin, store, prompt)
        _, pos = answer.streams
        at = (pos if begin is None else pos - begin[:, None]).clamp(min=0)
        own_context = DecoderContext(**{**vars(context), "table": self.rotary[at]})  # a complex table
        x = net.embed(answer)
        x, shape = flatten_padded(x), x.shape[:-1]
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            select = partial(gather_targets, request=answer, shift=c.shift) if last else None
            after_attention = None if prompt is None else partial(self.after_attention[number], context=context)
            x, shape = layer(x, shape, own_context, select, after_attention)
        if net.edits is not None:
            x = unflatten(x, shape)
            rates: Tensor = net.edits(rms_normalise(x, c.norm_eps) * net.norm.weight, net.embedding.weight)
            return rates
        return unflatten(self.head(rms_normalise(x, c.norm_eps)), shape)

    def _encode(self, source: Forward) -> Tensor:
        x, context = (
            F.embedding(source.tokens, self.network.embedding.weight),
            attention_context(source, self.rotary, None, False),
        )
        x, shape = flatten_padded(x), x.shape[:-1]
        for layer in self.encoder:
            x, shape = layer(x, shape, context)
        encoded: Tensor = self.network.encoder_norm(unflatten(x, shape))
        return encoded
