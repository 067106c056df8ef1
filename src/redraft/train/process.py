"""The settings of the process during a run: threads, memory, random numbers, and the type of matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from redraft import runtime


@contextmanager
def process_settings(threads: int, seed: int, where: torch.device) -> Iterator[None]:
    """The process settings of a run: threads, memory, torch's generator (for dropout). The caller's are restored."""
    before = torch.get_num_threads()
    memory = runtime.keep_freed_memory() if where.type == "cpu" else nullcontext()
    with memory, torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        if threads:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def use_bfloat16(dtype: str, where: torch.device) -> bool:
    """Compute in bfloat16? ``auto``: if it pays. A resumed run keeps its first answer."""
    return dtype == "bfloat16" or (dtype == "auto" and runtime.bfloat16_is_faster(where))
