"""Grouped-query attention with rotary positions, over the request itself or over the key-value store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.models.parts import streams
from redraft.models.parts.masks import LAST, group_mask, near_mask
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import RopeScaling, query_growth, rotate
from redraft.models.parts.store import KeyValueView, Window
from redraft.runtime import upload
from redraft.types import CleanStream, DraftQuery, Forward, QueryMask


@dataclass
class AttentionContext:
    """What all layers of one forward pass share: rotary table, attention mask, and key-value store if there is one."""

    table: Tensor  # [R or 1, Q, 2, Dr / 2] rotary cos and sin of the first Dr components of a head
    mask: Tensor | None  # [R, 1, Q or 1, K] bool; None: no mask needed
    causal: bool  # the mask is the causal triangle
    store: KeyValueView | None
    window: Window | None
    blocks: Any = None  # a BlockMask in place of ``mask``: attention runs in FlexAttention
    growth: Tensor | None = None  # [R, Q] factors of the queries (``positions.query_growth``)
    local: AttentionContext | None = None  # for layers with local attention; None: the same as for the others


def rotary_positions(request: Forward, restart: bool) -> Tensor:
    """The position number of each query for rotary embeddings [R, Q]; with ``restart``, answers count from 0 again."""
    _, pos = request.streams
    if restart and request.prompt is not None:
        return torch.where(pos >= request.prompt[:, None], pos - request.prompt[:, None], pos).clamp(min=0)
    return pos.clamp(min=0)


def attention_context(
    request: Forward,
    rotary: Tensor,
    store: KeyValueView | None,
    restart: bool,
    radius: int | None = None,
    local_rotary: Tensor | None = None,
    stretch: RopeScaling | None = None,
    whole: bool = False,
) -> AttentionContext:
    """Turn the ``AttentionPattern`` of a request into the cheapest equivalent form of attention.

    Args:
        rotary: table [C, 2, Dr / 2] of cos and sin. store: the key-value store; None: attention within the request.
        restart: position numbers of an answer start at 0 again.
        radius: for networks with local attention (sliding windows): layers with ``Attention.local`` attend only where
            |i - j| <= radius. local_rotary: a separate table [C, 2, Dr / 2] for these layers.
        stretch: scaling of the rotary frequencies, if queries grow with their positions.
        whole: distances to and from a block of drafts (``DraftQuery``) are those of its first position, so that with
            local attention all of the block sees all of it, and the same text before it.
    """
    context = _context_for_all(request, rotary, store, restart)
    if stretch is not None and stretch.growth:
        context.growth = query_growth(rotary_positions(request, restart), stretch).to(rotary.device)
    if radius is not None:
        context.local = _local_context(request, context, radius, whole)
        if local_rotary is not None:
            context.local.table = local_rotary[upload(rotary_positions(request, restart), local_rotary.device)]
    return context


def _context_for_all(request: Forward, rotary: Tensor, store: KeyValueView | None, restart: bool) -> AttentionContext:
    table = rotary[upload(rotary_positions(request, restart), rotary.device)]
    if request.find(CleanStream) is not None:
        if rotary.device.type == "cuda":
            return AttentionContext(table, None, False, None, None, streams.flex_mask(request, rotary.device))
        return AttentionContext(table, upload(streams.dense_mask(request), rotary.device), False, None, None)
    own = request.find(QueryMask)
    if own is not None:
        return AttentionContext(table, upload(own.mask, rotary.device)[:, None], False, None, None)
    if store is not None:
        window = store.window(request)
        return AttentionContext(table, window.mask, False, store, window)
    draft = request.find(DraftQuery)
    causal = request.attention.kind == "causal" and request.prompt is None
    if causal and (draft is None or draft.draft_from is None):
        # Padding is on the right, after all real positions, so the causal triangle alone masks it.
        return AttentionContext(table, None, request.positions.shape[1] > 1, None, None)
    padding, group = request.positions < 0, request.group(request.positions)
    mask = group_mask(group.masked_fill(padding, -1), group.masked_fill(padding, LAST), rotary.device)
    return AttentionContext(table, mask, False, None, None)


def _local_context(request: Forward, context: AttentionContext, radius: int, whole: bool) -> AttentionContext:
    """The context without keys more than ``radius`` positions away. Padding queries keep their keys: no NaN."""
    pos, draft = request.streams[1], request.find(DraftQuery) if whole else None
    if draft is not None:  # the clean stream, if any, is no draft
        pos = torch.cat([draft.begins(request.positions, request.attention), pos[:, request.positions.shape[1] :]], 1)
    if int(pos.max()) <= radius:
        return replace(context)
    device = context.table.device
    if context.blocks is not None:
        return replace(context, blocks=streams.flex_mask(request, device, radius, pos))
    window, mask, keys = context.window, context.mask, pos
    if context.store is not None:
        lowest = torch.where(pos < 0, pos.max(), pos).amin(1)
        window = context.store.window(request, (lowest - radius).clamp(min=0))
        mask, keys = window.mask, torch.arange(window.begin, window.extent)[None]
        if draft is not None:
            keys = draft.begins(keys.expand(len(pos), -1), request.attention)
    visible = near_mask(pos, keys, radius, device)
    if visible is not None:
        if context.causal:
            visible = visible & torch.ones(visible.shape[2:], dtype=torch.bool, device=device).tril()
        mask = visible if mask is None else mask & visible
    return replace(context, mask=mask, causal=context.causal and mask is None, window=window)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(Dh)) v with ``kv_heads`` shared keys (Ainslie et al. 2023, arXiv:2305.13245)."""

    scale: float | None = None  # in place of 1 / sqrt(Dh)

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        qk_norm: bool,
        eps: float,
        layer: int,
        head_dim: int = 0,  # 0: dim / heads
        qkv_bias: bool = False,
        out_bias: bool = False,
        local: bool = False,  # attends only to nearby positions (``AttentionContext.local``)
    ) -> None:
        super().__init__()
        self.local = local
        self.heads, self.kv_heads, self.head_dim, self.layer = heads, kv_heads, head_dim or dim // heads, layer
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=qkv_bias)
        self.out = nn.Linear(heads * self.head_dim, dim, bias=out_bias)
        self.q_norm = RMSNorm(self.head_dim, eps) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps) if qk_norm else None

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        context = context.local if self.local and context.local else context
        rows, width, _ = x.shape
        both, value = self.projected(self.qkv(x).view(rows, width, -1, self.head_dim))
        query, key = rotate(both, context.table).split([self.heads, self.kv_heads], 2)
        if context.growth is not None:
            query = query * context.growth[:, :, None, None].to(query.dtype)
        if context.store is not None and context.window is not None:
            pair = torch.stack([key, value]).transpose(2, 3)
            keys, values = context.store.store.put(self.layer, context.window, pair)
        else:
            keys, values = key.transpose(1, 2), value.transpose(1, 2)
        attended = attend(query.transpose(1, 2), keys, values, context.mask, context.causal, context.blocks, self.scale)
        return self.out(attended.transpose(1, 2).reshape(rows, width, -1))

    def projected(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys before rotation [R, Q, H + Hk, Dh], and values [R, Q, Hk, Dh], of the heads in ``qkv``."""
        both, value = qkv.split([self.heads + self.kv_heads, self.kv_heads], 2)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = both.split([self.heads, self.kv_heads], 2)
            both = torch.cat([self.q_norm(query), self.k_norm(key)], 2)
        return both, value


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    causal: bool = False,
    blocks: Any = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q k^T scale) v in the fastest form: queries [R, H, Q, Dh], keys and values [R, Hk, K, Dh] ->
    [R, H, Q, Dh]. ``scale`` None: 1 / sqrt(Dh)."""
    gqa = query.shape[1] != keys.shape[1]
    if blocks is not None:
        flex_attention = streams.flex_attention(compiled=query.device.type == "cuda")
        return flex_attention(query, keys, values, block_mask=blocks, enable_gqa=gqa, scale=scale)
    if _short(query, keys):
        result: Tensor = _ShortAttention.apply(query, keys, values, mask, causal, scale or query.shape[-1] ** -0.5)
        return result
    return F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=gqa, scale=scale
    )


