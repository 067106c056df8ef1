"""Checkpoints of several processes: each writes its part, in the background, by ``torch.distributed.checkpoint``.

The files are those of ``checkpoint``. Import this module only where torch can connect processes.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from redraft.errors import UserError
from redraft.files import disk_error
from redraft.train import checkpoint
from redraft.train.ranks import Ranks


class AsyncSaver(checkpoint.Saver):
    """Saves checkpoints while training goes on: ``start`` copies the state to the host, and returns.

    A checkpoint counts when rank 0 has seen the files of all ranks, and has renamed their folder.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        super().__init__(folder)
        self._ranks = ranks
        self._group = dist.new_group(backend="gloo")  # of its own, because it talks while training does
        self._saving: tuple[Path, Future[Any]] | None = None

    def start(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """As in ``Saver``: tensors [...] by name. What training changes afterwards is not in the checkpoint."""
        assert self._saving is None
        final = checkpoint.place_of(self._folder, step)
        new = final.with_name(f".{final.name}")

        def prepare() -> None:
            checkpoint.remove_leftovers(self._folder)
            try:
                new.mkdir()
            except OSError as error:
                raise disk_error(error, new) from None

        self._ranks.once(prepare)
        writer = _Writer(new, lambda: _commit(new, final, values))
        future = dcp.async_save(dict(tensors), storage_writer=writer, process_group=self._group)
        assert isinstance(future, Future)
        self._saving = final, future

    def finished(self, wait: bool = False) -> Path | None:
        """The checkpoint that has been saved since the last call; None if none has.

        Args:
            wait: until it has been saved.
        Raises:
            UserError: a disk is full, or can't be written; existing checkpoints are untouched.
        """
        if self._saving is None or not (wait or self._saving[1].done()):
            return None
        (final, future), self._saving = self._saving, None
        try:
            future.result()
        except CheckpointException as error:
            failures = [wrong for wrong, _ in error.failures.values()]
            first = next((wrong for wrong in failures if isinstance(wrong, UserError | OSError)), None)
            if first is None:
                raise
            raise (disk_error(first, final) if isinstance(first, OSError) else first) from None
        return final


class _Writer(HuggingFaceStorageWriter):
    """Writes a safetensors file for each rank; ``commit`` follows on rank 0 when all of them are complete."""

    def __init__(self, folder: Path, commit: Callable[[], None]) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._commit = commit

    def finish(self, metadata: Any, results: Any) -> None:
        self._commit()


def _commit(new: Path, final: Path, values: Mapping[str, Any]) -> None:
    """Give a complete checkpoint its final name."""
    checkpoint.describe(new, values)
    for file in new.iterdir():
        with file.open("r+b") as handle:
            os.fsync(handle.fileno())
    if final.exists():  # of the same step, before a restart
        shutil.rmtree(final.rename(final.with_name(f".{final.name}-before")))
    new.rename(final)
    checkpoint.remove_old(final.parent)


def read(path: Path, sharded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a checkpoint of any number of processes on any number: the tensors [...] by name.

    Args:
        sharded: parameters of which this process holds a part. Of what belongs to them, it reads that part.
    """
    reader = HuggingFaceStorageReader(str(path))
    found: dict[str, Tensor] = {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        like, dtype = sharded.get(_parameter(key)), stored.properties.dtype
        if like is not None and like.shape == stored.size:
            found[key] = torch.empty_like(like.detach(), dtype=dtype)
        else:
            found[key] = torch.empty(stored.size, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it reads in one process: every rank reads for itself
        dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def _parameter(key: str) -> str:
    """The parameter to which a tensor of ``State.pack`` belongs: ``optimizer.a.weight.exp_avg`` -> ``a.weight``."""
    kind, _, name = key.partition(".")
    return name.rpartition(".")[0] if kind == "optimizer" else name
