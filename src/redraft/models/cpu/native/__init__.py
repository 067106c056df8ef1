"""Compiled code for the layers of small networks on CPUs: one call a pass in place of twenty small ones a layer."""

from __future__ import annotations

import ctypes
import functools
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from redraft.models.cpu.native import build


@dataclass(frozen=True)
class Library:
    """A loaded library. ``width``: floats of a register, the unit in which it pads and splits."""

    path: Path
    code: ctypes.CDLL
    width: int


@dataclass(frozen=True)
class Search:
    """What was found: the library, or why there is none and what a user can do (empty: nothing)."""

    found: Library | None
    reason: str = ""
    remedy: str = ""


@functools.cache
def library() -> Search:
    """The compiled code for this processor, which uses the threads of torch."""
    capability = torch.backends.cpu.get_cpu_capability().lower() if build.supported() else platform.machine()
    names = [name for name in build.FLAGS if name == capability or (name, capability) == ("avx2", "avx512")]
    searches = [load(name) for name in names]
    nothing = Search(None, f"there is none for machines of the kind '{capability}'")
    return next((search for search in searches if search.found), searches[0] if searches else nothing)


def load(instructions: str) -> Search:
    """The library for a set of instructions, one of ``build.FLAGS``, which the processor must have."""
    path, remedy = build.target(instructions), "Install g++, and install redraft again."
    if not path.exists():
        return Search(None, "it was not compiled, for which the installation needs g++", remedy)
    try:
        code = ctypes.CDLL(str(path))
    except OSError as error:
        return Search(None, f"{path.name} can't be loaded: {error}", remedy)
    code.redraft_fingerprint.restype = ctypes.c_char_p
    if code.redraft_fingerprint().decode() != build.fingerprint():
        return Search(None, f"{path.name} was compiled from another version of its source", remedy)
    return Search(Library(path, code, code.redraft_width()))
