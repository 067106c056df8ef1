"""Parity of Nemotron-Labs-Diffusion (nvidia)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from redraft.canvas import make_canvas
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.models.parts.store import KeyValueView
from redraft.parity import blocks
from redraft.parity.outputs import generate, hidden_states, logits, model_logits
from redraft.parity.reference import Check, Reference, Suite
from redraft.registry import find
from redraft.samplers.base import Sampler
from redraft.samplers.wrappers.blockwise import Blockwise
from redraft.types import SEALED, AttentionPattern, DraftQuery, Forward, Network, Spec

_CAUSAL, _FULL = AttentionPattern("causal"), AttentionPattern("full")


def checks(reference: Reference) -> Iterator[Check]:
    """Logits of both modes, a block after cached text, and the three ways of decoding."""
    model, values = reference.load(), reference.tensors("logits")
    ids, shift = values["input_ids"], model.spec.network.shift
    mask_id = reference.values("generate", "mask_id")
    yield reference.same("mask token", [[model.spec.tokens.mask_id]], [[mask_id]])
    full = logits(model.network, ids, _FULL, shift)
    yield reference.close("logits, bidirectional", full, values["logits_bidirectional"])
    yield reference.close("logits, causal", model_logits(model, ids, _CAUSAL), values["logits_causal"])
    yield reference.close("hidden states", hidden_states(model, ids, _FULL), values["hidden_states_bidirectional"])
    for name, drafted in (("cached_block_logits", True), ("cached_block_logits_causal", False)):
        found = _after(model, ids, values["block_ids"], drafted)
        what = "drafted" if drafted else "causal"
        yield reference.close(f"logits, {what} block after cached text", found, values[name])
    for case in reference.cases():
        yield from _CASES[case["impl"].split(":")[1]](reference, model, case)


def _after(model: Model, ids: Tensor, block: Tensor, drafted: bool) -> Tensor:
    """Logits [B, Q, V] of ``block`` [B, Q] after cached causal ids [B, L]; a draft sees all of itself."""
    rows, begin = torch.arange(len(ids)), ids.shape[1]
    store = model.network.store(len(ids), begin + block.shape[1])
    found = torch.zeros(0)
    for part, first in ((ids, 0), (block, begin)):
        pos = torch.arange(first, first + part.shape[1]).expand(part.shape)
        extra = (DraftQuery(0, torch.full_like(rows, begin)),) if drafted and first else ()
        request = Forward(part, pos, pos + (not extra), _CAUSAL, extra=extra)
        with torch.inference_mode():
            found = model.network(request, KeyValueView(store, rows, torch.full_like(rows, first)))
    return found.view(*block.shape, -1)


def _run(
    network: Network, spec: Spec, sampler: Sampler, prompts: list[list[int]], count: int, least: int
) -> list[list[int]]:
    """Texts of ``count`` new ids, or of at least ``least`` if the generation can be stopped there."""
    rows = [[*prompt, *[None] * count] for prompt in prompts]
    canvas = make_canvas(rows, [len(prompt) for prompt in prompts], spec, seeds=list(range(len(rows))))
    for _ in Loop({"main": network}, Method(sampler, find("caches", "exact")()), spec).run(canvas):
        if int((canvas.status == SEALED).sum(1).min()) >= least:
            break
    return canvas.ids.tolist()


def _recorded(case: Mapping[str, Any]) -> list[tuple[int, list[int]]]:
    """The recorded passes of the first row."""
    return [(begin, ids[0] if isinstance(ids[0], list) else ids) for _, begin, _, ids in case["passes"]]


def _blocks(reference: Reference, model: Model, case: Mapping[str, Any]) -> Iterator[Check]:
    settings, prompts, name = case["settings"], case["prompt_ids"], case["name"]
    size, end = settings["block_length"], settings["eos_token_id"]
    threshold, network = settings["threshold"] or 1.0, blocks.Traced(model.network)
    what = "generate" if settings["causal_context"] else "generate (context without a mask)"
    if settings["causal_context"]:
        spec = model.spec.with_tokens(eos_id=end)
        sampler = find("samplers", "causal_blocks")(size, threshold)
        texts = _run(network, spec, sampler, prompts, settings["max_new_tokens"], settings["max_new_tokens"])
        expected = _recorded(case)[:-1]  # the pass that stores the last block is not needed
        idle = 1
    else:  # block diffusion, with the prompt as a block of its own, and without the shift
        own, count = model.network.config, settings["max_new_tokens"]
        model.network.config = replace(own, shift=0)
        sampler = Blockwise(find("samplers", "threshold")(threshold))
        drafter = model.spec.family.drafter
        assert drafter is not None
        spec = drafter.with_network(attention=AttentionPattern("block", size), prompt_encoder=True)
        texts = generate(network, spec, sampler, prompts, count, find("caches", "exact")(), end).texts
        model.network.config = own
        expected = blocks.joined_passes([(begin, bool(stores), ids) for _, begin, stores, ids in case["passes"]])
        idle = sum(stores for _, _, stores, _ in case["passes"])
    found = [text[: len(ids)] for text, ids in zip(texts, case["output_ids"], strict=True)]
    yield reference.same(f"{what}, {name}", found, case["output_ids"])
    yield reference.same(f"ids in every pass of {what}, {name}", [blocks.flat(network.passes)], [blocks.flat(expected)])
    passes = len(network.passes) + idle
    yield reference.same(
        f"forward passes of {what}, {name}", [[passes, passes - 1]], [[case["forward_passes"], case["nfe"]]]
    )


def _causal(reference: Reference, model: Model, case: Mapping[str, Any]) -> Iterator[Check]:
    settings, [prompt], [expected], name = case["settings"], case["prompt_ids"], case["output_ids"], case["name"]
    what, new = case["impl"].split(":")[1], len(expected) - len(prompt)
    spec, network = model.spec.with_tokens(eos_id=settings["eos_token_id"]), blocks.Traced(model.network)
    sampler: Sampler = find("samplers", "autoregressive")()
    room = new
    if what == "linear_spec_generate":  # its last block is not cut at max_new_tokens
        sampler = find("samplers", "self_speculation")(settings["block_length"], settings["threshold"])
        room = new + settings["block_length"]
    [text] = _run(network, spec, sampler, [prompt], room, min(new, settings["max_new_tokens"]))
    yield reference.same(f"{what}, {name}", [text[: len(expected)]], [expected])
    passes = _recorded(case)
    yield reference.same(f"ids in every pass of {what}, {name}", [blocks.flat(network.passes)], [blocks.flat(passes)])
    made = len(network.passes)
    yield reference.same(f"forward passes of {what}, {name}", [[made, made]], [[case["forward_passes"], case["nfe"]]])


_CASES = {"generate": _blocks, "ar_generate": _causal, "linear_spec_generate": _causal}
SUITE = Suite(checks)
