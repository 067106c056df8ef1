"""Low-rank adapters: W x + scale B A x, where W stays as it is (Hu et al. 2021, arXiv:2106.09685).

Names and numbers are those of ``peft``: ``adapters`` writes and reads its files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError, suggest
from redraft.weights import Place

ALL = "all-linear"


@dataclass(frozen=True)
class Lora:
    """Which matrices get an adapter, and of what rank.

    Fields:
        rank: of B A. alpha: scale = alpha / rank; with ``rslora`` alpha / sqrt(rank) (Kalajdzievski 2023, 2312.03732).
        dropout: share of an adapter's inputs that is dropped in training.
        targets: endings of module names ("q_proj", "mlp.up_proj"), or one regular expression for whole names, or
            ``all-linear``: every matrix of every block. Names are those of the public checkpoint that a model was
            loaded from, and Llama's for our own transformer.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = ALL
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"[lora] rank = {self.rank} must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"[lora] dropout = {self.dropout} must be at least 0 and below 1.")

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def takes(self, name: str) -> bool:
        """Is a module of this name to be adapted?"""
        if self.targets == ALL or self.targets == (ALL,):
            return True
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in self.targets)


@dataclass(frozen=True)
class Part:
    """A range of a matrix's rows that has a name, such as the queries of ``qkv``."""

    name: str
    start: int
    rows: int


class Adapted(nn.Linear):
    """y = W x + b, plus scale B_i (A_i x) in the rows of each part i. B is zero at first, so that y is too."""

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
        """[..., n rank] -> [..., out]: every part by its own B, nothing in rows without one."""
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


def parts_of(network: nn.Module, places: Mapping[str, Place]) -> dict[str, list[Part]]:
    """The matrices within a network's blocks that can be adapted: module -> its parts by their public names."""
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


def attach(network: nn.Module, lora: Lora, places: Mapping[str, Place]) -> None:
    """Give a network's matrices adapters, and let nothing else be trained.

    Raises:
        UserError: no matrix has such a name.
    """
    every, count = parts_of(network, places), 0
    network.requires_grad_(False)
    for path, parts in every.items():
        chosen = [part for part in parts if lora.takes(part.name)]
        if chosen:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, Adapted(network.get_submodule(path), lora, chosen))  # type: ignore[arg-type]
            count += len(chosen)
    if not count:
        known = sorted({part.name.rpartition(".")[2] for parts in every.values() for part in parts})
        asked = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
        remedy = suggest(asked, known) if known else ""
        raise UserError(
            f"[lora] targets: this network has no matrix '{asked}'.", remedy or f"Known: {', '.join(known)}."
        )


def adapted(network: nn.Module) -> Iterator[Adapted]:
    """The matrices that have adapters."""
    return (module for module in network.modules() if isinstance(module, Adapted))


@torch.no_grad()
def add(weight: Tensor, scale: float, a: Tensor, b: Tensor) -> None:
    """weight += scale B A, in place, worked out in float32."""
    weight.add_((scale * (b.float() @ a.float())).to(weight.dtype).to(weight.device))


def merge(network: nn.Module) -> None:
    """Fold every adapter into its matrix: the same function up to rounding, at no cost."""
    for path, module in [(path, module) for path, module in network.named_modules() if isinstance(module, Adapted)]:
        for part, a, b in module.pairs():
            add(module.weight[part.start : part.start + part.rows], module.scale, a, b)
        plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        plain.weight, plain.bias = module.weight, module.bias
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, plain)
