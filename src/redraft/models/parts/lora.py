"""Low-rank adapters: W x + scale B A x with W frozen (Hu et al. 2021, arXiv:2106.09685).

Names and hyperparameters follow ``peft``, whose files the module ``adapters`` reads and writes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError, suggest
from redraft.lora import Lora
from redraft.models.parts.added_tokens import AddedTokens
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.moe import MixtureOfExperts
from redraft.models.parts.packed import Packed, linear, packed_in, product_dtype
from redraft.weights import TensorMap

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Part:
    """A named range of a matrix's rows, such as the query rows of ``qkv``."""

    name: str
    start: int
    rows: int


class LowRank(nn.Module):
    """scale B_i (A_i x) in the rows of each part i: [..., in] -> [..., out]. B starts at zero, and so does the sum."""

    def __init__(self, weight: Tensor, lora: Lora, parts: list[Part]) -> None:
        super().__init__()
        self.out_features, wide = weight.shape
        self.parts, self.rank = sorted(parts, key=lambda part: part.start), lora.rank
        self.scale, self.dropout = lora.scale, lora.dropout
        self.active = True  # False: as if there were no adapter (``base_of``)
        rows, device = sum(part.rows for part in parts), weight.device
        self.lora_a = nn.Parameter(torch.empty(len(parts) * lora.rank, wide, device=device))  # A_1 .. A_n
        self.lora_b = nn.Parameter(torch.zeros(rows, lora.rank, device=device))  # B_1 .. B_n
        for part in self.lora_a.split(lora.rank):
            nn.init.kaiming_uniform_(part.data, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return self.scale * self._spread(F.linear(x, self.lora_a))

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

    def merge_into(self, weight: Tensor) -> None:
        """Add the adapter to its matrix [out, in]."""
        for part, a, b in self.pairs():
            add(weight[part.start : part.start + part.rows], self.scale, a, b)


class Adapted(LowRank):
    """y = W x + b, plus the adapter."""

    weight: nn.Parameter | Packed
    bias: nn.Parameter | None

    def __init__(self, base: nn.Linear, lora: Lora, parts: list[Part]) -> None:
        super().__init__(base.weight, lora, parts)
        self.in_features, self.bias = base.in_features, base.bias
        self.weight = base.weight  # type: ignore[assignment] # a parameter

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(product_dtype(x))  # once for both
        y = linear(x, self.weight, self.bias)
        return y + super().forward(x) if self.active else y


class AdaptedExperts(MixtureOfExperts):
    """A mixture whose experts have adapters, some or all: those of expert e are ``gate_up_lora[str(e)]`` ..."""

    def __init__(self, base: MixtureOfExperts) -> None:
        nn.Module.__init__(self)
        self.experts, self.router, self.balance, self.shared = base.experts, base.router, base.balance, base.shared
        self.input_scale, self.expert_scale = base.input_scale, base.expert_scale
        self.experts_gate_up, self.experts_down = base.experts_gate_up, base.experts_down
        self.gate_up_lora, self.down_lora = nn.ModuleDict(), nn.ModuleDict()

    @property
    def groupable(self) -> bool:
        """No: an expert may have an adapter of its own."""
        return False

    def gate_up(self, x: Tensor, expert: int) -> Tensor:
        """Gate and up of one expert, [T, D] -> [T, 2 H]."""
        return self._added(self.gate_up_lora, expert, x, super().gate_up(x, expert))

    def down(self, x: Tensor, expert: int) -> Tensor:
        """The output of one expert, [T, H] -> [T, D]."""
        return self._added(self.down_lora, expert, x, super().down(x, expert))

    @staticmethod
    def _added(adapters: nn.ModuleDict, expert: int, x: Tensor, y: Tensor) -> Tensor:
        if str(expert) not in adapters:
            return y
        own = adapters[str(expert)]
        return y + own(x) if own.active else y


Place = tuple[str, int | None]  # path of a matrix in the network, and the expert that it belongs to


def parts_of(network: nn.Module, places: Mapping[str, TensorMap]) -> dict[Place, list[Part]]:
    """The matrices in a network's blocks that can be adapted, with their parts and these parts' public names.

    Not the routers of experts: they are small, and a change of theirs moves tokens to other experts.
    """
    found: dict[Place, list[Part]] = {}
    for public, place in places.items():
        if not (public.endswith(".weight") and place.name.startswith("blocks.")):
            continue
        weight = network.get_parameter(place.name)
        owner = network.get_submodule(place.name.rpartition(".")[0])
        plain = isinstance(owner, nn.Linear) and place.at is None and not place.name.endswith(".router.weight")
        if plain or (isinstance(owner, MixtureOfExperts) and weight.ndim == 3):
            rows = weight.shape[-2] if place.rows is None else place.rows
            found.setdefault((place.name, place.at), []).append(Part(public.removesuffix(".weight"), place.start, rows))
    return found


def by_expert(network: nn.Module, places: Mapping[str, TensorMap]) -> dict[str, TensorMap]:
    """The same places, where each expert has one of its own: ``experts.down_proj`` becomes
    ``experts.3.down_proj.weight`` and so on."""
    found: dict[str, TensorMap] = {}
    for public, place in places.items():
        path, _, kind = place.name.rpartition(".")
        if kind not in ("experts_gate_up", "experts_down") or place.at is not None:
            found[public] = place
            continue
        owner, (stem, _, leaf) = network.get_submodule(path), public.rpartition(".")
        assert isinstance(owner, MixtureOfExperts)
        found |= {f"{stem}.{at}.{leaf}.weight": replace(place, at=at) for at in range(owner.experts.count)}
    return found


def attach(network: Backbone, lora: Lora, places: Mapping[str, TensorMap], added: Sequence[int] = ()) -> None:
    """Add adapters to a network's matrices and freeze all other weights, except the vectors of ``added`` tokens.

    Raises:
        UserError: ``lora.targets`` matches no matrix.
    """
    found, count = parts_of(network, places), 0
    network.requires_grad_(False)
    for (name, expert), parts in found.items():
        chosen = [part for part in parts if lora.takes(part.name)]
        if chosen:
            _adapt(network, name, expert, lora, chosen)
            count += len(chosen)
    if not count:
        known = sorted({part.name.rpartition(".")[2] for parts in found.values() for part in parts})
        targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
        remedy = suggest(targets, known) if known else ""
        raise UserError(
            f"[lora] targets: this network has no matrix '{targets}'.", remedy or f"Known: {', '.join(known)}."
        )
    if added:
        network.added = AddedTokens(added, network.embedding.weight, network.head_weight)


def _adapt(network: nn.Module, name: str, expert: int | None, lora: Lora, parts: list[Part]) -> None:
    """Add adapters to some parts of one matrix."""
    path, _, kind = name.rpartition(".")
    parent, _, own = path.rpartition(".")
    module = network.get_submodule(path)
    if expert is None:
        assert isinstance(module, nn.Linear)
        setattr(network.get_submodule(parent), own, Adapted(module, lora, parts))
        return
    assert isinstance(module, MixtureOfExperts)
    if not isinstance(module, AdaptedExperts):
        module = AdaptedExperts(module)
        setattr(network.get_submodule(parent), own, module)
    adapters = module.gate_up_lora if kind == "experts_gate_up" else module.down_lora
    adapters[str(expert)] = LowRank(network.get_parameter(name)[expert], lora, parts)


def adapted(network: nn.Module) -> Iterator[LowRank]:
    """The adapters of a network."""
    return (module for module in network.modules() if isinstance(module, LowRank))


def base_of(network: Network) -> Network:
    """The network without its adapters. It shares all weights with ``network``, so that it takes no memory."""
    shared: dict[int, Any] = {id(weight): weight for weight in (*network.parameters(), *network.buffers())}
    shared |= {id(matrix): matrix for matrix in packed_in(network)}
    base = copy.deepcopy(network, shared)
    for module in adapted(base):
        module.active = False
    return base


@torch.no_grad()
def add(weight: Tensor, scale: float, a: Tensor, b: Tensor) -> None:
    """weight += scale B A, in place, computed in float32: ``weight`` [out, in], ``a`` [rank, in], ``b`` [out, rank]."""
    weight.add_((scale * (b.float() @ a.float())).to(weight.dtype).to(weight.device))


@torch.no_grad()
def merge(network: Backbone) -> None:
    """Merge every adapter into its matrix: the same function up to rounding, without extra cost at inference.

    Raises:
        ValueError: the matrices are packed, and so can't be changed.
    """
    if next(packed_in(network), None) is not None:
        raise ValueError("The base is packed. Load it again in floating point and merge the saved adapter.")
    for path, module in list(network.named_modules()):
        if isinstance(module, Adapted):
            module.merge_into(module.weight)  # type: ignore[arg-type] # not packed
            plain = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            plain.weight, plain.bias = module.weight, module.bias  # type: ignore[assignment]
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, plain)
        elif isinstance(module, AdaptedExperts):
            pairs = ((module.gate_up_lora, module.experts_gate_up), (module.down_lora, module.experts_down))
            for adapters, weight in pairs:
                for expert, adapter in adapters.items():
                    adapter.merge_into(weight[int(expert)])  # type: ignore[operator]
                adapters.clear()
    if network.added is not None:
        network.added.merge_into(network.embedding.weight, network.head_weight)
        network.added = None
