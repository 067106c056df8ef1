"""Layers of a transformer rearranged for inference on CPUs, and a stack of them in operations of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.models.parts.attention import AttentionContext
from redraft.settings import Weights
from redraft.types import Forward

Select = Callable[[Tensor], Tensor]  # [R, Q, D] -> [N, D], the positions that a stack answers


class Stack(Protocol):
    """Layers, and the projection of their output onto the vocabulary."""

    def run(
        self,
        x: Tensor,
        request: Forward,
        context: AttentionContext,
        select: Select | None = None,
        kept: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Run all layers on x [R, Q, D], which may be changed -> [R, Q, D], or [N, D] if ``select`` is given.

        The output [R, Q, D] of each layer whose number is in ``kept`` is copied there; the last one is not.
        """
        ...

    def project(self, x: Tensor) -> Tensor:
        """Hidden states [N, D] -> logits [N, V]."""
        ...


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one block. The gains of norms are merged into the next matrix: W (g * n) = (W g) n.

    In keys and queries, the two components that are rotated together are adjacent, so that a rotation is one
    multiplication of complex numbers. Attention is unaffected as long as keys and queries have the same order.
    """

    qkv: Tensor  # [(H + 2 Hk) Dh, D]
    bias: Tensor | None  # [(H + 2 Hk) Dh]
    gain: Tensor | None  # [H + Hk, Dh] of the query and key norms
    out: Tensor  # [D, H Dh]
    gate: Tensor  # [hidden, D]
    up: Tensor  # [hidden, D]
    down: Tensor  # [D, hidden]

    @classmethod
    def of(cls, block: Any) -> LayerWeights:
        """The weights of a ``Block`` with a SwiGLU."""
        attention, width = block.attention, block.attention.head_dim
        rotated = attention.heads + attention.kv_heads
        qkv = (attention.qkv.weight * block.attention_norm.weight).unflatten(0, (-1, width))
        bias, gain = None, None
        if attention.qkv.bias is not None:
            halves = attention.qkv.bias.view(-1, width)
            bias = torch.cat([interleaved(halves[:rotated], 1), halves[rotated:]]).flatten()
        if attention.q_norm is not None and attention.k_norm is not None:
            gains = [
                attention.q_norm.weight.expand(attention.heads, -1),
                attention.k_norm.weight.expand(attention.kv_heads, -1),
            ]
            gain = interleaved(torch.cat(gains), 1)
        gate, up = (block.mlp.gate_up.weight * block.mlp_norm.weight).chunk(2)
        return cls(
            torch.cat([interleaved(qkv[:rotated], 1), qkv[rotated:]]).flatten(0, 1),
            bias,
            gain,
            attention.out.weight,
            gate,
            up,
            block.mlp.down.weight,
        )


class Layer:
    """One block: [R, Q, D] -> [R, Q, D], or -> [N, D] if ``select`` selects the N target positions.

    Inputs and outputs have the form of ``flatten_padded``, together with their shape without D. ``after_attention`` is
    the hook of the block between attention and MLP (``Block.after_attention``); None: the identity.
    """

    def __init__(self, block: Any, eps: float, matrix: type[_Matrix]) -> None:
        attention, weights = block.attention, LayerWeights.of(block)
        self.index, self.eps, self.local = attention.layer, eps, attention.local
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.bias, self.gain = weights.bias, weights.gain
        self.qkv, self.out, self.down = matrix(weights.qkv), matrix(weights.out), matrix(weights.down)
        self.gate, self.up = matrix(weights.gate), matrix(weights.up)

    def __call__(
        self,
        x: Tensor,
        shape: torch.Size,
        context: AttentionContext,
        select: Callable[[Tensor], Tensor] | None = None,
        after_attention: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, torch.Size]:
        context = context.local if self.local and context.local else context
        qkv = self.qkv(rms_normalise(x, self.eps))[: shape.numel()]
        if self.bias is not None:
            qkv.add_(self.bias)
        qkv = qkv.view(*shape, -1, self.head_dim)
        pair = self._rotate(qkv, context.table)
        if context.store is not None and context.window is not None:
            keys, values = context.store.store.put(self.index, context.window, pair)
        else:
            keys, values = pair.unbind(0)
        query = qkv[:, :, : self.heads].transpose(1, 2)
        attended = F.scaled_dot_product_attention(
            query, keys, values, context.mask, is_causal=context.causal, enable_gqa=self.heads != self.kv_heads
        )
        attended = attended.transpose(1, 2).flatten(2)
        if select is not None and after_attention is None:
            x, attended = select(unflatten(x, shape)), select(attended)
            x, shape = flatten_padded(x), x.shape[:-1]
        x = self.out.add(flatten_padded(attended), x)
        if after_attention is not None:
            x = after_attention(unflatten(x, shape))
            x = x if select is None else select(x)
            x, shape = flatten_padded(x), x.shape[:-1]
        inner = rms_normalise(x, self.eps)
        return self.down.add(self.up.times(inner, self.gate.silu(inner)), x), shape

    def _rotate(self, qkv: Tensor, table: Tensor) -> Tensor:
        """Rotate queries and keys of ``qkv`` [R, Q, H + 2 Hk, Dh] in place; return keys and values [2, R, Hk, Q, Dh].

        ``table`` [R or 1, Q, Dh / 2] holds complex rotations.
        """
        both = qkv[:, :, : self.heads + self.kv_heads]
        if self.gain is not None:
            both.copy_(F.rms_norm(both, (self.head_dim,), None, self.eps).mul_(self.gain))
        torch.view_as_complex(both.unflatten(-1, (-1, 2))).mul_(table[:, :, None])
        return qkv[:, :, self.heads :].unflatten(2, (2, self.kv_heads)).permute(2, 0, 3, 1, 4)


class TorchStack:
    """A ``Stack`` in operations of torch; see ``CpuTransformer`` for what makes them fast.

    The positions of all rows of a request form one matrix, padded with zeros to one of a few heights
    (``flatten_padded``), because oneDNN builds and keeps a kernel for every height.
    """

    def __init__(self, blocks: Sequence[Any], head: Tensor | None, eps: float, weights: Weights) -> None:
        matrix, self.eps = MATRIX_TYPES[weights], eps
        self.layers = [Layer(block, eps, matrix) for block in blocks]
        self.head = None if head is None else matrix(head)

    def run(
        self,
        x: Tensor,
        request: Forward,
        context: AttentionContext,
        select: Select | None = None,
        kept: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """As ``Stack.run``: [R, Q, D] -> [R, Q, D] or [N, D]."""
        x, shape = flatten_padded(x), x.shape[:-1]
        for number, layer in enumerate(self.layers):
            x, shape = layer(x, shape, context, select if number == len(self.layers) - 1 else None)
            if kept is not None and number in kept:
                kept[number].copy_(unflatten(x, shape))
        return unflatten(x, shape)

    def project(self, x: Tensor) -> Tensor:
        """As ``Stack.project``: [N, D] -> [N, V]."""
        assert self.head is not None
        return unflatten(self.head(rms_normalise(flatten_padded(x), self.eps)), x.shape[:-1])


class _Matrix:
    """y = W x for ``weight`` [out, in] and x [..., in], packed for oneDNN, with the fused operations of a layer."""

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


class _Bfloat16Matrix(_Matrix):
    """W and x in bfloat16, sums in float32; inputs and outputs are float32."""

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


class _Int8Matrix(_Matrix):
    """W rounded to s * integer, with one scale per row, s = max|row| / 127.

    A single vector is multiplied by the integers in bfloat16, with a quarter of the memory traffic. Several vectors use
    the packed float32 matrix, because traffic matters less and the integers would be converted many times.
    """

    def __init__(self, weight: Tensor) -> None:
        self.integers, self.scale = quantised(weight)
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
        """The product with the integers if x is a single vector, else None."""
        if x.numel() != x.shape[-1]:
            return None
        product = torch._weight_int8pack_mm(x.view(1, -1).bfloat16(), self.integers, self.ones)
        return torch.mul(product, self.scale).view(*x.shape[:-1], -1)


MATRIX_TYPES = {"float32": _Matrix, "bfloat16": _Bfloat16Matrix, "int8": _Int8Matrix}


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W [out, in] as integers [out, in] in int8 and scales s [out]: w = s * integer, s = max|row| / 127."""
    scale = weight.abs().amax(1).clamp(min=1e-12) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def rms_normalise(x: Tensor, eps: float) -> Tensor:
    """x / rms(x) for x [..., D]. For a single vector, a dot product is faster than the kernel."""
    width = x.shape[-1]
    if x.numel() == width:
        flat = x.view(-1)
        return x * (float(torch.dot(flat, flat)) / width + eps) ** -0.5
    return F.rms_norm(x, (width,), None, eps)


def flatten_padded(x: Tensor) -> Tensor:
    """[..., D] -> [M, D]: all rows as one matrix, padded with zeros (at most an eighth) to one of a few heights M."""
    width = x.shape[-1]
    count = x.numel() // width
    step = 1 << max(0, count.bit_length() - 4)
    height = -(-count // step) * step
    if height == count:
        return x.reshape(count, width)
    tall = x.new_zeros(height, width)
    tall[:count].view_as(x).copy_(x)
    return tall


def unflatten(x: Tensor, shape: torch.Size) -> Tensor:
    """Invert ``flatten_padded``: [M, D] -> [*shape, D]."""
    return x[: shape.numel()].view(*shape, x.shape[-1])


def interleaved(x: Tensor, axis: int) -> Tensor:
    """(a_1 .. a_n, b_1 .. b_n) -> (a_1, b_1 .. a_n, b_n) along an axis, [..., 2n, ...] -> [..., 2n, ...]."""
    return torch.stack(x.chunk(2, axis), axis + 1).flatten(axis, axis + 1)
