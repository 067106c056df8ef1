"""Parity of SDAR (JetAstra/SDAR)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redraft.model import Model
from redraft.parity import blocks
from redraft.parity.outputs import generate, hidden_states
from redraft.parity.reference import NOTHING, Check, Reference, Suite
from redraft.registry import find
from redraft.samplers.base import Sampler
from redraft.samplers.confidence import Confidence
from redraft.samplers.wrappers.blockwise import Blockwise
from redraft.types import AttentionPattern, Canvas, Request


@dataclass(frozen=True)
class Paced(Confidence):
    """SDAR's static rule: in each block of ``size`` positions, size / steps of them at each step (one more at first),
    whether or not the prompt fills some of the block."""

    size: int = 4

    def count(self, canvas: Canvas, request: Request) -> Tensor:
        """[R] number of positions to write at this step."""
        step = canvas.step[request.rows]
        return self.size // self.steps + (step < self.size % self.steps).long()


def checks(reference: Reference) -> Iterator[Check]:
    """Logits with each attention, a cached pass, a training pass and decoding."""
    model, values = reference.load(), reference.tensors("logits")
    yield from blocks.logits(reference, model, values, model.spec.network.attention)
    within = model.spec.network.attention
    yield reference.close("hidden states", hidden_states(model, values["input_ids"], within), values["hidden_states"])
    columns = torch.arange(values["input_ids"].shape[1])[None]
    group = within.group(columns, None)[0]
    mask = (group[None] <= group[:, None]).long().tolist()
    yield reference.same("mask, block-causal", mask, values["block_causal_mask"].long().tolist())
    ids, begin = values["input_ids"], values["input_ids"].shape[1] - within.block
    store = blocks.prefix_store(model, ids, begin)
    found = blocks.cached(model, store, ids[:, begin:], begin, begin)
    yield reference.close("logits, last block with cached keys", found, values["cached_last_block_logits"])
    for case in reference.cases():
        yield from _case(reference, model, case)


def _sampler(settings: Mapping[str, Any]) -> Sampler:
    block, steps = settings["block_length"], settings["denoising_steps"]
    rule = settings.get("remasking_strategy", "")
    threshold = settings["confidence_threshold"] if rule else settings["threshold"]
    if rule == "low_confidence_dynamic" or (not rule and threshold < 1):
        sampler: Sampler = find("samplers", "threshold")(threshold=threshold, least=block // steps)
        return sampler
    return Paced(steps=steps, order="left" if rule == "sequential" else "confidence", size=block)


def _case(reference: Reference, model: Model, case: Mapping[str, Any]) -> Iterator[Check]:
    name, impl = case["name"], case["impl"].removeprefix("SDAR:")
    if "quirk" in case:
        reason = "its code overwrites ids that are already there, also those of the prompt"
        yield Check(reference.model, f"{impl}, {name}", 0.0, NOTHING, True, reason)
        return
    settings, [prompt], [expected] = case["settings"], case["prompt_ids"], case["output_ids"]
    block, stop = settings["block_length"], settings["stopping_criteria_idx"]
    spec = model.spec.with_network(attention=AttentionPattern("block", block))
    mask = spec.tokens.mask_id
    made_ids = expected[: expected.index(mask)] if mask in expected else expected  # blocks after a stop stay masks
    network = blocks.Traced(model.network)
    made = generate(
        network, spec, Blockwise(_sampler(settings)), [prompt], len(made_ids) - len(prompt), find("caches", "exact")()
    )
    yield reference.same(f"{impl}, {name}", made.texts, [made_ids])
    recorded = blocks.joined_passes([(begin, bool(stores), ids) for begin, stores, ids in case["passes"]])
    yield reference.same(f"ids in every pass of {impl}, {name}", [blocks.flat(network.passes)], [blocks.flat(recorded)])
    yield reference.same(f"forward passes of {impl}, {name}", [[made.passes]], [[case["nfe_denoise"]]])
    storing = (len(prompt) >= block) + len(made_ids) // block - len(prompt) // block  # redraft needs none of these
    yield reference.same(f"forward passes, storing ones included, {name}", [[made.passes + storing]], [[case["nfe"]]])
    for end in set(stop or ()) & set(made_ids[len(prompt) :]):
        count = settings["gen_length"]
        made = generate(
            model.network, spec, Blockwise(_sampler(settings)), [prompt], count, find("caches", "exact")(), end
        )
        until = made_ids.index(end, len(prompt)) + 1
        yield reference.same(f"text up to its end, {name}", [made.texts[0][:until]], [made_ids[:until]])


SUITE = Suite(checks, {"generate.mask_id": "a setting"})
