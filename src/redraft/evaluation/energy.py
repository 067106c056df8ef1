"""Energy of a piece of work, where the machine reports it: RAPL for processors, NVML for accelerators."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
_POLL = 10.0  # seconds between two readings; a counter of RAPL wraps after some minutes at the earliest


@dataclass(frozen=True)
class Energy:
    """Energy of everything that ran on the measured parts of the machine meanwhile, other processes included."""

    joules: float
    source: str  # such as ``rapl: package-0; nvml: gpu 0``
    joules_per_token: float | None


class Counter:
    """An energy counter that grows, and may wrap.

    Args:
        read: its value in units of ``joules``. wraps: the largest value, after which it begins at 0; 0: never.
    """

    def __init__(self, name: str, read: Callable[[], int], joules: float, wraps: int = 0) -> None:
        self.name, self._read, self._joules, self._wraps = name, read, joules, wraps
        self._last, self.total = read(), 0.0

    def update(self) -> None:
        """Add what was used since the last reading."""
        now = self._read()
        used = now - self._last
        if used < 0:
            used = used + self._wraps + 1 if self._wraps else 0
        self.total += used * self._joules
        self._last = now


class EnergyMeter:
    """Measures the energy used inside a ``with`` block.

    Args:
        device: where the work runs; an accelerator is measured beside the processor.
        powercap: the folder in which Linux reports RAPL domains.
    """

    def __init__(self, device: torch.device, powercap: Path = POWERCAP) -> None:
        self._device, self._powercap = device, powercap
        self._counters: list[Counter] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> EnergyMeter:
        self._counters = [*rapl(self._powercap), *nvml(self._device)]
        if self._counters:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._counters:
            self._thread.join()
        for counter in self._counters:
            counter.update()

    def _poll(self) -> None:
        while not self._done.wait(_POLL):
            for counter in self._counters:
                counter.update()

    def energy(self, tokens: int) -> Energy | None:
        """What was used; None if this machine doesn't report it.

        Args:
            tokens: that the work generated.
        """
        if not self._counters:
            return None
        joules = sum(counter.total for counter in self._counters)
        return Energy(joules, "; ".join(one.name for one in self._counters), joules / tokens if tokens else None)


def rapl(folder: Path = POWERCAP) -> list[Counter]:
    """The processor packages whose energy Linux reports to this user."""
    found = []
    for domain in sorted(folder.glob("*-rapl:*")):
        if domain.name.count(":") > 1:  # a part of a package
            continue
        with suppress(OSError, ValueError):
            file = domain / "energy_uj"
            name = f"rapl: {(domain / 'name').read_text().strip()}"
            most = int((domain / "max_energy_range_uj").read_text())
            found.append(Counter(name, lambda file=file: int(file.read_text()), 1e-6, most))  # type: ignore[misc]
    return found


def nvml(device: torch.device) -> list[Counter]:
    """The accelerator, if its driver reports its energy (NVIDIA, from Volta on)."""
    if device.type != "cuda":
        return []
    try:
        library: Any = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2():
            return []
        handle, number = ctypes.c_void_p(), device.index or 0
        uuid = f"GPU-{torch.cuda.get_device_properties(number).uuid}".encode()  # CUDA and NVML count differently
        if library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)):
            return []
    except (OSError, AttributeError):
        return []
    value = ctypes.c_ulonglong()

    def read() -> int:
        failed = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
        return 0 if failed else int(value.value)

    return [Counter(f"nvml: {device}", read, 1e-3)] if read() else []
