"""Frozen matrices in fewer bits than the computation: bfloat16, int8 or NF4 in memory, decoded where they are used.

Under an adapter the gradient of a frozen matrix W is never needed, only that of its input, dx = dy W. ``linear`` casts
or decodes W in the forward and again in the backward pass, and keeps no copy of it in between.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError

_NF4_BLOCK = 64  # numbers that share a scale


class Packed(ABC):
    """A matrix, or one for each expert, in fewer bits than a floating-point number takes."""

    shape: torch.Size

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in a floating-point type."""

    @abstractmethod
    def __getitem__(self, expert: int) -> Packed:
        """The matrix of one expert."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes in memory."""

    def numel(self) -> int:
        """Number of weights."""
        return self.shape.numel()


@dataclass(frozen=True)
class Int8(Packed):
    """round(w / s) with a scale s = max|row| / 127 for each row (absmax quantisation, arXiv:2208.07339)."""

    codes: Tensor  # [..., out, in] int8
    scale: Tensor  # [..., out, 1] float32

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Pack a weight [..., out, in]."""
        codes, scale = torch.empty_like(weight, dtype=torch.int8), weight.new_empty(*weight.shape[:-1], 1).float()
        each = (part.flatten(0, -3) if weight.ndim > 2 else part[None] for part in (weight, codes, scale))
        for matrix, into, own in zip(*each, strict=True):  # one at a time, because each is copied to float32
            exact = matrix.float()
            own.copy_(exact.abs().amax(1, keepdim=True).clamp_(min=1e-12).div_(127))
            into.copy_(torch.div(exact, own).round_())
        return cls(codes, scale)

    @property
    def shape(self) -> torch.Size:  # type: ignore[override] # read-only here
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in]."""
        return self.codes.to(dtype).mul_(self.scale.to(dtype))

    def __getitem__(self, expert: int) -> Int8:
        return Int8(self.codes[expert], self.scale[expert])


@dataclass(frozen=True)
class Nf4(Packed):
    """NormalFloat of 4 bits with a scale for each 64 numbers (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), by
    bitsandbytes."""

    codes: tuple[Tensor, ...]  # of each expert; a plain matrix is one
    states: tuple[Any, ...]  # bitsandbytes' scales and code book
    shape: torch.Size  # [..., out, in]

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Pack a weight [..., out, in].

        Raises:
            UserError: bitsandbytes is not installed, or does not run on the weight's device.
        """
        functional = bitsandbytes().functional
        matrices = weight.flatten(0, -3) if weight.ndim > 2 else weight[None]
        try:
            packed = [functional.quantize_4bit(each, blocksize=_NF4_BLOCK, quant_type="nf4") for each in matrices]
        except (RuntimeError, NotImplementedError, ValueError) as error:
            what = f"nf4 does not run on device '{weight.device}': {str(error).splitlines()[0]}."
            raise UserError(what, "Use --base-dtype int8 or bfloat16.") from None
        return cls(tuple(code for code, _ in packed), tuple(state for _, state in packed), weight.shape)

    @property
    def nbytes(self) -> int:
        return sum(code.nbytes + state.absmax.nbytes for code, state in zip(self.codes, self.states, strict=True))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in]."""
        found: Tensor = bitsandbytes().functional.dequantize_4bit(self.codes[0], self.states[0])
        return found.to(dtype)

    def __getitem__(self, expert: int) -> Nf4:
        return Nf4(self.codes[expert : expert + 1], self.states[expert : expert + 1], self.shape[1:])


def pack(weight: Tensor, packing: str) -> Packed:
    """Pack a weight [..., out, in] as ``int8`` or ``nf4``.

    Raises:
        UserError: nf4 does not run here.
    """
    return Int8.of(weight.detach()) if packing == "int8" else Nf4.of(weight.detach())


def packed_in(module: nn.Module) -> Iterator[Packed]:
    """The packed matrices of a module and of the modules in it."""
    for each in module.modules():
        yield from (value for value in vars(each).values() if isinstance(value, Packed))


def bitsandbytes() -> ModuleType:
    """The package bitsandbytes.

    Raises:
        UserError: it is not installed, or does not load on this machine.
    """
    try:
        import bitsandbytes as found
        import bitsandbytes.functional  # an attribute of ``found``
    except (ImportError, OSError, RuntimeError) as error:
        what = f"nf4 and 8-bit AdamW need the package bitsandbytes, which can't be loaded: {error}."
        raise UserError(what, "Install it: pip install 'redraft[lowbit]'. Or use int8 and adamw.") from None
    module: ModuleType = found
    return module


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which x [...] is multiplied by a matrix: that of autocast, or else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for a weight of any type: [..., in] -> [..., out], in the type of autocast or else of x.

    A frozen weight of another type is cast for the product only. Under autocast, ``F.linear`` would keep the cast copy
    until the backward pass: the whole base a second time.
    """
    dtype = product_dtype(x)
    if isinstance(weight, Tensor) and (weight.dtype == dtype or weight.requires_grad):
        return F.linear(x, weight, bias)
    cast: Callable[[torch.dtype], Tensor] = weight.to if isinstance(weight, Tensor) else weight.dense
    product: Tensor = _Product.apply(x.to(dtype), cast, None if bias is None else bias.to(dtype))
    return product


class _Product(torch.autograd.Function):
    """y = x W^T + b with dx = dy W, and no gradient of W and b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cast: Callable[[torch.dtype], Tensor], bias: Tensor | None) -> Tensor:
        ctx.cast = cast
        return F.linear(x, cast(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ ctx.cast(grads[0].dtype), None, None
