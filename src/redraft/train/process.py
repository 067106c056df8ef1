"""The settings of the process during a run: threads, random numbers, and the type of matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from redraft import runtime
from redraft.train.tables import TrainTable


@contextmanager
def process_settings(table: TrainTable, where: torch.device) -> Iterator[None]:
    """The process settings of a run: threads, precision, torch's generator (for dropout). The caller's are restored.

    A run that may compute in bfloat16 may also use TF32 (10 bits of mantissa) where it computes in float32 on CUDA.
    """
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(table.seed)
        if table.threads:
            torch.set_num_threads(table.threads)
        if where.type == "cuda" and table.dtype != "float32":
            torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.set_float32_matmul_precision(precision)


def use_bfloat16(dtype: str, where: torch.device) -> bool:
    """Compute in bfloat16? ``auto``: if it pays. A resumed run keeps its first answer."""
    return dtype == "bfloat16" or (dtype == "auto" and runtime.bfloat16_is_faster(where))
