"""Grouped-query attention with rotary positions, over the request itself or over the key-value store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.models.parts import streams
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import rotate
from redraft.models.parts.store import KeyValueStore, Window
from redraft.types import Forward


@dataclass
class Sight:
    """What every layer of one pass shares: rotations, who sees whom, and the store if there is one."""

    table: Tensor  # [R or 1, Q, 2, Dr / 2] rotary cos and sin of the first Dr numbers of a head
    mask: Tensor | None  # [R, 1, Q, K] bool; None: no mask needed
    causal: bool  # the plain causal triangle
    store: KeyValueStore | None
    window: Window | None
    blocks: Any = None  # a BlockMask instead of a mask: attention is FlexAttention's
    near: Sight | None = None  # of the layers that see only what is nearby


def place(ask: Forward, restart: bool) -> Tensor:
    """[R, Q] the number by which each position is rotated; with ``restart``, counted from the answer's beginning."""
    _, pos = ask.streams
    if restart and ask.prompt is not None:
        return torch.where(pos >= ask.prompt[:, None], pos - ask.prompt[:, None], pos).clamp(min=0)
    return pos.clamp(min=0)


def see(
    ask: Forward,
    rotary: Tensor,
    store: KeyValueStore | None,
    restart: bool,
    reach: int | None = None,
    near: Tensor | None = None,
) -> Sight:
    """Resolve a request's ``Attend`` into the cheapest form attention can take.

    With a ``reach``, some layers see what ``Attend`` shows them up to that many positions away, |i - j| <= reach, and
    no further: sliding windows. ``near`` is their rotary table, if it is one of their own.
    """
    sight = _see(ask, rotary, store, restart)
    if reach is not None:
        sight.near = _nearby(ask, sight, reach)
        if near is not None:
            sight.near.table = near[place(ask, restart).to(near.device)]
    return sight


def _see(ask: Forward, rotary: Tensor, store: KeyValueStore | None, restart: bool) -> Sight:
    table = rotary[place(ask, restart).to(rotary.device)]
    if ask.clean is not None:
        if rotary.device.type == "cuda":
            return Sight(table, None, False, None, None, streams.flex(ask, rotary.device))
        return Sight(table, streams.dense(ask).to(rotary.device), False, None, None)
    if ask.mask is not None:
        return Sight(table, ask.mask[:, None].to(rotary.device), False, None, None)
    if store is not None:
        window = store.window(ask)
        return Sight(table, window.mask, False, store, window)
    if ask.attend.kind == "causal" and ask.prompt is None and ask.whole is None:
        # Right padding comes after everything real, so the triangle alone hides it.
        return Sight(table, None, ask.pos.shape[1] > 1, None, None)
    valid = ask.pos >= 0
    if ask.attend.kind == "full" and ask.prompt is None and bool(valid.all()):
        return Sight(table, None, False, None, None)
    stage = ask.stage(ask.pos)
    mine = stage.masked_fill(~valid, torch.iinfo(stage.dtype).max)  # padding queries see something: no NaN
    mask = (stage[:, None] <= mine[:, :, None]) & valid[:, None]
    return Sight(table, mask[:, None].to(rotary.device), False, None, None)


