"""A transformer's weights arranged for inference on CPUs: the same function, in fewer and faster operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.models.parts.attention import Sight, see
from redraft.models.parts.backbone import Backbone, pick
from redraft.models.parts.lora import adapted
from redraft.models.parts.store import KeyValueStore
from redraft.models.transformer import Config, Transformer
from redraft.types import Forward

Weights = Literal["float32", "bfloat16", "int8"]


class Lean:
    """What a small network spends on a CPU is calls and memory traffic, not arithmetic. Here

    - matrices are packed beforehand for oneDNN, which applies SiLU, the gate and the residual while a result is still
      in the cache. (torch's default for float32 on CPUs is MKL, which on AMD processors reaches less than half of
      oneDNN's speed, with one row as with a thousand.)
    - a norm's gain is folded into the matrix that follows it: W (g * n) = (W g) n;
    - in keys and queries the two numbers that are rotated together stand side by side (attention doesn't care, as long
      as they do in both), so that a rotation is one multiplication of complex numbers;
    - the last layer mixes and transforms only what a prediction is wanted of;
    - the positions of all rows of a request are one matrix, with zeros below it up to the next of a few heights
      (``level``): oneDNN builds a kernel for every height it meets, and keeps it.

    Equal to the network it is made of up to rounding, that of ``weights`` included; they are copied, so make a new one
    when they change.
    """

    def __init__(self, network: Transformer, weights: Weights = "float32") -> None:
        if not Lean.fits(network):
            raise ValueError("lean inference is for float32 networks on a CPU that are not told the time")
        self.network, self.config = network, network.config
        matrix = MATRICES[weights]
        with torch.no_grad():
            self.layers = [Layer(block, network.config, matrix) for block in network.blocks]
            head = network.embedding.weight if network.head is None else network.head.weight
            self.head = matrix(head * network.norm.weight)
            self.rotary = torch.complex(network.rotary[:, 0], network.rotary[:, 1])

    @staticmethod
    def fits(network: Any) -> bool:
        """Is there a lean form of this network, as it stands, on this machine?"""
        return isinstance(network, Transformer) and _plain(network.config) and on_cpu(network)

    def store(self, seats: int, cells: int) -> KeyValueStore:
        """A key-value store of this network's shape. Its keys are laid out for this form of the network alone."""
        return self.network.store(seats, cells)

    @torch.inference_mode()
    def __call__(self, ask: Forward, store: KeyValueStore | None = None) -> Tensor:
        """Flat logits [N, V] in the order of ``ask.want >= 0``."""
        net, c = self.network, self.config
        x = net.embed(ask)
        if net.answer is not None and ask.prompt is not None:
            x = torch.addcmul(x, (ask.streams[1] >= ask.prompt[:, None]).to(x.dtype)[..., None], net.answer)
        sight = see(ask, self.rotary, store, c.restart, c.reach)
        x, shape = level(x), x.shape[:-1]
        for layer in self.layers[:-1]:
            x, shape = layer(x, shape, sight)
        x, shape = self.layers[-1](x, shape, sight, lambda y: pick(y, ask, c.shift))
        if net.edits is not None:
            x = unlevel(x, shape)
            rates: Tensor = net.edits(normal(x, c.norm_eps) * net.norm.weight, net.embedding.weight)
            return rates
        return unlevel(self.head(normal(x, c.norm_eps)), shape)


def on_cpu(network: Backbone) -> bool:
    """Is a network ready for inference in float32 on a CPU that has oneDNN, its adapters merged?"""
    weight = network.embedding.weight
    ready = not network.training and weight.device.type == "cpu" and weight.dtype == torch.float32
    return ready and torch.backends.mkldnn.is_available() and next(adapted(network), None) is None


def _plain(c: Config) -> bool:
    """Nothing but what ``Lean`` does: no time, no biases but Qwen's, whole heads rotated, one MLP a layer."""
    return not (c.timed or c.out_bias or c.mlp_bias or c.head_bias or c.experts or c.rotary_dim)


class Layer:
    """One block: [R, Q, D] -> [R, Q, D], or [N, D] where ``picked`` takes the N positions that matter after it.

    Both are passed on as ``level`` makes them, beside their shape without D. ``between`` is what the block does between
    its attention and its MLP (``Block.between``), None for nothing.
    """

    def __init__(self, block: Any, c: Any, matrix: type[_Matrix]) -> None:
        attention = block.attention
        self.index, self.eps, self.near = attention.layer, c.norm_eps, attention.near
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        turned = self.heads + self.kv_heads
        qkv = (attention.qkv.weight * block.attention_norm.weight).view(-1, self.head_dim, c.dim)
        self.qkv = matrix(torch.cat([_side_by_side(qkv[:turned], 1), qkv[turned:]]).flatten(0, 1))
        self.bias = None
        if attention.qkv.bias is not None:
            bias = attention.qkv.bias.view(-1, self.head_dim)
            self.bias = torch.cat([_side_by_side(bias[:turned], 1), bias[turned:]]).flatten()
        self.out, self.down = matrix(attention.out.weight), matrix(block.mlp.down.weight)
        gate_up = (block.mlp.gate_up.weight * block.mlp_norm.weight).chunk(2)
        self.gate, self.up = (matrix(half) for half in gate_up)
        self.gain = None  # [H + Hk, Dh] of the query and key norms
        if attention.q_norm is not None and attention.k_norm is not None:
            gains = [attention.q_norm.weight.expand(self.heads, -1), attention.k_norm.weight.expand(self.kv_heads, -1)]
            self.gain = _side_by_side(torch.cat(gains), 1)

    def __call__(
        self,
        x: Tensor,
        shape: torch.Size,
        sight: Sight,
        picked: Callable[[Tensor], Tensor] | None = None,
        between: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, torch.Size]:
        sight = sight.near if self.near and sight.near else sight
        qkv = self.qkv(normal(x, self.eps))[: shape.numel()]
        if self.bias is not None:
            qkv.add_(self.bias)
        qkv = qkv.view(*shape, -1, self.head_dim)
        pair = self._turned(qkv, sight.table)
        if sight.store is not None and sight.window is not None:
            keys, values = sight.store.put(self.index, sight.window, pair)
        else:
            keys, values = pair.unbind(0)
        query = qkv[:, :, : self.heads].transpose(1, 2)
        mixed = F.scaled_dot_product_attention(
            query, keys, values, sight.mask, is_causal=sight.causal, enable_gqa=self.heads != self.kv_heads
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        if picked is not None and between is None:
            x, mixed = picked(unlevel(x, shape)), picked(mixed)
            x, shape = level(x), x.shape[:-1]
        x = self.out.add(level(mixed), x)
        if between is not None:
            x = between(unlevel(x, shape))
            x = x if picked is None else picked(x)
            x, shape = level(x), x.shape[:-1]
        inner = normal(x, self.eps)
        return self.down.add(self.up.times(inner, self.gate.silu(inner)), x), shape

    def _turned(self, qkv: Tensor, turn: Tensor) -> Tensor:
        """Rotate queries and keys of ``qkv`` [R, Q, H + 2 Hk, Dh] in place; keys and values as [2, R, Hk, Q, Dh]."""
        both = qkv[:, :, : self.heads + self.kv_heads]
        if self.gain is not None:
            both.copy_(F.rms_norm(both, (self.head_dim,), None, self.eps).mul_(self.gain))
        torch.view_as_complex(both.unflatten(-1, (-1, 2))).mul_(turn[:, :, None])
        return qkv[:, :, self.heads :].unflatten(2, (2, self.kv_heads)).permute(2, 0, 3, 1, 4)


class _Matrix:
    """y = W x for ``weight`` [out, in] and x [..., in], packed for oneDNN, in the forms a layer needs."""

    def __init__(self, weight: Tensor) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, None, "none", [], "")

    def silu(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, None, "swish", [], "")

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, None, "add")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, None, "mul")


