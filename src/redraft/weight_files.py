"""Files of weights: safetensors, and pickled files, of which only the tensors are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I8": torch.int8}


@dataclass(frozen=True)
class PickledSlice:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]

    def get_shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.shape


class Pickled:
    """A pickled file with the interface of a safetensors file: only tensors, mapped into memory where possible."""

    def __init__(self, path: Path) -> None:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
        except Exception as error:
            reason = str(error).splitlines()[0]
            what = f"Checkpoint file '{path}' is corrupt, or holds more than tensors: {reason}"
            raise UserError(what, "Get it as safetensors.") from None
        state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
        self.tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}

    def __enter__(self) -> Pickled:
        return self

    def __exit__(self, *_: object) -> None:
        self.tensors.clear()

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self.tensors)

    def get_tensor(self, name: str) -> Tensor:
        """A tensor, in the shape [...] that is stored."""
        return self.tensors[name]

    def get_slice(self, name: str) -> PickledSlice:
        """A tensor's description."""
        return PickledSlice(tuple(self.tensors[name].shape))


def stored_type(opened: Any, name: str) -> torch.dtype:
    """The type of a stored tensor; of a safetensors file by its header."""
    if isinstance(opened, Pickled):
        return opened.tensors[name].dtype
    return _DTYPES.get(opened.get_slice(name).get_dtype(), torch.float32)


def _is_zip(path: Path) -> bool:
    import zipfile

    return zipfile.is_zipfile(path)


def open_file(path: Path, pickled: bool) -> Any:
    """Open a file of weights, as a context manager with the interface of ``safetensors.safe_open``.

    Raises:
        UserError: the file is missing, truncated or corrupt, or a pickled file that holds code.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"Checkpoint file '{path}' does not exist.")
    if pickled:
        return Pickled(path)
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        cut = _first_cut(path)
        what = f"Checkpoint file '{path}' is corrupt or truncated" + (f", from tensor '{cut}' on" if cut else "")
        raise UserError(f"{what}: {error}.", "Copy it again.") from None


def _first_cut(path: Path) -> str | None:
    """The first tensor of a truncated safetensors file that is incomplete; None if the header is broken."""
    with path.open("rb") as file:
        try:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < path.stat().st_size else {}
            ends = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
    room = path.stat().st_size - 8 - length
    return next((name for name, (_, end) in sorted(ends.items(), key=lambda entry: entry[1]) if end > room), None)


def read_index(path: Path) -> dict[str, str]:
    """Tensor -> file name, from an index of shards.

    Raises:
        UserError: the index is corrupt, or names a file in another folder.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(file, str) and Path(file).name == file for file in found.values()):
            raise ValueError("a shard must be in the folder of its index")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"'{path}' is corrupt: {error!r}.", "Copy it again.") from None
    return dict(found)
