"""Devices, memory, keyed random numbers and sampling by inverse CDF."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from redraft.errors import UserError

if TYPE_CHECKING:
    from redraft.types import Sampling


def device(name: str | None = None) -> torch.device:
    """The named device; without a name, CUDA if available, else CPU.

    Raises:
        UserError: this machine does not have the named device.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Device '{name}' can't be used: {str(error).splitlines()[0]}.", "Try --device cpu.") from None
    return chosen


def synchronise(where: torch.device) -> None:
    """Wait until a device has finished its queued work, for measurements of time."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def release_memory() -> None:
    """Return freed memory to the system. The allocator keeps much of it when batches differ in shape.

    It works with glibc; with other C libraries it does nothing.
    """
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Context in which the process keeps the memory that it frees (glibc only). See ``release_memory``.

    A training update on a CPU frees and allocates tens of megabytes. Without this, large blocks are returned to the
    system and cleared at every update, which takes up to a fifth of its time.
    """
    import ctypes

    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # constants of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        yield
        return
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
    try:
        yield
    finally:  # the first call to mallopt disables glibc's dynamic thresholds; these are their largest values
        mallopt(mmap_max, 1 << 16)
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 64 << 20)
        release_memory()


def keyed_uniform(seed: Tensor, noise_step: Tensor, positions: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) that depend only on (seed, noise step, position).

    A sequence sampled with these does not depend on the other rows of its batch. The hash is SplitMix64's finaliser
    (Steele et al. 2014, doi:10.1145/2660193.2660195) of the combined key. A number is (k + 1/2) / 2^52 with k of 52
    bits, so it is never 0 or 1.

    Args:
        seed: [R] int64. noise_step: [R] int64, see ``NoiseStream``. positions: [R, W] int64.
    Returns:
        [R, W] float64 on the host.
    """
    with np.errstate(over="ignore"):
        key = seed.cpu().numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        key = _mix(key + noise_step.cpu().numpy().astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))
        z = _mix(
            key[:, None] + (positions.cpu().numpy().astype(np.uint64) + np.uint64(1)) * np.uint64(0x8CB92BA72F3D8DD7)
        )
    return torch.from_numpy(((z >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def inverse_cdf(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """The first token whose cumulative probability exceeds ``uniform``, after temperature and truncation.

    The cumulative sum is in float64, because float32 would lose the tail of a large vocabulary.

    Args:
        logits: [N, V]. uniform: [N]. sampling: the settings of the N rows, with temperatures above 0.
    Returns:
        [N] tokens.
    """
    scaled, temperature = logits.float(), sampling.temperature[:, None].float()
    scaled = (scaled - scaled.amax(1, keepdim=True)) / temperature  # no overflow near temperature 0
    mass = sampling.truncate(scaled).softmax(-1).double().cumsum(-1)
    token = torch.searchsorted(mass, (uniform.double() * mass[:, -1])[:, None], right=True)[:, 0]
    return token.clamp(max=logits.shape[1] - 1)


def peak_matmul(
    where: torch.device, dtype: torch.dtype = torch.float32, size: int = 1536, seconds: float = 0.4
) -> float:
    """Highest measured speed of a large square matrix product, in FLOP/s; the reference of 'share of peak'."""
    import time

    a = torch.randn(size, size, device=where, dtype=dtype)
    a @ a
    synchronise(where)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        a @ a
        synchronise(where)
        best = max(best, 2.0 * size**3 / (time.perf_counter() - begin))
    return best


def bfloat16_is_faster(where: torch.device) -> bool:
    """Whether matrix products in bfloat16 are at least twice as fast as in float32 on this device, by measurement.

    Measured so far: 4.6 times on AMD Zen 5 (AVX512-BF16), 0.5 times on servers without such instructions. On CUDA the
    answer is always yes.
    """
    if where.type == "cuda":
        return True
    seconds = 0.05
    return peak_matmul(where, torch.bfloat16, 512, seconds) > 2.0 * peak_matmul(where, torch.float32, 512, seconds)
