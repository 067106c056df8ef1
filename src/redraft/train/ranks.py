"""The processes of a training run: which of them this is, what they exchange, and which of them writes.

torchrun starts the processes (``torchrun --nproc-per-node N -m redraft train ...``) and numbers them by rank. Every
rank runs the same loop on batches of its own. One process is the case in which nothing is exchanged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from redraft import runtime
from redraft.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of a run. All methods are collective: every rank calls them, in order.

    They exchange numbers between hosts, and never wait for a device.
    """

    rank: int = 0
    world: int = 1  # number of processes
    local_rank: int = 0  # among the processes of this machine ...
    local_world: int = 1  # ... of which there are so many

    @property
    def is_writer(self) -> bool:
        """Does this rank write files and report to the user? Rank 0 does."""
        return self.rank == 0

    def share(self, batches: int) -> int:
        """How many of the batches of an update this rank takes: the same number as every other.

        Raises:
            UserError: they can't be shared out evenly.
        """
        if batches % self.world:
            more = -(-batches // self.world) * self.world
            what = f"{self.world} processes can't share out the batches of an update evenly: there are {batches}."
            raise UserError(
                what,
                f"Set train.accumulate to a multiple of {self.world}, such as --set train.accumulate={more}. An update "
                f"stays as large if train.batch_tokens is {batches}/{more} of what it is.",
            )
        return batches // self.world

    def sum(self, numbers: Sequence[Number]) -> list[Number]:
        """Each number, summed over all ranks."""
        if self.world == 1:
            return list(numbers)
        import torch.distributed as dist

        whole = all(isinstance(number, int) for number in numbers)
        total = torch.tensor(numbers, dtype=torch.int64 if whole else torch.float64)
        dist.all_reduce(total)
        summed: list[Number] = total.tolist()
        return summed

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on some rank."""
        return [count > 0 for count in self.sum([int(flag) for flag in flags])]

    def same(self, value: T) -> T:
        """The value of rank 0: what depends on a clock or on rounding, and must not differ between ranks."""
        if self.world == 1:
            return value
        return self._from_writer(value)

    def once(self, function: Callable[[], T]) -> T:
        """The result of a function that only rank 0 calls.

        Raises:
            UserError: the function raised it; every rank does.
        """
        if self.world == 1:
            return function()
        result: tuple[Any, tuple[str, str] | None] = (None, None)
        if self.is_writer:
            try:
                result = (function(), None)
            except UserError as error:
                result = (None, (error.what, error.remedy))
        value, wrong = self._from_writer(result)
        if wrong is not None:
            raise UserError(*wrong)
        found: T = value
        return found

    def _from_writer(self, value: T) -> T:
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def check_equal(self, what: str, value: object) -> None:
        """Check that a value is equal on all ranks.

        Raises:
            UserError: it isn't; ``what`` names it.
        """
        expected = self.same(repr(value))
        if any(self.any(repr(value) != expected)):
            raise UserError(f"{what} differ between processes.", "Give every machine the same files and versions.")

    def device(self, name: str | None) -> torch.device:
        """The device of this rank: with several processes on a machine, each takes a GPU of its own.

        Raises:
            UserError: the machine does not have the device, or not one for each process.
        """
        where = runtime.device(name)
        if self.world == 1 or where.type == "cpu":
            return where
        if where.type != "cuda" or where.index is not None:
            what = f"{self.world} processes can't share the device '{where}'."
            raise UserError(what, "Use --device cuda, which gives each process its own, or --device cpu.")
        if self.local_world > (count := torch.cuda.device_count()):
            what = f"{self.local_world} processes need a GPU each, and this machine has {count}."
            raise UserError(what, f"Start {count} processes, or use --device cpu.")
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)


def launched() -> Ranks:
    """The ranks that torchrun (or another launcher that sets its variables) has started; one process without it."""
    if "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
        return Ranks()
    rank, world = int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_world = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    return Ranks(rank, world, local_rank, local_world or 1)


@contextmanager
def joined(device: str | None) -> Iterator[tuple[Ranks, torch.device]]:
    """The ranks of this run and the device of this one. The processes are connected while the context lasts.

    Raises:
        UserError: as ``Ranks.device``, or this torch can't connect processes.
    """
    ranks = launched()
    where = ranks.device(device)
    if ranks.world == 1:
        yield ranks, where
        return
    import torch.distributed as dist

    if not dist.is_available():
        raise UserError("This build of torch can't connect processes.", "Start one process, without torchrun.")
    if dist.is_initialized():  # by the caller
        yield ranks, where
        return
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store(), rank=ranks.rank, world_size=ranks.world)
    try:
        yield ranks, where
    finally:
        dist.destroy_process_group()


def _store() -> Store:
    """Where the processes find each other's addresses.

    torchrun keeps one store for all of its restarts, with the addresses of processes that have ended. On one machine,
    the keys of every restart therefore have a prefix. On several, only torchrun can have a store for each
    (docs/distributed.md), because machines count restarts differently.
    """
    import torch.distributed as dist

    store, _, _ = next(dist.rendezvous("env://"))
    count, machines = (os.environ.get(name, "") for name in ("TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE"))
    return dist.PrefixStore(f"start-{count}", store) if machines == "1" else store


def batch_seeds(seed: int, number: int) -> tuple[int, int]:
    """The seeds of a batch: of its noise, and of dropout.

    They depend on the recipe's seed and on the batch's number in the run, and so neither on the rank that takes it nor
    on the batches before it.
    """
    noise, dropout = np.random.SeedSequence([seed, number]).generate_state(2, np.uint64) >> np.uint64(1)
    return int(noise), int(dropout)
