"""Devices, memory, keyed random numbers, and sampling from them by inverse CDF or by the Gumbel-max trick."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from torch import Tensor

from redraft.errors import UserError, suggest
from redraft.settings import Dtype

if TYPE_CHECKING:
    from redraft.types import Sampling


def device(name: str | None = None) -> torch.device:
    """The named device; without a name, CUDA if available, else MPS, else CPU.

    On CUDA it turns off the attention kernels of cuDNN for this process: they build a plan for every new shape, which
    takes tens of milliseconds, and every step of autoregressive decoding is a new shape.

    Raises:
        UserError: this machine does not have the named device.
    """
    if name is None or name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Device '{name}' can't be used: {str(error).splitlines()[0]}.", "Try --device cpu.") from None
    if chosen.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    return chosen


def weight_type(dtype: str | torch.dtype | None, where: torch.device) -> torch.dtype:
    """The type of weights on a device: ``dtype``, a type of torch or one of ``settings.Dtype`` (None: auto).

    Raises:
        UserError: another name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None or dtype == "auto":
        return torch.float32 if where.type == "cpu" else torch.bfloat16
    if dtype not in get_args(Dtype):
        raise UserError(f"Unknown type of weights '{dtype}'.", suggest(dtype, get_args(Dtype)))
    found: torch.dtype = getattr(torch, dtype)
    return found


def synchronise(where: torch.device) -> None:
    """Wait until a device has finished its queued work."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    elif where.type == "mps":
        torch.mps.synchronize()


def upload(tensor: Tensor, where: torch.device) -> Tensor:
    """A tensor [...] on the device ``where``, without waiting for the copy, which goes through pinned memory on CUDA.

    float64 becomes float32 on a device that has no float64.
    """
    if tensor.device.type == where.type:
        return tensor
    if tensor.dtype == torch.float64 and not has_float64(where):
        tensor = tensor.float()
    if where.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(where, non_blocking=True)
    return tensor.to(where)


def download(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors [...] on the host. The host waits for the device once, not once for each of them."""
    cuda = {tensor.device for tensor in tensors if tensor.device.type == "cuda"}
    if not cuda:
        return tuple(tensor.cpu() for tensor in tensors)
    copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)
    for where in cuda:
        torch.cuda.current_stream(where).synchronize()
    return copies


def has_float64(where: torch.device) -> bool:
    """Whether a device has numbers of 64 bits. Apple's doesn't."""
    return where.type != "mps"


def widest(where: torch.device) -> torch.dtype:
    """The most exact floating-point type of a device."""
    return torch.float64 if has_float64(where) else torch.float32


