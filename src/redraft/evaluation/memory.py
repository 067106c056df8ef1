"""Memory: the peak of a piece of work, the bytes of live tensors, and what the machine has left."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redraft.host_memory import left, peak_resident, resident
from redraft.models.parts.packed import packed_in
from redraft.runtime import release_memory

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


class LiveBytes(TorchDispatchMode):
    """Context manager that sums the bytes of tensors made inside it and still alive: ``now``, and their ``peak``.

    The weights of ``network`` are not counted. It counts what tensors hold, not what an allocator keeps.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        known = [*network.parameters(), *network.buffers()]
        known += [part for matrix in packed_in(network) for part in vars(matrix).values() if isinstance(part, Tensor)]
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def available(device: torch.device) -> int | None:
    """Bytes that a program can still take on a device; None: the system doesn't say. Limits of containers count."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    unused = left()
    return None if unused is None else unused + resident()  # what this process holds is also its to use
