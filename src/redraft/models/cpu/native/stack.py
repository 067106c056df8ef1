"""The layers of a CPU form as one call of compiled code."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.models.cpu.layers import LayerWeights, Select, quantised
from redraft.models.cpu.native import Library
from redraft.models.parts.attention import AttentionContext
from redraft.settings import Weights
from redraft.types import Forward

_Pointer, _Integer = ctypes.c_void_p, ctypes.c_int64
_TOGETHER = 4  # queries of a task
_SHARE = 1 << 21  # multiplications that are worth a thread: some 50 microseconds, many times what starting it takes


class _Matrix(ctypes.Structure):
    _fields_ = [("data", _Pointer), ("scale", _Pointer), ("bias", _Pointer), ("inputs", _Integer), ("out", _Integer)]


_MATRICES = [(name, _Matrix) for name in ("qkv", "out", "gate_up", "down")]


class _Layer(ctypes.Structure):
    _fields_ = [*_MATRICES, ("gain", _Pointer), ("local", _Integer)]


class _Visible(ctypes.Structure):
    _fields_ = [("mask", _Pointer), *((n, _Integer) for n in ("mask_row", "mask_query", "begin", "end", "causal"))]


_SIZES = (
    *("layers", "dim", "heads", "key_heads", "width", "rows", "queries", "targets"),
    *("table_row", "slots", "positions", "threads", "span"),
)
_ADDRESSES = (
    *("layer", "x", "out", "table", "pairs", "slot", "place", "target", "kept", "visible"),
    *("qkv", "attended", "inner", "scores"),
)


class _Pass(ctypes.Structure):
    """``Pass`` of ``layers.cpp``, field by field, as are the structures above."""

    _fields_ = [*((n, _Integer) for n in _SIZES), *((n, _Pointer) for n in _ADDRESSES), ("eps", ctypes.c_double)]


class NativeStack:
    """A ``Stack`` whose layers are one call, and whose sums have an order of their own for each position.

    The numbers of a position do not depend on the other rows and positions of a request, nor on the number of threads:
    they are equal bit by bit in every batch, with and without the exact cache. int8 weights are multiplied by float32
    activations at every width.
    """

    weights: tuple[Weights, ...] = ("float32", "int8")

    def __init__(
        self, library: Library, blocks: Sequence[Any], head: Tensor | None, eps: float, integers: bool
    ) -> None:
        self._library, self._eps, self._integers = library, eps, integers
        self._tensors: list[Tensor] = []  # that pointers refer to
        attention, hidden = blocks[0].attention, blocks[0].mlp.down.weight.shape[1]
        heads, key_heads, width = attention.heads, attention.kv_heads, attention.head_dim
        self._scratch = ((heads + 2 * key_heads) * width, heads * width, hidden)  # floats for each position
        self._numbers = [block.attention.layer for block in blocks]  # in the key-value store
        self._layers = (_Layer * len(blocks))(*(self._layer(block) for block in blocks))
        self._weights = sum(each.numel() for block in blocks for each in block.parameters())
        self._head = None if head is None else self._matrix(head)
        self._shape = _Pass(layers=len(blocks), heads=heads, key_heads=key_heads, width=width, eps=eps)
        self._shape.dim, self._shape.layer = len(attention.out.weight), ctypes.addressof(self._layers)

    @staticmethod
    def fits(blocks: Sequence[Any], width: int) -> bool:
        """Whether the compiled code supports layers of this shape: everything is a multiple of its unit."""
        sizes = {size for b in blocks for size in (b.attention.head_dim, *b.mlp.down.weight.shape)}
        return all(size % width == 0 for size in sizes)

    def _layer(self, block: Any) -> _Layer:
        weights, unit = LayerWeights.of(block), self._library.width
        halves = [half.unflatten(0, (-1, unit)) for half in (weights.gate, weights.up)]
        return _Layer(
            self._matrix(weights.qkv, weights.bias),
            self._matrix(weights.out),
            self._matrix(torch.stack(halves, 1).flatten(0, 2)),
            self._matrix(weights.down),
            self._keep(weights.gain),
            block.attention.local,
        )

    def _matrix(self, weight: Tensor, bias: Tensor | None = None) -> _Matrix:
        """W [out, in] as panels [panels, in, 2 ``width``]."""
        rows, panel, scale = len(weight), 2 * self._library.width, None
        if self._integers:
            weight, scale = quantised(weight)
            scale = F.pad(scale, (0, -rows % panel))
        panels = F.pad(weight, (0, 0, 0, -rows % panel)).unflatten(0, (-1, panel)).transpose(1, 2)
        return _Matrix(self._keep(panels), self._keep(scale), self._keep(bias), weight.shape[1], rows)

    def _keep(self, tensor: Tensor | None) -> int | None:
        """The address of a contiguous copy that lives as long as this stack."""
        if tensor is None:
            return None
        self._tensors.append(tensor.detach().contiguous())
        return self._tensors[-1].data_ptr()

    def run(
        self,
        x: Tensor,
        request: Forward,
        context: AttentionContext,
        select: Select | None = None,
        kept: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """As ``Stack.run``: [R, Q, D] -> [R, Q, D] or [N, D]."""
        rows, queries, dim = x.shape
        x, table, count = x.contiguous(), context.table.contiguous(), rows * queries
        call = _Pass.from_buffer_copy(self._shape)
        call.x, call.out, call.rows, call.queries, call.targets = x.data_ptr(), x.data_ptr(), rows, queries, count
        call.table, call.table_row = table.data_ptr(), table.stride(0) * 2 if len(table) > 1 else 0
        # Everything that a pointer refers to has a name here until the call returns.
        out, target = x, None
        if select is not None:
            target = select(torch.arange(count).view(rows, queries, 1)).flatten()
            out = x.new_empty(len(target), dim)
            call.target, call.out, call.targets = target.data_ptr(), out.data_ptr(), len(target)
        masks, visible = zip(*(_visible(each, queries) for each in (context, context.local or context)), strict=True)
        seen = (_Visible * 2)(*visible)
        unit = self._library.width
        call.visible, call.span = ctypes.addressof(seen), -(-max(v.end - v.begin for v in visible) // unit) * unit
        copies = _pointers([(kept or {}).get(number) for number in range(len(self._layers))])
        call.kept, call.threads = ctypes.addressof(copies), _threads(count * self._weights)
        sizes = [count * size for size in self._scratch] + [call.threads * _TOGETHER * call.span]
        scratch = [x.new_empty(size) for size in sizes]
        call.qkv, call.attended, call.inner, call.scores = (part.data_ptr() for part in scratch)
        view, window = context.store, context.window
        if view is None or window is None:
            self._library.code.redraft_layers(ctypes.byref(call))
            return out
        store, slots, places = view.store, view.slots.contiguous(), request.positions.contiguous()
        pairs = _pointers([store.pairs[number] for number in self._numbers])
        call.pairs, call.slot, call.place = ctypes.addressof(pairs), slots.data_ptr(), places.data_ptr()
        call.slots, call.positions = store.pairs[0].shape[1], store.pairs[0].shape[3]
        with store.measured(window) if store.watched in self._numbers else nullcontext():
            self._library.code.redraft_layers(ctypes.byref(call))
        return out

    def project(self, x: Tensor) -> Tensor:
        """As ``Stack.project``: [N, D] -> [N, V]."""
        assert self._head is not None
        x = x.contiguous()
        logits = x.new_empty(len(x), self._head.out)
        self._library.code.redraft_project(
            _Pointer(x.data_ptr()),
            _Integer(len(x)),
            ctypes.byref(self._head),
            ctypes.c_double(self._eps),
            _Pointer(logits.data_ptr()),
            _Integer(_threads(len(x) * self._head.inputs * self._head.out)),
        )
        return logits


def _threads(multiplications: int) -> int:
    return min(torch.get_num_threads(), max(1, multiplications // _SHARE))


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[Any]:
    return (_Pointer * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))


def _visible(context: AttentionContext, queries: int) -> tuple[Tensor | None, _Visible]:
    """Which keys the queries see, and the mask that this refers to."""
    mask, window = context.mask, context.window
    begin, end = (0, queries) if window is None else (window.begin, window.extent)
    if mask is None:
        return None, _Visible(None, 0, 0, begin, end, context.causal)
    mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    row, query = (mask.stride(axis) if mask.shape[axis] > 1 else 0 for axis in (0, 2))
    return mask, _Visible(mask.data_ptr(), row, query, begin, end, context.causal)