def row_chunks(x: Tensor) -> Iterator[slice]:
    """Consecutive parts of the rows of ``x`` [N, V], each small beside the device's memory."""
    rows, width = x.shape
    size = max(1, _CHUNK_NUMBERS.get(x.device.type, _CHUNK_NUMBERS["cuda"]) // max(1, width))
    for begin in range(0, rows, size):
        yield slice(begin, min(begin + size, rows))


_CHUNK_NUMBERS = {"cpu": 1 << 22, "cuda": 1 << 27}  # numbers of a chunk; in float64 32 MB and 1 GB


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
    z = noise_keys(seed, noise_step, positions).numpy().view(np.uint64)
    return torch.from_numpy(((z >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)


def noise_keys(seed: Tensor, noise_step: Tensor, positions: Tensor) -> Tensor:
    """The hash of 64 bits behind ``keyed_uniform``, of the same arguments -> [R, W] int64 on the host."""
    with np.errstate(over="ignore"):
        key = seed.cpu().numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        key = _mix(key + noise_step.cpu().numpy().astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))
        z = _mix(
            key[:, None] + (positions.cpu().numpy().astype(np.uint64) + np.uint64(1)) * np.uint64(0x8CB92BA72F3D8DD7)
        )
    return torch.from_numpy(z.view(np.int64))


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def inverse_cdf(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """The first token whose cumulative probability exceeds ``uniform``, after temperature and truncation.

    The cumulative sum is in float64, because float32 would lose the tail of a large vocabulary. It is computed for some
    rows at a time, so that [N, V] numbers of 64 bits never exist at once. A device without float64 leaves it to the
    host, so that the tokens are the same on every device.

    Args:
        logits: [N, V]. uniform: [N], on the host. sampling: the settings of the N rows, with temperatures above 0, on
            the host.
    Returns:
        [N] tokens on the device of the logits.
    """
    return _drawn(_inverse_cdf, logits, uniform, sampling)


def _drawn(
    draw: Callable[[Tensor, Tensor, Sampling], Tensor], logits: Tensor, numbers: Tensor, sampling: Sampling
) -> Tensor:
    """Tokens [N] that ``draw`` chooses from logits [N, V] by numbers [N], some rows at a time, and on the host if the
    device has no 64-bit numbers."""
    where = logits.device
    if not has_float64(where):
        return _drawn(draw, logits.cpu(), numbers, sampling).to(where)
    found = [draw(logits[part], numbers[part], sampling.at(part)) for part in row_chunks(logits)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=where)


def _inverse_cdf(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    where = logits.device
    mass = _tempered(logits, sampling).softmax(-1).double().cumsum(-1)
    token = torch.searchsorted(mass, (upload(uniform, where).double() * mass[:, -1])[:, None], right=True)[:, 0]
    return token.clamp(max=logits.shape[1] - 1)


def _tempered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits [N, V] after temperature and truncation, at most 0, -inf where nothing is sampled."""
    scaled, temperature = logits.float(), upload(sampling.temperature, logits.device)[:, None].float()
    scaled = (scaled - scaled.amax(1, keepdim=True)) / temperature  # no overflow near temperature 0
    return sampling.truncate(scaled)


GUMBEL_TOKENS = 256  # tokens of a distribution that have a Gumbel number of their own


def gumbel_max(logits: Tensor, keys: Tensor, sampling: Sampling) -> Tensor:
    """argmax_i log p_i + g_i with Gumbel numbers g_i keyed by ``keys`` and the token, after temperature and truncation.

    The token has the distribution p. Two distributions p and q that are sampled with the same keys agree with
    probability sum_i 1 / sum_j max(p_j / p_i, q_j / q_i), whatever the order of the vocabulary. With inverse CDF it
    depends on the order. (Gumbel 1954; coupling for speculative decoding: Daliri et al. 2024, arXiv:2408.07978.)

    Only the ``GUMBEL_TOKENS`` likeliest tokens have numbers of their own. The others share one, because the maximum of
    log p_i + g_i over them is Gumbel around the logarithm of their total probability; where they win, inverse CDF
    chooses among them. The distribution is exact. A device without 64-bit numbers leaves it to the host.

    Args:
        logits: [N, V]. keys: [N] int64, of ``noise_keys``, on the host. sampling: as in ``inverse_cdf``.
    Returns:
        [N] tokens on the device of the logits.
    """
    return _drawn(_gumbel_max, logits, keys, sampling)


def _gumbel_max(logits: Tensor, keys: Tensor, sampling: Sampling) -> Tensor:
    where = logits.device
    key = upload(keys, where)[:, None]
    scaled = _tempered(logits, sampling)
    value, ids = scaled.topk(min(GUMBEL_TOKENS, scaled.shape[1]), 1)
    score, best = (value.double() + _gumbel(key, ids)).max(1)
    token = ids.gather(1, best[:, None])[:, 0]
    if value.shape[1] == scaled.shape[1]:
        return token
    tail = scaled.scatter(1, ids, -torch.inf)
    none = torch.full_like(ids[:, :1], -1)
    tail_wins = tail.logsumexp(1).double() + _gumbel(key, none)[:, 0] > score
    if where.type == "cpu" and not bool(tail_wins.any()):
        return token
    uniform = _hashed_uniform(key, none - 1)[:, 0]
    mass = (tail - tail.amax(1, keepdim=True)).double().exp().nan_to_num(0.0).cumsum(1)
    other = torch.searchsorted(mass, (uniform * mass[:, -1])[:, None], right=True)[:, 0]
    return torch.where(tail_wins, other.clamp(max=logits.shape[1] - 1), token)


def _gumbel(key: Tensor, ids: Tensor) -> Tensor:
    """Gumbel numbers of ``ids`` [N, K] under ``key`` [N, 1] -> [N, K] float64."""
    return -(-_hashed_uniform(key, ids).log()).log()


def _hashed_uniform(key: Tensor, ids: Tensor) -> Tensor:
    """As ``keyed_uniform``, on the device: keys [N, 1] and ids [N, K] of at least -2 -> [N, K] float64."""
    z = key + (ids + 3) * (0xA0761D6478BD642F - (1 << 64))  # int64 arithmetic wraps
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ _shifted(z, shift)) * (factor - (1 << 64))
    z = z ^ _shifted(z, 31)
    return (_shifted(z, 12).double() + 0.5) * 2.0**-52


def _shifted(z: Tensor, bits: int) -> Tensor:
    """The logical shift of int64 numbers [...] to the right; torch's is arithmetic."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def peak_matmul(where: torch.device, dtype: torch.dtype = torch.float32, size: int = 0, seconds: float = 0.4) -> float:
    """Highest measured speed of a large square matrix product, in FLOP/s; the reference of 'share of peak'.

    An accelerator gets larger matrices and several products in a row: one of 1536^3 is over in microseconds, so that
    waiting for it would be most of what is measured.

    Args:
        size: rows and columns; 0: 1536 on a CPU, 8192 on an accelerator.
    """
    import time

    on_cpu = where.type == "cpu"
    size, at_once = size or (1536 if on_cpu else 8192), 1 if on_cpu else 8
    a = torch.randn(size, size, device=where, dtype=dtype)
    a @ a
    synchronise(where)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        for _ in range(at_once):
            a @ a
        synchronise(where)
        best = max(best, at_once * 2.0 * size**3 / (time.perf_counter() - begin))
    return best


def copy_bandwidth(where: torch.device, megabytes: int = 256) -> float:
    """Measured memory bandwidth of a large copy in bytes per second, reads and writes together."""
    import time

    source = torch.zeros(megabytes * 250_000, device=where)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(6):
        synchronise(where)
        begin = time.perf_counter()
        target.copy_(source)
        synchronise(where)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - begin))
    return best


def installed_memory(where: torch.device) -> int:
    """Memory of a device in bytes; 0 where the system doesn't tell (Windows)."""
    import os

    if where.type == "cuda":
        return int(torch.cuda.get_device_properties(where).total_memory)
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def bfloat16_is_faster(where: torch.device) -> bool:
    """Whether matrix products in bfloat16 are about twice as fast as in float32 on this device, or more.

    They are on accelerators, and on CPUs with instructions for them (AVX512-BF16: 4.6 times on AMD Zen 5; AMX: 3.3 to
    5 times on an Intel Xeon). There nothing is measured, because the unit of AMX is shared: beside another process that
    uses it, the same core reached 1.8 times, so that a plan and the run after it had different answers.

    On other CPUs both types are measured once, in turns, because other processes may take a core away for a while (0.5
    times on servers without such instructions).
    """
    if where.type != "cpu" or _has_bfloat16_products():
        return True
    best = {torch.bfloat16: 0.0, torch.float32: 0.0}
    for _ in range(4):
        for dtype in best:
            best[dtype] = max(best[dtype], peak_matmul(where, dtype, 512, 0.0125))
    return best[torch.bfloat16] > 2.0 * best[torch.float32]


def _has_bfloat16_products() -> bool:
    """Does torch find instructions for products in bfloat16 in an x86 CPU? False where it can't be asked."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asked if ask is not None)
