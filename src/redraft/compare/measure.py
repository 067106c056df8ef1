"""Measuring a model: what it writes, how long it takes, and on which machine."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from redraft import __version__, models, runtime
from redraft.metrics.memory import Memory
from redraft.metrics.speed import Speed
from redraft.model import Model


class Decoding(Protocol):
    """A way of decoding: ``compare.study.Setting``, ``tune.space.Trial``."""

    @property
    def id(self) -> str: ...
    def generation(self) -> dict[str, Any]: ...


FEWEST_CALLS = 3  # timed calls of a setting, however little time there is


def write_texts(model: Model, prompts: Sequence[str], setting: Decoding, new_tokens: int, batch: int) -> dict[str, Any]:
    """Answers to all prompts, with what it took to write them."""
    settings = model.settings(max_new_tokens=new_tokens, **setting.generation())
    texts, nfe, tokens, finished = [], [], [], 0
    work = dict.fromkeys(("passes", "queries", "pairs", "wanted", "encoded", "encoded_pairs"), 0)
    begin = time.perf_counter()
    with Memory(model.network.device) as memory:
        for first in range(0, len(prompts), batch):
            part = replace(settings, seed=settings.seed + first)
            drafting = model.draft(list(prompts[first : first + batch]), part)
            for _ in drafting:
                pass
            for generation in drafting.results():
                texts.append(generation.text)
                nfe.append(generation.nfe)
                tokens.append(len(generation.ids))
                finished += generation.finish == "stop"
            for name in work:
                work[name] += getattr(drafting.loop.counter, name)
    return {
        "texts": texts,
        "nfe": nfe,
        "tokens": tokens,
        "finished": finished,
        "work": work,
        "seconds": time.perf_counter() - begin,
        "peak_memory": memory.peak,
        "memory_before": memory.before,
        "peak_exact": memory.exact,
        "shape": models.describe(model.network),
    }


def race(
    runners: Sequence[tuple[Model, Decoding]],
    prompts: Sequence[str],
    batch: int,
    calls: int,
    new_tokens: int,
    until: float = float("inf"),
) -> list[dict[str, Any]]:
    """Seconds and completion tokens of every call of every setting. Call i is on the same requests for all of them.

    Args:
        until: time.monotonic() after which no further turn is begun, once there have been ``FEWEST_CALLS``.
    """
    speeds = [Speed(batch) for _ in runners]
    for turn in range(-1, calls):  # the first turn warms up and does not count
        if turn >= FEWEST_CALLS and time.monotonic() > until:
            break
        asked = [prompts[(max(turn, 0) * batch + i) % len(prompts)] for i in range(batch)]
        for (model, setting), speed in zip(runners, speeds, strict=True):
            settings = model.settings(max_new_tokens=new_tokens, **setting.generation())

            def call(model: Model = model, settings: Any = settings, asked: Sequence[str] = asked) -> int:
                drafting = model.draft(asked, settings)
                for _ in drafting:
                    pass
                return sum(len(generation.ids) for generation in drafting.results())

            target = Speed(batch) if turn < 0 else speed
            target.time(call, lambda model=model: runtime.synchronise(model.network.device))  # type: ignore[misc]
    return [
        {"id": setting.id, "seconds": speed.seconds, "tokens": speed.tokens}
        for (_, setting), speed in zip(runners, speeds, strict=True)
    ]


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "device": str(device),
        "gpu": gpu,
        "cpu": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "redraft": __version__,
        "matmul_gflops": runtime.peak_matmul(device) / 1e9,
    }
