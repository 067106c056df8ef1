"""Training checkpoints that survive a kill at any moment: safetensors and JSON, no pickles.

A checkpoint is a folder ``checkpoint-<step>`` with ``state.json`` and safetensors files: one process writes
``state.safetensors``, several write a file each (``sharded_checkpoint``). It is written under a temporary name, forced
to disk and renamed, so a folder with the final name is always complete. The last two are kept. Any number of processes
reads what any other number has written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from redraft.errors import UserError
from redraft.files import atomic_folder, remove

_KEEP = 2


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is as it was when it was saved."""

    path: Path
    values: dict[str, Any]

    @property
    def files(self) -> list[Path]:
        """Its safetensors files: one, or one of each process that wrote it."""
        return _weights(self.path)

    def tensors(self) -> dict[str, Tensor]:
        """Read the tensors [...] of a checkpoint of one process.

        Raises:
            UserError: the file can't be read.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        (file,) = self.files
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"Checkpoint file {file} can't be read ({_short(error)}).", "Copy it again.") from None


class Saver:
    """Saves the checkpoints of one process. ``start`` returns when a checkpoint is complete."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: the folder of all checkpoints.
        """
        self._folder = folder
        self._saved: Path | None = None

    def start(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Begin to save tensors [...] by name and plain JSON values. The checkpoint before must be ``finished``."""
        self._saved = save(self._folder, step, tensors, values)

    def finished(self, wait: bool = False) -> Path | None:
        """The checkpoint that has been saved since the last call; None if none has.

        Args:
            wait: until it has been saved.
        """
        found, self._saved = self._saved, None
        return found


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
    """Write one checkpoint of one process atomically and delete all but the last two.

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

    final = place_of(folder, step)
    remove_leftovers(folder)
    with atomic_folder(final) as new:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, new / "state.safetensors")
        describe(new, values)
    remove_old(folder)
    return final


def place_of(folder: Path, step: int) -> Path:
    """The final folder of the checkpoint of a step."""
    return folder / f"checkpoint-{step:09d}"


def remove_leftovers(folder: Path) -> None:
    """Delete what a run left behind that was killed while saving."""
    for leftover in folder.glob(".checkpoint-*"):
        remove(leftover)


def describe(new: Path, values: Mapping[str, Any]) -> None:
    """Write ``state.json`` beside the complete safetensors files of a checkpoint: its values, and their SHA-256."""
    text = json.dumps(values)
    note = json.dumps({"sha256": _sha256(_weights(new), text), "values": text})
    (new / "state.json").write_text(note, encoding="utf-8")


def remove_old(folder: Path) -> None:
    """Force the list of checkpoints to the disk, and delete all but the last two."""
    _sync(folder)
    for old in checkpoints(folder)[:-_KEEP]:
        shutil.rmtree(old.rename(folder / f".{old.name}"))  # so that no incomplete folder has the final name


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("checkpoint-*") if p.is_dir())


def step_of(path: Path) -> int:
    """The step of a checkpoint folder."""
    return int(path.name.removeprefix("checkpoint-"))


def latest(folder: Path) -> Saved | None:
    """The newest checkpoint, checked against its recorded SHA-256, or None if there is none.

    Raises:
        UserError: it is corrupt or truncated; names the file and what to do.
    """
    found = checkpoints(folder)
    if not found:
        return None
    then = f"resume from {found[-2].name}" if len(found) > 1 else "start again"
    return _checked(found[-1], remedy=f"Delete the folder {found[-1]} to {then}.")


def _checked(path: Path, remedy: str) -> Saved:
    note = path / "state.json"
    try:
        head = json.loads(note.read_text(encoding="utf-8"))
        digest, text = head["sha256"], str(head["values"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"Checkpoint file {note} is damaged ({_short(error)}).", remedy) from None
    weights = _weights(path)
    named = weights[0] if len(weights) == 1 else path / "state.safetensors"
    try:
        if _sha256(weights, text) != digest:
            raise UserError(
                f"Checkpoint file {named}, or state.json beside it, has changed since it was saved.", remedy
            )
        return Saved(path, json.loads(text))
    except OSError as error:
        raise UserError(f"Checkpoint file {named} is damaged ({_short(error)}).", remedy) from None


def _weights(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint."""
    return sorted(path.glob("*.safetensors"))


def _sync(folder: Path) -> None:
    """Force the list of a folder's files to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(paths: Sequence[Path], text: str) -> str:
    """The SHA-256 of a text and files together."""
    digest = hashlib.sha256(text.encode())
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
