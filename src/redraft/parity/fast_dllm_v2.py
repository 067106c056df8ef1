"""Parity of Fast-dLLM v2 (NVlabs/Fast-dLLM)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redraft.caches.base import CachePolicy
from redraft.caches.shared import narrowing
from redraft.caches.sub_block import SubBlock
from redraft.canvas import make_canvas
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.parity import blocks
from redraft.parity.outputs import generate
from redraft.parity.reference import Check, Reference, Suite
from redraft.registry import find
from redraft.samplers.sub_blocks import SubBlocks
from redraft.samplers.wrappers.blockwise import Blockwise
from redraft.types import FREE, GIVEN, Canvas, Request, Spec


def checks(reference: Reference) -> Iterator[Check]:
    """Logits with each attention, a training pass, the hierarchical cache and decoding."""
    model, values = reference.load(reference.values("generate", "mask_id")), reference.tensors("logits")
    yield from blocks.logits(reference, model, values, model.spec.network.attention)
    yield from _cached(reference, model, values)
    for case in reference.cases():
        yield from (_batch if case["passes"] is None else _case)(reference, model, case)


def _cached(reference: Reference, model: Model, values: Mapping[str, Tensor]) -> Iterator[Check]:
    """The second block after the first one, then two of its sub-blocks with the keys of the rest of the block kept."""
    ids, block, size = values["input_ids"], model.spec.network.attention.block, values["sub_block_ids"].shape[1]
    store = blocks.prefix_store(model, ids, block)
    found = blocks.cached(model, store, ids[:, block:], block, block)
    yield reference.close("logits, block with cached keys", found, values["block_logits"])
    for number, name in enumerate(("sub_block", "sub_block2"), 1):
        part = blocks.cached(model, store, values[f"{name}_ids"], block + number * size, 2 * block)
        yield reference.close("logits, sub-block with cached keys", part, values[f"{name}_logits"])


def _method(settings: Mapping[str, Any]) -> tuple[Blockwise, CachePolicy]:
    sampler = find("samplers", "sub_blocks")(settings["threshold"], settings["small_block_size"])
    return Blockwise(sampler), find("caches", "sub_block" if settings["use_block_cache"] else "exact")()


def _case(reference: Reference, model: Model, case: Mapping[str, Any]) -> Iterator[Check]:
    settings, [prompt], [expected], name = case["settings"], case["prompt_ids"], case["output_ids"], case["name"]
    block, stop = settings["block_size"], settings["stop_token"]
    # After the last block comes the first id of the next one. After a stop comes nothing, but the block goes on.
    made = len(prompt) // block * block + settings["max_new_tokens"] // block * block + 1 - len(prompt)
    network, (sampler, cache) = blocks.Traced(model.network), _method(settings)
    found = generate(network, model.spec, sampler, [prompt], made, cache, stop)
    yield reference.same(f"generate, {name}", [found.texts[0][: len(expected)]], [expected])
    # Whole blocks of a prompt have a pass of their own, unless its output is the first id of the next block.
    stores = [kind == "commit" and bool(len(prompt) % block) for kind, *_ in case["passes"][:1]]
    recorded = [
        (begin, joins, ids)
        for (_, begin, ids), joins in zip(case["passes"], [*stores, *[False] * len(case["passes"])], strict=False)
    ]
    passes = blocks.joined_passes(recorded)
    yield reference.same(f"ids in every pass of generate, {name}", [blocks.flat(network.passes)], [blocks.flat(passes)])
    passes_made = found.passes + sum(stores)
    yield reference.same(f"forward passes of generate, {name}", [[passes_made]], [[case["nfe"]]])


@dataclass(frozen=True)
class Together(SubBlocks):
    """Rows wait until all have finished a sub-block, as in ``batch_sample``."""

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        columns = torch.arange(canvas.status.shape[1])
        part = torch.where(canvas.status == FREE, columns // self.size, len(columns)).amin(1, keepdim=True)
        waiting = torch.where(part > part.min(), GIVEN, canvas.status).to(torch.int8)
        return super().plan(replace(canvas, status=waiting), state, spec)


@dataclass(frozen=True)
class Coupled(SubBlock):
    """Whole blocks run while any row's first position of the sub-block is a mask, as in ``batch_sample``."""

    def narrow(self, request: Request, stored: np.ndarray, shift: int, moved: np.ndarray | None = None) -> Request:
        begin, _ = narrowing.region(request)
        if (request.targets.numpy()[:, 0] > begin).all():
            return super().narrow(request, stored, shift)
        return narrowing.drop_prefix(request, narrowing.exact_prefix(request, stored, shift))


def _batch(reference: Reference, model: Model, case: Mapping[str, Any]) -> Iterator[Check]:
    """Rows of different lengths. Whole blocks of all prompts have a pass of their own, which redraft does not need."""
    settings, prompts, expected = case["settings"], case["prompt_ids"], case["output_ids"]
    width, network = len(expected[0]), blocks.Traced(model.network)
    sampler = Blockwise(Together(settings["threshold"], settings["small_block_size"]))
    rows = [[*prompt, *[None] * (width - len(prompt))] for prompt in prompts]
    spec = model.spec.with_tokens(eos_id=-1)
    canvas = make_canvas(rows, [len(prompt) for prompt in prompts], spec, seeds=list(range(len(rows))))
    cache = Coupled() if settings["use_block_cache"] else find("caches", "exact")()
    for _ in Loop({"main": network}, Method(sampler, cache), spec).run(canvas):
        pass
    yield reference.same(f"batch_sample, {case['name']}", canvas.ids.tolist(), expected)
    yield reference.same(
        f"forward passes of batch_sample, {case['name']}", [[len(network.passes) + 1]], [[case["nfe"]]]
    )


SUITE = Suite(checks)
