"""GGUF files: one file with metadata, tokenizer and weights, as llama.cpp writes it.

The header is read here rather than by the package ``gguf``: its reader takes seconds for a vocabulary of 49,152 tokens,
and a damaged length makes it loop without end. Types, block sizes and dequantisation are the package's.

Layout (version 3, little endian): magic, version, number of tensors, number of metadata entries; the entries; for each
tensor its name, shape (innermost dimension first), type and offset; then, aligned, the data.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
VERSIONS = (2, 3)
_SCALARS = "BbHhIif?"  # struct codes of the metadata types 0 to 7
_WIDE = {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_CHUNK = 1 << 22  # numbers that are dequantised at once
_AGAIN = "Copy or download the file again."


def is_gguf(path: str | Path) -> bool:
    """Is this a file with the ending ``.gguf``?"""
    return str(path).endswith(".gguf") and os.path.isfile(path)


def find_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds exactly one; None if it holds none.

    Raises:
        UserError: it holds several.
    """
    found = sorted(folder.glob("*.gguf")) if os.path.isdir(folder) else []
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise UserError(f"Folder '{folder}' holds {len(found)} GGUF files: {listed}.", "Give the path of one of them.")
    return found[0] if found else None


def open_gguf(path: Path) -> GgufFile:
    """The GGUF file at a path. The file that was opened last is kept open, until it changes.

    Raises:
        UserError: the file is damaged.
    """
    path = path.resolve()
    return _opened(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _opened(path: Path, _: int) -> GgufFile:
    return GgufFile(path)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file."""

    shape: tuple[int, ...]  # outermost dimension first
    type: int
    offset: int  # from the beginning of the data


class GgufFile:
    """A GGUF file, mapped into memory. Opening reads only the header.

    Attributes:
        metadata: values by key. Strings, numbers, and lists of these.
        stored: tensors by name, as the header describes them.

    Raises:
        UserError: not a GGUF file, another version, or a header that is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise UserError(f"Can't read '{path}': {error.strerror}.", "Check its permissions.") from None
        reader = _Reader(self._bytes, path)
        tensors, entries = reader.begin()
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = reader.string("a metadata key")
            if key in self.metadata:
                raise self.damaged(f"metadata key '{key}' is there twice")
            self.metadata[key] = reader.value(key)
        self.stored: dict[str, StoredTensor] = {}
        for _ in range(tensors):
            name = reader.string("the name of a tensor")
            if name in self.stored:
                raise self.damaged(f"tensor '{name}' is there twice")
            self.stored[name] = reader.tensor(name)
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment = {alignment!r} is not a power of two")
        self._begin = -(-reader.at // alignment) * alignment

    @contextmanager
    def mapped(self) -> Iterator[None]:
        """Context at whose end the pages that were read no longer count as this process's memory (POSIX only)."""
        try:
            yield
        finally:
            with suppress(AttributeError, OSError):  # Windows has no madvise, and an empty file is not mapped
                self._bytes.madvise(mmap.MADV_DONTNEED)  # type: ignore[union-attr]

    @cached_property
    def types(self) -> Mapping[str, Any]:
        """The type of each tensor, a member of ``gguf.GGMLQuantizationType``. Sizes are checked here.

        Raises:
            UserError: an unsupported type, a row that is not a whole number of blocks, or a tensor beyond the end of
                the file.
        """
        gguf = need_gguf()
        known = {kind.value: kind for kind in gguf.GGMLQuantizationType}
        found = {}
        for name, one in self.stored.items():
            kind = known.get(one.type)
            if kind is None or kind.name not in TYPES:
                what = f"{self.path}: tensor '{name}' is stored as {kind.name if kind else f'type {one.type}'}"
                raise UserError(f"{what}, which is not supported.", f"Supported: {', '.join(TYPES)}.")
            block, row = int(gguf.GGML_QUANT_SIZES[kind][0]), one.shape[-1]
            if row % block:
                raise self.damaged(f"tensor '{name}' has rows of {row}, not a multiple of {block} ({kind.name})")
            end = self._begin + one.offset + self._size(one, kind)
            if end > len(self._bytes):
                missing = end - len(self._bytes)
                raise self.damaged(f"tensor '{name}' ends {missing} bytes beyond the end of the file (truncated?)")
            found[name] = kind
        return found

    def read(self, name: str) -> Tensor:
        """A tensor in its shape [...], as float32; F16 and BF16 keep their type. At most ``_CHUNK`` numbers of it are
        in memory twice.

        Raises:
            UserError: as for ``types``.
        """
        import numpy as np
        import torch

        raw, kind, one = self.raw(name), self.types[name], self.stored[name]
        if kind.name in ("F32", "F16", "BF16"):
            stored = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind.name]
            return torch.from_numpy(raw.copy()).view(stored).view(one.shape)
        rows = raw.reshape(prod(one.shape[:-1]), -1)
        whole: np.ndarray = np.empty((len(rows), one.shape[-1]), np.float32)
        step = max(1, _CHUNK // one.shape[-1])
        for begin in range(0, len(rows), step):
            whole[begin : begin + step] = need_gguf().dequantize(rows[begin : begin + step], kind)
        return torch.from_numpy(whole).view(one.shape)

    def raw(self, name: str) -> np.ndarray:
        """The bytes [n] of a tensor, without copying them.

        Raises:
            UserError: as for ``types``.
        """
        import numpy as np

        kind, one = self.types[name], self.stored[name]
        return np.frombuffer(self._bytes, np.uint8, self._size(one, kind), self._begin + one.offset)

    def damaged(self, what: str) -> UserError:
        """The error for a damaged file."""
        return UserError(f"GGUF file '{self.path}' is damaged: {what}.", _AGAIN)

    def _size(self, one: StoredTensor, kind: Any) -> int:
        """Bytes of a tensor."""
        block, size = need_gguf().GGML_QUANT_SIZES[kind]
        return prod(one.shape) // int(block) * int(size)


def need_gguf() -> Any:
    """The package ``gguf``.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(
            "GGUF files need the package 'gguf', which is not installed.", "Run: pip install 'redraft[gguf]'"
        ) from None
    return gguf


class _Reader:
    """Reads the header of a GGUF file from its beginning. Every length is checked against the bytes that are left."""

    def __init__(self, data: mmap.mmap | bytes, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def begin(self) -> tuple[int, int]:
        """The numbers of tensors and of metadata entries, after magic and version."""
        if self.data[:4] != b"GGUF":
            raise UserError(f"'{self.path}' is not a GGUF file: it begins with {bytes(self.data[:4])!r}.", _AGAIN)
        self.at = 4
        version = self.number("I", "the version")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            kind = "is big-endian" if swapped else f"has version {version}"
            raise UserError(
                f"GGUF file '{self.path}' {kind}, which is not supported.",
                f"Convert it with current llama.cpp tools to version {VERSIONS[-1]}, little endian.",
            )
        return self.number("Q", "the number of tensors"), self.number("Q", "the number of metadata entries")

    def take(self, size: int, what: str) -> bytes:
        """The next bytes."""
        if size > len(self.data) - self.at:
            raise UserError(f"GGUF file '{self.path}' is truncated or damaged: it ends within {what}.", _AGAIN)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str, what: str) -> Any:
        """The next number of a type of ``struct``."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, what: str) -> str:
        """The next string."""
        taken = self.take(self.number("Q", what), what)
        try:
            return taken.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"GGUF file '{self.path}' is damaged: {what} is not UTF-8.", _AGAIN) from None

    def value(self, key: str) -> Any:
        """The value of a metadata entry."""
        what = f"the value of '{key}'"
        kind = self.number("I", what)
        if kind != _ARRAY:
            return self.string(what) if kind == _STRING else self.number(self._code(kind, what), what)
        kind, count = self.number("I", what), self.number("Q", what)
        if kind == _STRING:
            return [self.string(what) for _ in range(count)]
        code = self._code(kind, what)
        taken = self.take(count * struct.calcsize("<" + code), what)
        return list(struct.unpack(f"<{count}{code}", taken))

    def tensor(self, name: str) -> StoredTensor:
        """Shape, type and offset of a tensor."""
        what = f"the description of tensor '{name}'"
        count = self.number("I", what)
        if not 1 <= count <= _MOST_DIMENSIONS:
            raise UserError(f"GGUF file '{self.path}' is damaged: tensor '{name}' has {count} dimensions.", _AGAIN)
        shape = [self.number("Q", what) for _ in range(count)]
        if min(shape) < 1:
            raise UserError(f"GGUF file '{self.path}' is damaged: tensor '{name}' has shape {shape[::-1]}.", _AGAIN)
        return StoredTensor(tuple(reversed(shape)), self.number("I", what), self.number("Q", what))

    def _code(self, kind: int, what: str) -> str:
        code = _SCALARS[kind] if kind < len(_SCALARS) else _WIDE.get(kind)
        if code is None:
            raise UserError(f"GGUF file '{self.path}' is damaged: {what} is of the unknown type {kind}.", _AGAIN)
        return code