_SHORT = 512  # maximum number of keys for which keeping the matrix of attention weights is cheap


def _short(query: Tensor, keys: Tensor) -> bool:
    """Training in bfloat16 on a CPU with short rows, where the fused kernel of torch 2.13 takes 6 times as long."""
    return (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and torch.is_grad_enabled()
        and query.shape[1] == keys.shape[1]
        and keys.shape[2] <= _SHORT
    )


class _ShortAttention(torch.autograd.Function):
    """Attention as plain matrix products that keeps its weights P for the gradient: dS = P (dP - sum(P dP))."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        rows, heads, width, dim = query.shape
        ctx.scale = scale
        q, k, v = ((query * scale).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
        score = torch.bmm(q, k.transpose(1, 2)).view(rows, heads, width, -1)
        if causal:
            mask = torch.ones(width, width, dtype=torch.bool, device=q.device).tril_()
        if mask is not None:
            score.masked_fill_(~mask, -torch.inf)
        weight = score.softmax(-1).flatten(0, 1)
        ctx.save_for_backward(q, k, v, weight)
        return torch.bmm(weight, v).view(rows, heads, width, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, weight = ctx.saved_tensors
        shape, grad = grads[0].shape, grads[0].flatten(0, 1)
        d_weight = torch.bmm(grad, v.transpose(1, 2))
        d_score = torch.ops.aten._softmax_backward_data(d_weight, weight, -1, weight.dtype)
        d_query = torch.bmm(d_score, k).mul_(ctx.scale).view(shape)
        d_key, d_value = torch.bmm(d_score.transpose(1, 2), q), torch.bmm(weight.transpose(1, 2), grad)
        key_shape = (*shape[:2], -1, shape[3])  # there may be more or fewer keys than queries
        return d_query, d_key.view(key_shape), d_value.view(key_shape), None, None, None
