"""Decoder blocks that attend to an encoded prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redraft.models.parts.attention import Attention, AttentionContext, attend
from redraft.models.parts.block import Block
from redraft.models.parts.mlp import SwiGLU
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import rotate
from redraft.models.parts.store import KeyValueView, Window
from redraft.models.parts.time import Modulation


@dataclass
class EncodedPrompt:
    """What the cross-attention of all layers shares. P: positions of the longest prompt that the encoder reads."""

    encoded: Tensor | None  # [R', P, D] outputs of the encoder; None: the keys of all prompts are in the store
    table: Tensor | None  # [1, P, 2, Dh / 2] rotary table of the keys
    mask: Tensor | None  # [R, 1, 1 or Q, P] bool; None: every query attends to all positions
    has_prompt: Tensor | None  # [R, 1, 1] 1 for rows with a prompt, else 0; None: all rows have one
    store: KeyValueView | None
    write: Window | None  # where the keys of the R' encoded prompts are written
    read: Window | None  # where the keys of all rows are read


@dataclass
class DecoderContext(AttentionContext):
    """Self-attention as in any transformer, and the encoded prompt (None: there is none)."""

    prompt: EncodedPrompt | None = None


class PromptAttention(nn.Module):
    """Attention from the answer to the encoded prompt (Vaswani et al. 2017, arXiv:1706.03762, 3.2.3).

    Queries are rotated by their position in the answer and keys by their position in the prompt, as in a
    ``Transformer`` that restarts its positions.
    """

    def __init__(self, c: Any, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.layer = c.heads, c.key_heads, c.head_width, layer
        self.query = nn.Linear(c.dim, self.heads * self.head_dim, bias=False)
        self.key_value = nn.Linear(c.dim, 2 * self.kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, c.dim, bias=False)
        self.q_norm = RMSNorm(self.head_dim, c.norm_eps) if c.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, c.norm_eps) if c.qk_norm else None

    def forward(self, x: Tensor, table: Tensor, prompt: EncodedPrompt) -> Tensor:
        rows, width, _ = x.shape
        query = self.query(x).view(rows, width, -1, self.head_dim)
        if self.q_norm is not None:
            query = self.q_norm(query)
        query = rotate(query, table).transpose(1, 2)
        keys, values = self._keys(prompt)
        attended = attend(query, keys, values, prompt.mask)
        y: Tensor = self.out(attended.transpose(1, 2).reshape(rows, width, -1))
        return y if prompt.has_prompt is None else y * prompt.has_prompt

    def _keys(self, prompt: EncodedPrompt) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompts, [R, Hk, P, Dh] each: computed from the encoder's outputs, or stored ones."""
        pair: Tensor | None = None
        if prompt.encoded is not None and prompt.table is not None:
            rows, width, _ = prompt.encoded.shape
            key, value = self.key_value(prompt.encoded).view(rows, width, -1, self.head_dim).chunk(2, 2)
            key = rotate(key if self.k_norm is None else self.k_norm(key), prompt.table)
            pair = torch.stack([key, value]).transpose(2, 3)
        if prompt.store is None:
            assert pair is not None
            return pair[0], pair[1]
        if pair is not None and prompt.write is not None:
            prompt.store.store.put(self.layer, prompt.write, pair)
        assert prompt.read is not None
        return prompt.store.store.get(self.layer, prompt.read)


class DecoderBlock(Block):
    """Self-attention, cross-attention, MLP.

    Time conditioning modulates self-attention and MLP, but not cross-attention (as in PixArt-alpha, Chen et al. 2023,
    arXiv:2310.00426).
    """

    attention: Attention

    def __init__(self, c: Any, layer: int) -> None:
        super().__init__(
            RMSNorm(c.dim, c.norm_eps),
            Attention(c.dim, c.heads, c.key_heads, c.qk_norm, c.norm_eps, layer),
            RMSNorm(c.dim, c.norm_eps),
            SwiGLU(c.dim, c.hidden),
            Modulation(c.dim, 6) if c.timed else None,
        )
        self.cross_norm, self.cross = RMSNorm(c.dim, c.norm_eps), PromptAttention(c, layer)

    def after_attention(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Add cross-attention to the prompt: [R, Q, D] -> [R, Q, D]."""
        if not isinstance(context, DecoderContext) or context.prompt is None:
            return x
        return x + self._drop(self.cross(self.cross_norm(x), context.table, context.prompt))
