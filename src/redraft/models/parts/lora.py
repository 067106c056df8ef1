"""Low-rank adapters: W x + scale B A x with W frozen (Hu et al. 2021, arXiv:2106.09685).

Names and hyperparameters follow ``peft``, whose files the module ``adapters`` reads and writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError, suggest
from redraft.lora import Lora
from redraft.weights import TensorMap


@dataclass(frozen=True)
class Part:
    """A named range of a matrix's rows, such as the query rows of ``qkv``."""

    name: str
    start: int
    rows: int


class Adapted(nn.Linear):
    """y = W x + b, plus scale B_i (A_i x) in the rows of each part i. B starts at zero, so y is unchanged at first."""

    def __init__(self, base: nn.Linear, lora: Lora, parts: list[Part]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.parts, self.rank = sorted(parts, key=lambda part: part.start), lora.rank
        self.scale, self.dropout = lora.scale, lora.dropout
        rows = sum(part.rows for part in parts)
        self.lora_a = nn.Parameter(base.weight.new_empty(len(parts) * lora.rank, base.in_features))  # A_1 .. A_n
        self.lora_b = nn.Parameter(base.weight.new_zeros(rows, lora.rank))  # B_1 .. B_n
        for part in self.lora_a.split(lora.rank):
            nn.init.kaiming_uniform_(part.data, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        inner = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)
        return y + self.scale * self._spread(inner)

    def _spread(self, inner: Tensor) -> Tensor:
        """Multiply each part of [..., n rank] by its B -> [..., out]; rows without a part are zero."""
        pieces, at = [], 0
        for part, low, matrix in zip(self.parts, inner.split(self.rank, -1), self._b(), strict=True):
            if part.start > at:
                pieces.append(inner.new_zeros(*inner.shape[:-1], part.start - at))
            pieces.append(F.linear(low, matrix))
            at = part.start + part.rows
        if at < self.out_features:
            pieces.append(inner.new_zeros(*inner.shape[:-1], self.out_features - at))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)

    def _b(self) -> tuple[Tensor, ...]:
        return self.lora_b.split([part.rows for part in self.parts])

    def pairs(self) -> Iterator[tuple[Part, Tensor, Tensor]]:
        """Every part with its A [rank, in] and B [rows, rank]."""
        yield from zip(self.parts, self.lora_a.split(self.rank), self._b(), strict=True)


def parts_of(network: nn.Module, places: Mapping[str, TensorMap]) -> dict[str, list[Part]]:
    """The matrices in a network's blocks that can be adapted: module path -> its parts with their public names."""
    found: dict[str, list[Part]] = {}
    for public, place in places.items():
        if not (public.endswith(".weight") and place.name.startswith("blocks.") and place.name.endswith(".weight")):
            continue
        path = place.name.removesuffix(".weight")
        module = network.get_submodule(path)
        if isinstance(module, nn.Linear) and place.at is None:
            rows = module.out_features if place.rows is None else place.rows
            found.setdefault(path, []).append(Part(public.removesuffix(".weight"), place.start, rows))
    return found


def attach(network: nn.Module, lora: Lora, places: Mapping[str, TensorMap]) -> None:
    """Add adapters to a network's matrices and freeze all other weights.

    Raises:
        UserError: ``lora.targets`` matches no matrix.
    """
    found, count = parts_of(network, places), 0
    network.requires_grad_(False)
    for path, parts in found.items():
        chosen = [part for part in parts if lora.takes(part.name)]
        if chosen:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, Adapted(network.get_submodule(path), lora, chosen))  # type: ignore[arg-type]
            count += len(chosen)
    if not count:
        known = sorted({part.name.rpartition(".")[2] for parts in found.values() for part in parts})
        targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
        remedy = suggest(targets, known) if known else ""
        raise UserError(
            f"[lora] targets: this network has no matrix '{targets}'.", remedy or f"Known: {', '.join(known)}."
        )


def adapted(network: nn.Module) -> Iterator[Adapted]:
    """The matrices with adapters."""
    return (module for module in network.modules() if isinstance(module, Adapted))


@torch.no_grad()
def add(weight: Tensor, scale: float, a: Tensor, b: Tensor) -> None:
    """weight += scale B A, in place, computed in float32: ``weight`` [out, in], ``a`` [rank, in], ``b`` [out, rank]."""
    weight.add_((scale * (b.float() @ a.float())).to(weight.dtype).to(weight.device))


def merge(network: nn.Module) -> None:
    """Merge every adapter into its matrix: the same function up to rounding, without extra cost at inference."""
    for path, module in [(path, module) for path, module in network.named_modules() if isinstance(module, Adapted)]:
        for part, a, b in module.pairs():
            add(module.weight[part.start : part.start + part.rows], module.scale, a, b)
        plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        plain.weight, plain.bias = module.weight, module.bias
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, plain)
