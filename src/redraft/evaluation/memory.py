"""Peak memory of a piece of work."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from redraft.runtime import release_memory

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass
class PeakMemory:
    """Context manager: ``with PeakMemory(device) as memory: work()`` then ``memory.peak``, in bytes.

    On CUDA it is the peak of the allocator on that device. Elsewhere it is the peak resident memory of the process,
    which includes Python and torch; ``before`` is the memory at the start. Linux can reset that peak; on systems that
    can't, ``peak`` is the peak since the process started and ``exact`` is False.
    """

    device: torch.device
    peak: int = 0
    before: int = 0
    exact: bool = True

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return self
        release_memory()  # memory that earlier work has freed must not count
        try:
            _RESET.write_text("5")  # Linux: reset the peak resident size to the current size
        except OSError:
            self.exact = False
        self.before = resident()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self.peak = peak_resident()


def resident() -> int:
    """Resident bytes of this process now; their peak where the system doesn't report the current number, else 0."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Peak resident bytes of this process; 0 on systems that don't report it (Windows)."""
    return _status("VmHWM")


def _status(key: str) -> int:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
