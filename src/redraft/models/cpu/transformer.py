"""A transformer rearranged for inference on CPUs: the same function in fewer and faster operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.models.parts.attention import AttentionContext, attention_context
from redraft.models.parts.backbone import Backbone, gather_targets
from redraft.models.parts.lora import adapted
from redraft.models.parts.store import KeyValueStore, KeyValueView
from redraft.models.transformer import Config, Transformer
from redraft.settings import Weights
from redraft.types import Forward


class CpuTransformer:
    """A faster form of ``Transformer`` for CPUs, where small networks are limited by calls and memory traffic.

    - Matrices are packed in advance for oneDNN, which applies SiLU, the gate and the residual while a result is still
      in the cache. (torch's default for float32 on CPUs is MKL, which on AMD processors reaches less than half the
      speed of oneDNN, for one row as well as for a thousand.)
    - The gain of a norm is merged into the next matrix: W (g * n) = (W g) n.
    - In keys and queries the two components that are rotated together are adjacent, so that a rotation is one
      multiplication of complex numbers. Attention is unaffected as long as keys and queries have the same order.
    - The last layer computes only the target positions.
    - The positions of all rows of a request form one matrix, padded with zeros to one of a few heights
      (``flatten_padded``), because oneDNN builds and keeps a kernel for every height.

    Equal to the network up to rounding, including that of ``weights``. Weights are copied: make a new form when they
    change.
    """

    def __init__(self, network: Transformer, weights: Weights = "float32") -> None:
        if not CpuTransformer.fits(network):
            raise ValueError("CPU forms are for float32 networks on a CPU without time conditioning.")
        self.network, self.config = network, network.config
        matrix = MATRIX_TYPES[weights]
        with torch.no_grad():
            self.layers = [Layer(block, network.config, matrix) for block in network.blocks]
            head = network.embedding.weight if network.head is None else network.head.weight
            self.head = matrix(head * network.norm.weight)
            self.rotary = torch.complex(network.rotary[:, 0], network.rotary[:, 1])

    @staticmethod
    def fits(network: Any) -> bool:
        """Whether this network has a CPU form in its present state on this machine."""
        return isinstance(network, Transformer) and _supported(network.config) and on_cpu(network)

    def store(self, slots: int, positions: int) -> KeyValueStore:
        """A key-value store for this network. The layout of its keys is specific to the CPU form."""
        return self.network.store(slots, positions)

    def expected(self, log_p: Tensor) -> Tensor:
        """The mean embedding of each distribution [N, V] -> [N, D]."""
        return self.network.expected(log_p)

    @torch.inference_mode()
    def __call__(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """Flat logits [N, V] in the order of ``request.targets >= 0``."""
        x, shape = self.hidden(request, attention_context(request, self.rotary, store, *self.positions))
        net, eps = self.network, self.config.norm_eps
        if net.edits is not None:
            rates: Tensor = net.edits(rms_normalise(unflatten(x, shape), eps) * net.norm.weight, net.embedding.weight)
            return rates
        return self.project(x, shape)

    @property
    def positions(self) -> tuple[bool, int | None]:
        """What the attention context depends on: ``Config.restart`` and ``Config.radius``."""
        return self.config.restart, self.config.radius

    def project(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Logits [N, V] of hidden states in the form of ``hidden``."""
        return unflatten(self.head(rms_normalise(x, self.config.norm_eps)), shape)

    def hidden(
        self, request: Forward, context: AttentionContext, on_layer: Callable[[int, Tensor], None] | None = None
    ) -> tuple[Tensor, torch.Size]:
        """The last hidden states of the target positions, in the form of ``flatten_padded``, and their shape without D.

        ``on_layer`` is called with the number and the output [R, Q, D] of every layer but the last.
        """
        net, c = self.network, self.config
        x = net.embed(request)
        if net.answer is not None and request.prompt is not None:
            x = torch.addcmul(x, (request.streams[1] >= request.prompt[:, None]).to(x.dtype)[..., None], net.answer)
        x, shape = flatten_padded(x), x.shape[:-1]
        for layer in self.layers[:-1]:
            x, shape = layer(x, shape, context)
            if on_layer is not None:
                on_layer(layer.index, unflatten(x, shape))
        return self.layers[-1](x, shape, context, lambda y: gather_targets(y, request, c.shift))


def on_cpu(network: Backbone) -> bool:
    """Whether a network can run inference in float32 on a CPU with oneDNN, without unmerged adapters."""
    weight = network.embedding.weight
    ready = not network.training and weight.device.type == "cpu" and weight.dtype == torch.float32
    return ready and torch.backends.mkldnn.is_available() and next(adapted(network), None) is None


def _supported(c: Config) -> bool:
    """``CpuTransformer`` supports this shape: no time, no biases but those of Qwen, full rotary, an MLP per layer."""
    grows = c.stretch is not None and c.stretch.growth > 0
    return not (grows or c.timed or c.out_bias or c.mlp_bias or c.head_bias or c.experts or c.rotary_dim)


class Layer:
    """One block: [R, Q, D] -> [R, Q, D], or -> [N, D] if ``select`` selects the N target positions.

    Inputs and outputs have the form of ``flatten_padded``, together with their shape without D. ``after_attention`` is
    the hook of the block between attention and MLP (``Block.after_attention``); None: the identity.
    """

    def __init__(self, block: Any, c: Any, matrix: type[_Matrix]) -> None:
        attention = block.attention
        self.index, self.eps, self.local = attention.layer, c.norm_eps, attention.local
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        rotated = self.heads + self.kv_heads
        qkv = (attention.qkv.weight * block.attention_norm.weight).view(-1, self.head_dim, c.dim)
        self.qkv = matrix(torch.cat([interleaved(qkv[:rotated], 1), qkv[rotated:]]).flatten(0, 1))
        self.bias = None
        if attention.qkv.bias is not None:
            bias = attention.qkv.bias.view(-1, self.head_dim)
            self.bias = torch.cat([interleaved(bias[:rotated], 1), bias[rotated:]]).flatten()
        self.out, self.down = matrix(attention.out.weight), matrix(block.mlp.down.weight)
        gate_up = (block.mlp.gate_up.weight * block.mlp_norm.weight).chunk(2)
        self.gate, self.up = (matrix(half) for half in gate_up)
        self.gain = None  # [H + Hk, Dh] of the query and key norms
        if attention.q_norm is not None and attention.k_norm is not None:
            gains = [attention.q_norm.weight.expand(self.heads, -1), attention.k_norm.weight.expand(self.kv_heads, -1)]
            self.gain = interleaved(torch.cat(gains), 1)

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
        """The product with the integers if x is a single vector, else None."""
        if x.numel() != x.shape[-1]:
            return None
        product = torch._weight_int8pack_mm(x.view(1, -1).bfloat16(), self.integers, self.ones)
        return torch.mul(product, self.scale).view(*x.shape[:-1], -1)


MATRIX_TYPES = {"float32": _Matrix, "bfloat16": _Bfloat16Matrix, "int8": _Int8Matrix}


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