class _Half(_Matrix):
    """W and x in bfloat16, sums in float32; what goes in and comes out is float32."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.bfloat16())

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x.bfloat16()).float()

    def silu(self, x: Tensor) -> Tensor:
        return super().silu(x.bfloat16())

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        return other + super().__call__(x.bfloat16())

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return super().times(x.bfloat16(), other.bfloat16())


class _Integer(_Matrix):
    """W rounded to s * integer, one s a row (s = max|row| / 127).

    A single vector is multiplied by the integers themselves, which takes a quarter of the memory traffic, in bfloat16;
    several by the packed product, where traffic matters less and integers would be converted again and again.
    """

    def __init__(self, weight: Tensor) -> None:
        self.scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.integers = (weight / self.scale[:, None]).round().to(torch.int8)
        self.ones = torch.ones(len(weight), dtype=torch.bfloat16)
        super().__init__(self.integers * self.scale[:, None])

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) if (vector := self._vector(x)) is None else vector

    def silu(self, x: Tensor) -> Tensor:
        return super().silu(x) if (vector := self._vector(x)) is None else F.silu(vector, inplace=True)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        return super().add(x, other) if (vector := self._vector(x)) is None else vector.add_(other)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        return super().times(x, other) if (vector := self._vector(x)) is None else vector.mul_(other)

    def _vector(self, x: Tensor) -> Tensor | None:
        """The product by integers, if x is a single vector."""
        if x.numel() != x.shape[-1]:
            return None
        product = torch._weight_int8pack_mm(x.view(1, -1).bfloat16(), self.integers, self.ones)
        return torch.mul(product, self.scale).view(*x.shape[:-1], -1)


MATRICES = {"float32": _Matrix, "bfloat16": _Half, "int8": _Integer}


def normal(x: Tensor, eps: float) -> Tensor:
    """x / rms(x). Of a single vector the norm is one number, which two small calls find faster than the kernel."""
    width = x.shape[-1]
    if x.numel() == width:
        flat = x.view(-1)
        return x * (float(torch.dot(flat, flat)) / width + eps) ** -0.5
    return F.rms_norm(x, (width,), None, eps)


def level(x: Tensor) -> Tensor:
    """[..., D] -> [M, D], all rows as one matrix whose height M is one of a few: zeros below, at most an eighth."""
    width = x.shape[-1]
    count = x.numel() // width
    step = 1 << max(0, count.bit_length() - 4)
    height = -(-count // step) * step
    if height == count:
        return x.reshape(count, width)
    tall = x.new_zeros(height, width)
    tall[:count].view_as(x).copy_(x)
    return tall


def unlevel(x: Tensor, shape: torch.Size) -> Tensor:
    """What ``level`` made of a tensor [*shape, D], as it was."""
    return x[: shape.numel()].view(*shape, x.shape[-1])


def _side_by_side(x: Tensor, axis: int) -> Tensor:
    """(a_1 .. a_n, b_1 .. b_n) -> (a_1, b_1 .. a_n, b_n) along an axis."""
    return torch.stack(x.chunk(2, axis), axis + 1).flatten(axis, axis + 1)
