"""Machines: the speeds, memory and links by which times are planned. Some have names; this one is measured."""

from __future__ import annotations

import gc
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from redraft import runtime
from redraft.errors import UserError, suggest
from redraft.evaluation.memory import available
from redraft.host_memory import resident

_RUNTIME = 98 << 20  # bytes that libraries, threads and what the first step of an optimizer imports (70 MB) take
_FRESH = 340 << 20  # bytes of a process that has imported what training imports, and planned
_CONTEXT = 1e9  # bytes of an accelerator's driver and context, which no program can use


@dataclass(frozen=True)
class Machine:
    """One device. Speeds are those of data sheets (dense, without sparsity) or measured ones."""

    name: str
    float32: float  # FLOP/s of matrix products in float32 (TF32 on accelerators)
    bfloat16: float  # FLOP/s of matrix products in bfloat16
    bandwidth: float  # bytes/s of the memory, reads and writes together
    memory: float  # bytes that a program can use
    link: float  # bytes/s that a device sends to the others, while it receives as many
    accelerator: bool = True
    reached: float = 0.6  # share of the products' speed that training reaches in them
    streamed: float = 0.8  # share of the bandwidth that operators on long vectors reach
    launch: float = 6e-6  # seconds of the host for each operator
    measured: bool = False  # its speeds are those of this machine, and not a data sheet's or given ones

    @property
    def prefers_bfloat16(self) -> bool:
        """Does training compute in bfloat16 by itself, because it is about twice as fast or more?"""
        if self.measured and not self.accelerator:  # as the run on it will decide
            return runtime.bfloat16_is_faster(torch.device("cpu"))
        return self.accelerator or self.bfloat16 > 2 * self.float32

    @property
    def overlaps(self) -> bool:
        """Do devices send while they compute? Processes on CPUs use the same cores for both."""
        return self.accelerator

    def flops(self, bfloat16: bool) -> float:
        """FLOP/s of matrix products."""
        return self.bfloat16 if bfloat16 else self.float32

    def ridge(self, bfloat16: bool = True) -> float:
        """FLOP for each byte at which a pass takes as long to compute as to read (Williams et al. 2009)."""
        return self.flops(bfloat16) / self.bandwidth


def _accelerator(
    name: str, float32: float, bfloat16: float, bandwidth: float, memory: float, link: float
) -> tuple[str, Machine]:
    """One of the known machines, from TFLOP/s, GB/s and GB."""
    return name, Machine(name, 1e12 * float32, 1e12 * bfloat16, 1e9 * bandwidth, 1e9 * memory - _CONTEXT, 1e9 * link)


# name, TFLOP/s in TF32 and bfloat16, GB/s of memory, GB, GB/s of the link in one direction (NVLink, or PCIe)
MACHINES = dict(
    [
        _accelerator("rtx3090", 35.6, 71, 936, 24, 32),
        _accelerator("rtx4090", 82.6, 165.2, 1008, 24, 32),
        _accelerator("l40s", 183, 362, 864, 48, 32),
        _accelerator("a100-40gb", 156, 312, 1555, 40, 300),
        _accelerator("a100", 156, 312, 2039, 80, 300),
        _accelerator("h100", 494, 989, 3350, 80, 450),
        _accelerator("h200", 494, 989, 4800, 141, 450),
        _accelerator("b200", 1125, 2250, 8000, 180, 900),
        _accelerator("mi300x", 653, 1307, 5300, 192, 448),
    ]
)


def find(name: str, device: torch.device | None = None, **given: float | None) -> Machine:
    """A machine: a known one, or ``this`` for a device of this machine, which is measured in about two seconds.

    Args:
        given: fields that replace its own; None: not given.
    Raises:
        UserError: there is no such machine, or a number is not above 0.
    """
    changes = {field: value for field, value in given.items() if value is not None}
    for field, value in changes.items():
        if not value > 0:
            raise UserError(f"The machine's {field} = {value:g} must be above 0.", "Give a positive number.")
    if name != "this" and name not in MACHINES:
        known = f"Known: this, {', '.join(MACHINES)}."
        raise UserError(f"Unknown machine '{name}'.", suggest(name, ("this", *MACHINES)) or known)
    found = MACHINES[name] if name in MACHINES else measured(device or torch.device("cpu"))
    given_speeds = changes.keys() & {"float32", "bfloat16", "bandwidth"}
    return replace(found, measured=found.measured and not given_speeds, **changes)  # type: ignore[arg-type]


def measured(device: torch.device) -> Machine:
    """A device of this machine, by short measurements of matrix products, copies and operators.

    What limits training on a CPU is measured, and nothing has to be assumed. The link of processes on a CPU is that of
    a connection on this machine; that of accelerators is assumed to be a quarter of their memory's bandwidth.
    """
    on_cpu = device.type == "cpu"
    width = runtime.copy_bandwidth(device)
    return Machine(
        name=str(device),
        float32=runtime.peak_matmul(device, torch.float32),
        bfloat16=runtime.peak_matmul(device, torch.bfloat16),
        bandwidth=width,
        memory=float(available(device) or runtime.installed_memory(device)),
        link=loopback() if on_cpu else width / 4,
        accelerator=not on_cpu,
        reached=1.0 if on_cpu else 0.6,
        streamed=1.0 if on_cpu else 0.8,
        measured=True,
    )


def loopback(size: int = 32 << 20) -> float:
    """Bytes per second between two processes of this machine over TCP, each of which sends and receives ``size``."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as one:
        other, _ = server.accept()
        with other, ThreadPoolExecutor(3) as pool:
            begin = time.perf_counter()
            sending = [pool.submit(end.sendall, bytes(size)) for end in (one, other)]
            receiving = pool.submit(_receive, other, size)
            _receive(one, size)
            for each in (*sending, receiving):
                each.result()
            return size / (time.perf_counter() - begin)


def _receive(end: socket.socket, size: int) -> None:
    part = memoryview(bytearray(1 << 20))
    while size:
        size -= end.recv_into(part, min(len(part), size))


def process_bytes(fresh: bool = False) -> int:
    """Bytes of Python and its libraries in a process that computes on a CPU, with what it holds now.

    Memory that was freed but not returned to the system can be used again, so it is returned and not counted.

    Args:
        fresh: of a new process instead.
    """
    if fresh:
        return _FRESH + _RUNTIME
    gc.collect()  # cycles hold the tensors of earlier runs
    runtime.release_memory()
    return resident() + _RUNTIME
