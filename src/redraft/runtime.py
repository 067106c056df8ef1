"""Device, threads, keyed noise and drawing, as explicit calls. Nothing here runs at import and nothing is a global."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch import Tensor

from redraft.errors import UserError


def device(name: str | None = None) -> torch.device:
    """The device to use: the one named, else CUDA if there is one, else CPU.

    Raises:
        UserError: the named device does not exist on this machine.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' can't be used: {str(error).splitlines()[0]}.", "Try --device cpu.") from None
    return chosen


def synchronise(where: torch.device) -> None:
    """Wait for a device's queued work, so that a clock means something."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def release() -> None:
    """Give memory that is free again back to the system. Where batches differ in shape, an allocator keeps much of it.

    For glibc; elsewhere this does nothing.
    """
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Within it, what the process frees stays with it (of glibc; elsewhere nothing changes). See ``release``.

    An update of a training on a CPU frees tens of megabytes and asks for as many again. Large blocks would go back to
    the system every time, which must clear their pages before they return: up to a fifth of the update.
    """
    import ctypes

    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        yield
        return
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
    try:
        yield
    finally:  # where glibc's own rule ends up, which a first call switches off
        mallopt(mmap_max, 1 << 16)
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 64 << 20)
        release()


def keyed_uniform(seed: Tensor, stamp: Tensor, pos: Tensor) -> Tensor:
    """Uniform numbers in (0, 1) that depend on (seed, stamp, position) and on nothing else.

    A text drawn from these does not depend on its neighbours in a batch. The hash is SplitMix64's finaliser
    (Steele et al. 2014, doi:10.1145/2660193.2660195) over the combined key; 52 bits and a half, so never 0 or 1.

    Args:
        seed: [R] int64. stamp: [R] int64, which draw of the row. pos: [R, W] int64.
    Returns:
        [R, W] float64 on the host.
    """
    with np.errstate(over="ignore"):
        key = seed.cpu().numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        key = _mix(key + stamp.cpu().numpy().astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))
        z = _mix(key[:, None] + (pos.cpu().numpy().astype(np.uint64) + np.uint64(1)) * np.uint64(0x8CB92BA72F3D8DD7))
    return torch.from_numpy(((z >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def inverse_cdf(logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Smallest token whose cumulative probability exceeds the uniform, after temperature, top-k and top-p.

    The cumulative sum is in float64: in float32 the tail of a large vocabulary is lost.

    Args:
        logits: [N, V]. uniform, temperature, top_k (0: off), top_p (1: off): [N].
    Returns:
        [N] tokens.
    """
    scaled = logits.float()
    scaled = (scaled - scaled.amax(1, keepdim=True)) / temperature[:, None].float()  # no overflow near temperature 0
    if bool((top_k > 0).any()) or bool((top_p < 1).any()):
        scaled = truncate(scaled, top_k, top_p)
    mass = scaled.softmax(-1).double().cumsum(-1)
    drawn = torch.searchsorted(mass, (uniform.double() * mass[:, -1])[:, None], right=True)[:, 0]
    return drawn.clamp(max=logits.shape[1] - 1)


def truncate(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """-inf for the tokens of ``logits`` [N, V] that top-k (0: off) and top-p (1: off), [N] each, leave out."""
    value, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    p = value.softmax(-1)
    # A token is kept while the mass before it is below top_p; the first always is.
    drop = (p.cumsum(-1) - p >= top_p[:, None]) & (rank > 0)
    drop |= (top_k[:, None] > 0) & (rank >= top_k[:, None])
    return logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)


def peak_matmul(
    where: torch.device, dtype: torch.dtype = torch.float32, size: int = 1536, seconds: float = 0.4
) -> float:
    """Measured peak of a large square matrix product, in FLOP/s: the yardstick for 'share of peak'."""
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


def bfloat16_pays(where: torch.device) -> bool:
    """Are matrix products in bfloat16 at least twice as fast as in float32 here? Measured, because no name tells.

    Seen so far: 4.6 times on AMD Zen 5 (AVX512-BF16), 0.5 times on servers without such instructions; always on CUDA.
    """
    if where.type == "cuda":
        return True
    seconds = 0.05
    return peak_matmul(where, torch.bfloat16, 512, seconds) > 2.0 * peak_matmul(where, torch.float32, 512, seconds)
