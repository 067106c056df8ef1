"""Training checkpoints that survive a kill at any moment: safetensors and JSON, no pickles.

A checkpoint is a folder ``checkpoint-<step>`` with ``state.safetensors`` and ``state.json``. It is written under a
temporary name, forced to disk and renamed, so a folder with the final name is always complete. The last two are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from redraft.errors import UserError
from redraft.files import atomic_folder, remove

_KEEP = 2


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
    """Write one checkpoint atomically and delete all but the last two.

    Args:
        folder: the folder of all checkpoints.
        tensors: tensors [...] by name; no two of them may share memory.
        values: plain JSON values.
    Returns:
        The new checkpoint's folder.
    Raises:
        UserError: the disk is full; existing checkpoints are untouched.
    """
    from safetensors.torch import save_file

    final = folder / f"checkpoint-{step:09d}"
    for leftover in folder.glob(".checkpoint-*"):  # of a run killed while saving
        remove(leftover)
    with atomic_folder(final) as new:
        weights = new / "state.safetensors"
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, weights)
        text = json.dumps(values)
        (new / "state.json").write_text(
            json.dumps({"sha256": _sha256(weights, text), "values": text}), encoding="utf-8"
        )
    _sync(folder)
    for old in checkpoints(folder)[:-_KEEP]:
        shutil.rmtree(old.rename(folder / f".{old.name}"))  # so that no incomplete folder has the final name
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("checkpoint-*") if p.is_dir())


def step_of(path: Path) -> int:
    """The step of a checkpoint folder."""
    return int(path.name.removeprefix("checkpoint-"))


def load_latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors [...] and values of the newest checkpoint, or None if there is none.

    Raises:
        UserError: it is corrupt or truncated; names the file and what to do.
    """
    found = checkpoints(folder)
    if not found:
        return None
    then = f"resume from {found[-2].name}" if len(found) > 1 else "start again"
    return load(found[-1], remedy=f"Delete the folder {found[-1]} to {then}.")


def load(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors [...] and values of one checkpoint folder, and check them against the recorded SHA-256.

    Raises:
        UserError: corrupt or truncated; names the file and gives the remedy.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    note, weights = path / "state.json", path / "state.safetensors"
    try:
        head = json.loads(note.read_text(encoding="utf-8"))
        digest, text = head["sha256"], str(head["values"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"Checkpoint file {note} is damaged ({_short(error)}).", remedy) from None
    try:
        if _sha256(weights, text) != digest:
            raise UserError(
                f"Checkpoint file {weights}, or state.json beside it, has changed since it was saved.", remedy
            )
        return load_file(weights), json.loads(text)
    except (OSError, SafetensorError) as error:
        raise UserError(f"Checkpoint file {weights} is damaged ({_short(error)}).", remedy) from None


def _sync(folder: Path) -> None:
    """Force the list of a folder's files to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path, text: str) -> str:
    """The SHA-256 of a file and a text together."""
    digest = hashlib.sha256(text.encode())
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
