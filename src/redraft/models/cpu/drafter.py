"""A drafter and its target rearranged for inference on CPUs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.models.cpu.layers import MATRIX_TYPES, flatten_padded, interleaved, rms_normalise, unflatten
from redraft.models.cpu.stack import stack_of
from redraft.models.cpu.transformer import CpuTransformer, on_cpu
from redraft.models.drafter import Drafter
from redraft.models.parts.attention import AttentionContext, attention_context
from redraft.models.parts.backbone import gather_targets
from redraft.models.parts.drafting import Part, split
from redraft.models.parts.store import KeyValueStore, KeyValueView
from redraft.settings import Weights
from redraft.types import DraftQuery, Forward


class CpuDrafter:
    """A faster form of ``Drafter`` for CPUs, in the way of ``CpuTransformer``, which its target becomes.

    The keys and values of the text come from one product for all layers. Equal to the network up to rounding.
    """

    def __init__(self, network: Drafter, weights: Weights = "float32") -> None:
        if not CpuDrafter.fits(network):
            raise ValueError("CPU forms are for float32 networks on a CPU without time conditioning.")
        self.network, self.config = network, network.config
        self.target = CpuTransformer(network.target, weights)
        matrix, c = MATRIX_TYPES[weights], network.config.target
        with torch.no_grad():
            blocks: list[Any] = list(network.blocks)
            self.stack = stack_of(blocks, None, c.norm_eps, weights)
            self.read = matrix(network.read.weight)
            parts = [_text_part(block.attention) for block in blocks]
            self.text = matrix(torch.cat([weight for weight, _, _ in parts]) * network.read_norm.weight)
            biases = [bias for _, bias, _ in parts if bias is not None]
            gains = [gain for _, _, gain in parts if gain is not None]
            self.bias = torch.cat(biases) if biases else None
            self.gain = torch.stack(gains)[:, None] if gains else None  # [layers, 1, Dh]

    @staticmethod
    def fits(network: Any) -> bool:
        """Whether this network has a CPU form in its present state on this machine."""
        return isinstance(network, Drafter) and CpuTransformer.fits(network.target) and on_cpu(network)

    def store(self, slots: int, positions: int) -> KeyValueStore:
        """A key-value store for this network. The layout of its keys is specific to the CPU form."""
        return self.network.store(slots, positions)

    @torch.inference_mode()
    def __call__(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """Flat logits [N, V] in the order of ``request.targets >= 0``."""
        draft = request.find(DraftQuery)
        if draft is None:
            return self.target(request) if store is None else self.target.stack.project(self._read_text(request, store))
        assert draft.draft_from is not None
        text, block = split(request, draft.draft_from, store, self.store)
        if text is not None:
            self._read_text(text.request, text.view)
        return self._draft(block)

    def _context(self, request: Forward, view: KeyValueView) -> AttentionContext:
        return attention_context(request, self.target.rotary, view, *self.target.positions)

    def _read_text(self, request: Forward, view: KeyValueView) -> Tensor:
        """Run the target, as ``CpuTransformer.hidden``, and store its keys and values and those of c."""
        c, context = self.config.target, self._context(request, view)
        found = {layer: torch.empty(*request.tokens.shape, c.dim) for layer in self.config.reads}
        last = self.target.hidden(request, context, found)
        features = torch.cat([found[layer] for layer in self.config.reads], -1)
        read = rms_normalise(self.read(flatten_padded(features)), c.norm_eps)
        pairs = unflatten(self.text(read), features.shape[:-1])
        if self.bias is not None:
            pairs = pairs + self.bias
        pairs = pairs.unflatten(-1, (self.config.layers, 2, c.key_heads, -1))  # [R, Q, layers, 2, Hk, Dh]
        keys, values = pairs.unbind(3)
        if self.gain is not None:
            keys = F.rms_norm(keys, (c.head_width,), None, c.norm_eps) * self.gain
        keys = torch.view_as_complex(keys.unflatten(-1, (-1, 2)).contiguous()) * context.table[:, :, None, None]
        keys = torch.view_as_real(keys).flatten(-2)
        assert context.window is not None
        for number in range(self.config.layers):
            pair = torch.stack([keys[:, :, number], values[:, :, number]]).transpose(2, 3)
            view.store.put(c.layers + number, context.window, pair)
        return last

    def _draft(self, part: Part) -> Tensor:
        request, net = part.request, self.network
        x = net.mask.expand(*request.tokens.shape, -1).clone()
        x[:, 0] = net.embedding.weight[request.tokens[:, 0]]
        x = net.target.marked(x, request)
        select = partial(gather_targets, request=request, shift=self.config.shift)
        return self.target.stack.project(self.stack.run(x, request, self._context(request, part.view), select))


def _text_part(attention: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Weight [2 Hk Dh, D] and bias of keys and values, and the gain [Dh] of the key norm; keys as in ``Layer``."""
    begin, rows = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    weight = attention.qkv.weight[begin:]
    split_heads = weight.view(2, attention.kv_heads, attention.head_dim, -1)
    weight = torch.cat([interleaved(split_heads[0], 1), split_heads[1]]).flatten(0, 1)
    bias = None if attention.qkv.bias is None else attention.qkv.bias[begin:]
    if bias is not None:
        keys = interleaved(bias[:rows].view(attention.kv_heads, -1), 1)
        bias = torch.cat([keys.flatten(), bias[rows:]])
    gain = None if attention.k_norm is None else interleaved(attention.k_norm.weight[None], 1)[0]
    return weight, bias, gain