def _nearby(ask: Forward, sight: Sight, reach: int) -> Sight:
    """The same sight, but for what is more than ``reach`` positions away. Padding keeps what it sees: no NaN."""
    pos = ask.streams[1].int()
    if int(pos.max()) <= reach:
        return replace(sight)
    device = sight.table.device
    if sight.blocks is not None:
        return replace(sight, blocks=streams.flex(ask, device, reach))
    window, mask, keys = sight.window, sight.mask, pos
    if sight.store is not None:
        lowest = torch.where(pos < 0, pos.max(), pos).amin(1)
        window = sight.store.window(ask, (lowest - reach).clamp(min=0))
        mask, keys = window.mask, torch.arange(window.begin, window.extent, device=pos.device)[None]
    visible = ((pos[:, :, None] - keys[:, None]).abs() <= reach) | (pos < 0)[:, :, None]
    if not bool(visible.all()):
        if sight.causal:
            visible = visible & torch.ones(visible.shape[1:], dtype=torch.bool, device=pos.device).tril()
        visible = visible[:, None].to(device)
        mask = visible if mask is None else mask & visible
    return replace(sight, mask=mask, causal=sight.causal and mask is None, window=window)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(Dh)) v with ``kv_heads`` shared keys (Ainslie et al. 2023, arXiv:2305.13245)."""

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
        near: bool = False,  # sees only what is nearby
    ) -> None:
        super().__init__()
        self.near = near
        self.heads, self.kv_heads, self.head_dim, self.layer = heads, kv_heads, head_dim or dim // heads, layer
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=qkv_bias)
        self.out = nn.Linear(heads * self.head_dim, dim, bias=out_bias)
        self.q_norm = RMSNorm(self.head_dim, eps) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps) if qk_norm else None

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        sight = sight.near if self.near and sight.near else sight
        rows, width, _ = x.shape
        qkv = self.qkv(x).view(rows, width, -1, self.head_dim)
        both, value = qkv.split([self.heads + self.kv_heads, self.kv_heads], 2)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = both.split([self.heads, self.kv_heads], 2)
            both = torch.cat([self.q_norm(query), self.k_norm(key)], 2)
        query, key = rotate(both, sight.table).split([self.heads, self.kv_heads], 2)
        if sight.store is not None and sight.window is not None:
            pair = torch.stack([key, value]).transpose(2, 3)
            keys, values = sight.store.put(self.layer, sight.window, pair)
        else:
            keys, values = key.transpose(1, 2), value.transpose(1, 2)
        mixed = mix(query.transpose(1, 2), keys, values, sight.mask, sight.causal, sight.blocks)
        return self.out(mixed.transpose(1, 2).reshape(rows, width, -1))


def mix(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool = False, blocks: Any = None
) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v in the fastest form: [R, H, Q, Dh] and twice [R, Hk, K, Dh] -> [R, H, Q, Dh]."""
    gqa = query.shape[1] != keys.shape[1]
    if blocks is not None:
        attend = streams.flex_attention(compiled=query.device.type == "cuda")
        return attend(query, keys, values, block_mask=blocks, enable_gqa=gqa)
    if _short(query, keys):
        result: Tensor = _ShortAttention.apply(query, keys, values, mask, causal)
        return result
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=gqa)


_SHORT = 512  # positions up to which the matrix of attention weights is cheap to keep


def _short(query: Tensor, keys: Tensor) -> bool:
    """Training in bfloat16 on a CPU, on short rows: where the fused kernel of torch 2.13 takes 6 times as long."""
    return (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and torch.is_grad_enabled()
        and query.shape[1] == keys.shape[1]
        and keys.shape[2] <= _SHORT
    )


class _ShortAttention(torch.autograd.Function):
    """Attention as plain matrix products, its weights P kept for the gradient: dS = P (dP - sum(P dP))."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        rows, heads, width, dim = query.shape
        q, k, v = ((query * dim**-0.5).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
        score = torch.bmm(q, k.transpose(1, 2)).view(rows, heads, width, -1)
        if causal:
            mask = torch.ones(width, width, dtype=torch.bool, device=q.device).tril_()
        if mask is not None:
            score.masked_fill_(~mask, -torch.inf)
        weight = score.softmax(-1).flatten(0, 1)
        ctx.save_for_backward(q, k, v, weight)
        return torch.bmm(weight, v).view(rows, heads, width, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, weight = ctx.saved_tensors
        shape, grad = grads[0].shape, grads[0].flatten(0, 1)
        d_weight = torch.bmm(grad, v.transpose(1, 2))
        d_score = torch.ops.aten._softmax_backward_data(d_weight, weight, -1, weight.dtype)
        d_query = torch.bmm(d_score, k).mul_(shape[-1] ** -0.5).view(shape)
        d_key, d_value = torch.bmm(d_score.transpose(1, 2), q), torch.bmm(weight.transpose(1, 2), grad)
        theirs = (*shape[:2], -1, shape[3])  # keys may be more or fewer than queries
        return d_query, d_key.view(theirs), d_value.view(theirs), None, None
