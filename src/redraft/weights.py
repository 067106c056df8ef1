"""Weights on disk: safetensors files, single or sharded, mapped into memory and read one tensor at a time."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.files import file_marks
from redraft.weight_files import open_file, read_index, stored_type

STORAGES = ("float32", "bfloat16", "int8")
_OPEN_BYTES = 1 << 27  # of a safetensors file, read while it is open
SCALE = ".int8_scale"
_REMEDY = "Check that config.json and the weights are of the same model."


@dataclass(frozen=True)
class TensorMap:
    """The place of a stored tensor in the network: a whole tensor of the network, or a part of one.

    ``at`` selects an element of the first axis (one expert). ``start`` and ``rows`` then select a range of the next
    axis (queries, keys and values are concatenated there). ``transposed``: it is stored as [in, out].
    """

    name: str
    at: int | None = None
    start: int = 0
    rows: int | None = None  # None: all
    transposed: bool = False

    def view(self, whole: Tensor) -> Tensor:
        """The selected part [out, in] (or [out]) of the network's tensor, in the shape of the stored tensor."""
        part = whole if self.at is None else whole[self.at]
        if self.rows is not None:
            part = part[self.start : self.start + self.rows]
        return part.T if self.transposed else part


@dataclass(frozen=True)
class Layout:
    """How stored tensors map to a network's tensors."""

    places: Mapping[str, TensorMap]  # stored name -> place in the network
    twins: Mapping[str, str] = field(
        default_factory=dict
    )  # stored name -> other stored name; may be stored as well, and is then equal
    unused: tuple[str, ...] = ()  # endings of names that are skipped: buffers, and heads that are not used

    @classmethod
    def own(cls, network: torch.nn.Module) -> Layout:
        """Our own layout: every tensor under its own name."""
        return cls({name: TensorMap(name) for name, _ in network.named_parameters()})


def same_files(one: Path, other: Path) -> bool:
    """Do two model folders hold the same weights? Their files are compared by name, size, first and last megabyte."""
    weights = [sorted({*folder.glob("*.safetensors"), *folder.glob("*.bin")}) for folder in (one, other)]
    return file_marks(one, weights[0]) == file_marks(other, weights[1])


