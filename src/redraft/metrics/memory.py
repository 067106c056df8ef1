"""Peak memory of a piece of work."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from redraft.runtime import release

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass
class Memory:
    """Context manager: ``with Memory(device) as memory: work()`` then ``memory.peak``, in bytes.

    On CUDA the allocator's peak on that device. Elsewhere the peak resident memory of the process, which includes
    Python and torch themselves; ``before`` says how much there was at the start. Linux can start that peak anew; where
    the system can't, ``peak`` is the peak since the process began and ``exact`` is False.
    """

    device: torch.device
    peak: int = 0
    before: int = 0
    exact: bool = True

    def __enter__(self) -> Memory:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return self
        release()  # what earlier work has freed is no part of this one's peak
        try:
            _RESET.write_text("5")  # Linux: set the peak resident size back to the current one
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
    """Resident bytes of this process now; its peak where the system doesn't say."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Peak resident bytes of this process."""
    return _status("VmHWM")


def _status(key: str) -> int:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
