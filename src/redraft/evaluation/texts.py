"""Texts generated for a list of prompts, with the work, time and memory this took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from redraft import models
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.memory import PeakMemory
from redraft.generation.method import build_method
from redraft.generation.prompts import Prompt
from redraft.model import Model
from redraft.samplers.base import unwrapped
from redraft.settings import Settings


@dataclass(frozen=True)
class GenerationRun:
    """Texts for all prompts, and the work, time and memory this took."""

    texts: list[str]
    nfe: list[int]  # forward passes of each text
    tokens: list[int]  # new tokens of each text
    finished: int  # texts that ended with end-of-text
    work: dict[str, int]  # counts of the decode loop, see ``ForwardCost.of_counts``
    seconds: float
    peak_memory: int  # bytes, see ``PeakMemory``
    memory_before: int
    peak_exact: bool
    shape: dict[str, Any]  # of the network, as ``models.describe`` gives it


def generate_texts(
    model: Model, prompts: Sequence[Prompt], config: DecodingConfig, new_tokens: int, batch: int
) -> GenerationRun:
    """One text for each prompt, with the counts of the decode loop, and the seconds and bytes this took."""
    settings = model.settings(max_new_tokens=new_tokens, **config.generation())
    texts, nfe, tokens, finished = [], [], [], 0
    work = dict.fromkeys(("passes", "queries", "pairs", "targets", "encoded", "encoded_pairs"), 0)
    begin = time.perf_counter()
    with PeakMemory(model.network.device) as memory:
        for first in range(0, len(prompts), batch):
            part = replace(settings, seed=settings.seed + first)
            drafting = model.start(list(prompts[first : first + batch]), part)
            for _ in drafting:
                pass
            for generation in drafting.results():
                texts.append(generation.text)
                nfe.append(generation.nfe)
                tokens.append(len(generation.ids))
                finished += generation.finish == "stop"
            for name in work:
                work[name] += getattr(drafting.loop.counter, name)
    return GenerationRun(
        texts=texts,
        nfe=nfe,
        tokens=tokens,
        finished=finished,
        work=work,
        seconds=time.perf_counter() - begin,
        peak_memory=memory.peak,
        memory_before=memory.before,
        peak_exact=memory.exact,
        shape=models.describe(model.network),
    )


def sampler_of(model: Model, settings: Settings) -> tuple[str, dict[str, Any]]:
    """Name and options of the sampler that a model uses with these settings."""
    sampler = unwrapped(build_method(model, settings).sampler)
    return sampler.name, dict(vars(sampler))


def resolved(model: Model, settings: Settings) -> Settings:
    """The settings with the sampler that a model uses, its steps and all its options."""
    name, options = sampler_of(model, settings)
    steps = options.pop("steps", None)
    return replace(settings, sampler=name, steps=steps, options=options)
