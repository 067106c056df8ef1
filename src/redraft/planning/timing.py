"""The time of an update on this machine, measured: a few updates of a replica, as training makes them.

The roofline (``planning.step``) does not know how fast products of small shapes are, nor what attention, norms, the
optimizer's kernels and the host take here. A replica is a network of the run's shape with random weights, and where
that is quick, with all of its blocks and rows. Otherwise two replicas with few blocks are timed, and their times are
continued linearly. ``pace`` is the measured time over that of the roofline: the run's roofline, times the pace, is its
plan.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from threading import Barrier

import torch

from redraft import runtime
from redraft.evaluation.memory import available
from redraft.objectives.shared import vocabulary
from redraft.planning.machine import Machine
from redraft.planning.parallel import ALONE, Parallel
from redraft.planning.step import step
from redraft.planning.twin import Outline
from redraft.train import optim
from redraft.train.ema import Ema
from redraft.train.parallel import Weights

_QUICK = 2.0  # seconds of an update, by the roofline, up to which a replica is timed
_UPDATES = 3  # that are timed, after one that is not
_TOKENS = 1024  # of a batch: products of fewer are slower
_BLOCKS = 2, 8  # of the two replicas, where not all blocks are timed; what few blocks keep stays in a CPU's cache
_SPARE = 1 << 30  # bytes of a replica's activations and logits


def pace(run: Outline, machine: Machine, mode: str, device: torch.device, parallel: Parallel = ALONE) -> float:
    """How many times longer updates take on this machine than the roofline says.

    Processes of this machine that share its cores are timed at the same time, each in a thread with its share of them.
    1.0 if no replica fits into memory.

    Args:
        machine: this one, as it was measured.
        mode: activation checkpointing of the run.
        device: of this machine.
    """
    together = parallel.on_this_machine if device.type == "cpu" else 1
    found = _sizes(run, machine, mode, device, together)
    if not found:
        return 1.0
    times = [_seconds(each, mode, device, together) for each in found]
    planned = [step(each, machine, mode).compute for each in found]
    runtime.release_memory()
    if len(found) == 1:
        return times[0] / planned[0]
    depth = (run.shape.layers - _BLOCKS[0]) / (_BLOCKS[1] - _BLOCKS[0])
    whole, expected = (one + depth * max(three - one, 0.0) for one, three in (times, planned))
    return whole / expected


def _sizes(run: Outline, machine: Machine, mode: str, device: torch.device, together: int) -> Sequence[Outline]:
    """The runs that are timed: one with all blocks, or two with few. None if they don't fit."""
    layers, rows = run.shape.layers, max(1, round(run.recipe.train.batch_tokens / run.length))
    few = min(rows, max(1, -(-_TOKENS // run.length)))
    for size in (rows, few):
        whole = run.smaller(layers, size)
        if step(whole, machine, mode).compute <= _QUICK and _fits(whole, device, together):
            return (whole,)
    parts = [run.smaller(blocks, few) for blocks in _BLOCKS]
    if layers <= _BLOCKS[1]:
        parts = [run.smaller(layers, few)]
    return parts if _fits(parts[-1], device, together) else ()


def _fits(run: Outline, device: torch.device, together: int) -> bool:
    """Does a replica for each of the processes take at most half of what is available?"""
    room = available(device)
    size = 16 * run.trained + run.dtype.itemsize * run.frozen + _SPARE
    return room is None or 2 * together * size <= room


def _seconds(run: Outline, mode: str, device: torch.device, together: int) -> float:
    """Seconds of an update: the median of a few, and over the processes that compute together."""
    threads, barrier = torch.get_num_threads(), Barrier(together)
    share = run.recipe.train.threads or max(1, threads // together)
    try:
        with (
            runtime.keep_freed_memory() if device.type == "cpu" else nullcontext(),
            ThreadPoolExecutor(together) as pool,
        ):
            work = partial(_updates, run, mode, device, share, barrier)
            found = list(pool.map(lambda _: work(), range(together)))
    finally:
        torch.set_num_threads(threads)
    return statistics.median(seconds for each in found for seconds in each)


def _updates(run: Outline, mode: str, device: torch.device, threads: int, barrier: Barrier) -> list[float]:
    """Seconds of some updates of a replica, each begun by all threads of the barrier together."""
    torch.set_num_threads(threads)
    table, model = run.recipe.train, run.replica(mode)
    network, objective = model.network.to(device), model.family.phases()[-1].objective
    weights = Weights(network)
    optimizer = optim.build(table.optimizer, network, table.lr, table.betas, table.weight_decay)
    ema = Ema(network, table.ema) if table.ema else None
    rows, found = round(table.batch_tokens / run.length), list[float]()
    for number in range(1 + _UPDATES):
        barrier.wait()
        begin = time.perf_counter()
        prepared = run.prepared(model, rows, number)
        vocabulary.backward(network, objective, prepared.to(device), 1.0, run.bfloat16)
        weights.clip(table.clip)
        optim.step(optimizer, 0.0)
        if ema:
            ema.update()
        runtime.synchronise(device)
        found.append(time.perf_counter() - begin)
    return found[1:]
