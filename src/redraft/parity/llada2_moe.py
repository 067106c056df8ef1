"""Parity of LLaDA2 (inclusionAI)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from redraft.parity.outputs import generate, hidden_states, model_logits
from redraft.parity.reference import Check, Reference, Suite
from redraft.registry import find
from redraft.samplers.wrappers.blockwise import Blockwise
from redraft.types import AttentionPattern


def checks(reference: Reference) -> Iterator[Check]:
    """Logits with block-causal and full attention, hidden states and decoding."""
    model, values = reference.load(mask_id=reference.cases()[0]["settings"]["mask_id"]), reference.tensors("logits")
    ids, bias = values["input_ids"], values["attention_bias"][0, 0]
    yield reference.close(
        "logits, block-causal", model_logits(model, ids, AttentionPattern("block", 8)), values["logits_block_causal"]
    )
    yield reference.close(
        "logits, full attention", model_logits(model, ids, AttentionPattern("full")), values["logits_full"]
    )
    within = AttentionPattern("block", 8)
    group = within.group(torch.arange(ids.shape[1])[None], None)[0]
    yield reference.close("mask, block-causal", torch.where(group[None] <= group[:, None], 0.0, -torch.inf), bias, 0, 0)
    yield reference.close("hidden states", hidden_states(model, ids, within), values["hidden_states"])
    for case in reference.cases():
        settings, [prompt], count = case["settings"], case["prompt_ids"], case["settings"]["gen_length"]
        block, steps = settings["block_length"], settings["steps"]
        sampler = Blockwise(find("samplers", "threshold")(threshold=settings["threshold"], least=block // steps))
        spec = model.spec.with_network(attention=AttentionPattern("block", block))
        room = -(-(len(prompt) + count) // block) * block - len(prompt)  # the last block is complete
        made = generate(model.network, spec, sampler, [prompt], room, find("caches", "exact")())
        found = made.texts[0][len(prompt) :][:count]
        end = settings["eos_id"]
        found = found[: found.index(end) + 1] if end in found else found
        yield reference.same(f"sampling, {case['name']}", [found], case["output_ids"])
        yield reference.same(f"forward passes of sampling, {case['name']}", [[made.passes]], [[case["nfe"]]])


SUITE = Suite(checks)