class Files:
    """The tensors of a model folder by name. Opening reads only the headers.

    The files are ``model.safetensors``, or the shards listed in ``model.safetensors.index.json``; if there are none,
    pickled ``pytorch_model.bin`` files, from which only tensors are unpickled.

    Raises:
        UserError: no weights, or a file that is missing, truncated or corrupt.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where: dict[str, Path] = {}  # tensor -> file
        self.shapes: dict[str, tuple[int, ...]] = {}  # as the headers give them
        self.pickled = False
        for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
            single, index = folder / f"{stem}.{ending}", folder / f"{stem}.{ending}.index.json"
            if single.is_file() or index.is_file():
                self.pickled = ending == "bin"
                break
        else:
            raise UserError(
                f"Checkpoint file '{folder / 'model.safetensors'}' does not exist.",
                "Copy the model's weights into the folder.",
            )
        if self.pickled:
            warnings.warn(
                f"{folder}: the weights are pickled. Only tensors are read from them. Safetensors files load faster "
                "and need less memory; redraft convert writes them.",
                stacklevel=2,
            )
        listed = {} if single.is_file() else read_index(index)
        self.shards = [single] if single.is_file() else sorted({folder / file for file in listed.values()})
        for shard in self.shards:
            for name, shape in self._headers(shard).items():
                if listed and listed.get(name) != shard.name:
                    continue
                self.where[name], self.shapes[name] = shard, shape
        for name, file in listed.items():
            if name not in self.where:
                raise UserError(f"{folder / file}: tensor '{name}' is missing, though {index.name} lists it there.")

    @property
    def names(self) -> list[str]:
        return [name for name in self.where if not name.endswith(SCALE)]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(shard.stat().st_size for shard in self.shards)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of most of the weights, by the headers; float32 if they are stored as integers."""
        counts: Counter[torch.dtype] = Counter()
        for shard in self.shards:
            with self._open(shard) as opened:
                for name in (name for name in self.names if self.where[name] == shard):
                    counts[stored_type(opened, name)] += 1
        found = counts.most_common(1)[0][0]
        return found if found.is_floating_point else torch.float32

    def __iter__(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Names, each with a function that reads the tensor. One shard is open at a time.

        Read pages of a mapped file count as this process's memory until it is closed. A large shard is therefore
        closed and opened again between tensors.
        """
        for shard in self.shards:
            for group in self._groups([name for name in self.names if self.where[name] == shard]):
                with self._open(shard) as opened:
                    for name in group:
                        yield name, partial(self._read, opened, shard, name)

    def _groups(self, names: list[str]) -> list[list[str]]:
        """The names of one shard, split into groups so that one group has about ``_OPEN_BYTES``."""
        parts = 1 if self.pickled or not names else -(-self.where[names[0]].stat().st_size // _OPEN_BYTES)
        size = max(1, -(-len(names) // parts))
        return [names[begin : begin + size] for begin in range(0, len(names), size)]

    def get(self, name: str) -> Tensor:
        """Read one tensor, in its stored shape [...].

        Raises:
            UserError: it can't be read.
        """
        with self._open(self.where[name]) as opened:
            return self._read(opened, self.where[name], name).clone()

    def _open(self, shard: Path) -> AbstractContextManager[Any]:
        """A file with the methods ``keys`` and ``get_tensor``."""
        return open_file(shard, self.pickled)

    def _headers(self, shard: Path) -> dict[str, tuple[int, ...]]:
        with self._open(shard) as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118

    def _read(self, opened: Any, shard: Path, name: str) -> Tensor:
        try:
            tensor: Tensor = opened.get_tensor(name)
            if tensor.dtype == torch.int8 and name + SCALE in self.where:
                tensor = tensor.float() * opened.get_tensor(name + SCALE)
        except Exception as error:  # of safetensors, or of the operating system
            raise UserError(f"{shard}: tensor '{name}' can't be read: {error}.", "Copy the file again.") from None
        return tensor


def fill(
    network: torch.nn.Module, files: Files, layout: Layout, on_read: Callable[[int, int], None] | None = None
) -> None:
    """Copy every stored tensor into its place in a network that is already allocated, and check that all match.

    At most one file is in memory beside the network. ``on_read`` is called with the bytes read and the total.

    Raises:
        UserError: names the first tensor that is missing, unexpected or of another shape, and its file.
        KeyError: the layout does not fit the network (a bug).
    """
    check_shapes(network, files, layout)
    own = dict(network.named_parameters())
    filled, done, total = dict.fromkeys(own, 0), 0, files.size
    with torch.no_grad():
        for name, read in files:
            shard = files.where[name]
            if name in layout.places:
                tensor, place = read(), layout.places[name]
                part = place.view(own[place.name])
                if not tensor.is_floating_point():
                    what = f"{shard}: tensor '{name}' holds {str(tensor.dtype).removeprefix('torch.')}, not weights."
                    raise UserError(what, "Quantised public checkpoints can't be read.")
                part.copy_(tensor)
                filled[place.name] += tensor.numel()
                done += tensor.numel() * tensor.element_size()
                if on_read is not None:
                    on_read(done, total)
    for name, count in filled.items():
        if count != own[name].numel():
            raise KeyError(f"layout: {count} of {own[name].numel()} numbers of '{name}' come from the files")
    _check_twins(files, layout)


def check_shapes(network: torch.nn.Module, files: Files, layout: Layout) -> None:
    """Check that the files hold the network's tensors [...]. Only headers are read: the network may be without memory.

    Raises:
        UserError: names the first tensor that is missing, unexpected or of another shape, and its file.
        KeyError: the layout does not fit the network (a bug).
    """
    own = dict(network.named_parameters())
    for name, place in layout.places.items():
        if name not in files.where:
            place_of = files.shards[0] if len(files.shards) == 1 else files.folder
            raise UserError(f"{place_of}: tensor '{name}' is missing.", _REMEDY)
        if place.name not in own:
            raise KeyError(f"layout: the network has no tensor '{place.name}'")
        found, wanted = files.shapes[name], tuple(place.view(own[place.name]).shape)
        if found != wanted:
            what = f"{files.where[name]}: tensor '{name}' has shape {list(found)}, the configuration needs"
            raise UserError(f"{what} {list(wanted)}.", _REMEDY)
    for name in files.names:
        if name not in layout.places and name not in layout.twins and not name.endswith(layout.unused):
            raise UserError(f"{files.where[name]}: unexpected tensor '{name}'.", _REMEDY)


_POSITIONS = {"max_length", "window", "original"}  # sizes that no stored tensor needs to have
_MOST_POSITIONS = 1 << 22


def check_scale(shape: Any, files: Files, where: str) -> None:
    """Check that a network's configuration can belong to these files, before anything is built by it.

    Building takes time and memory in proportion to the numbers of the configuration. So the number of layers is at most
    the number of stored tensors, and no other size exceeds the largest dimension of all of them.

    Args:
        shape: a configuration as a dataclass or as plain values, nested or not.
        where: how to name it in an error.
    Raises:
        UserError: names the field.
    """
    largest = max((max(dims, default=1) for dims in files.shapes.values()), default=0)
    for name, value in _integers(shape):
        if name.endswith(("layers", "layer", "blocks")):
            most, what = len(files.shapes), f"the files hold {len(files.shapes)} tensors"
        elif name in _POSITIONS:
            most, what = _MOST_POSITIONS, f"at most {_MOST_POSITIONS:,} positions are supported"
        else:
            most, what = largest, f"the largest tensor of the files has a dimension of {largest:,}"
        if value > most:
            raise UserError(f"{where}: {name} = {value} is too large: {what}.", _REMEDY)


def _integers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The integers in nested values, each with the name of its field."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _integers(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _integers(inner, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value


def _check_twins(files: Files, layout: Layout) -> None:
    for name, other in layout.twins.items():
        if name in files.where and other in files.where and not torch.equal(files.get(name), files.get(other)):
            raise UserError(
                f"{files.where[name]}: tensor '{name}' differs from '{other}', but the configuration ties them.",
                _REMEDY,
            )


def stored(network: torch.nn.Module, layout: Layout) -> dict[str, Tensor]:
    """The inverse of ``fill``: a network's tensors under the names and in the shapes [...] of a layout."""
    own = dict(network.named_parameters())
    return {name: place.view(own[place.name]).detach().cpu().contiguous() for name, place in layout.places.items()}


def pack(state: Mapping[str, Tensor], storage: str) -> dict[str, Tensor]:
    """Tensors as they are stored. int8 stores matrices [out, in] as round(w / s) with scales s = max|row| / 127
    [out, 1], and vectors in float32.

    Raises:
        UserError: unknown storage.
    """
    if storage not in STORAGES:
        raise UserError(f"Unknown storage '{storage}'.", f"Known: {', '.join(STORAGES)}.")
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if storage == "int8" and tensor.ndim == 2:
            scale = tensor.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            packed[name] = (tensor.float() / scale).round().to(torch.int8)
            packed[name + SCALE] = scale
        else:
            packed[name] = tensor.to(torch.bfloat16 if storage == "bfloat16" else torch.float32).contiguous()
    return packed
