"""LLaDA2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from redraft.parity._asking import answers, hidden, write
from redraft.parity._reference import Check, Reference, Suite
from redraft.registry import find
from redraft.samplers._blockwise import Blockwise
from redraft.types import Attend


def checks(reference: Reference) -> Iterator[Check]:
    model, values = reference.load(mask_id=reference.cases()[0]["settings"]["mask_id"]), reference.tensors("logits")
    ids, bias = values["input_ids"], values["attention_bias"][0, 0]
    yield reference.close(
        "logits, block-causal", answers(model, ids, Attend("block", 8)), values["logits_block_causal"]
    )
    yield reference.close("logits, full attention", answers(model, ids, Attend("full")), values["logits_full"])
    within = Attend("block", 8)
    seen = within.stage(torch.arange(ids.shape[1])[None], None)[0]
    yield reference.close("mask, block-causal", torch.where(seen[None] <= seen[:, None], 0.0, -torch.inf), bias, 0, 0)
    yield reference.close("hidden states", hidden(model, ids, within), values["hidden_states"])
    for case in reference.cases():
        settings, [prompt], count = case["settings"], case["prompt_ids"], case["settings"]["gen_length"]
        block, steps = settings["block_length"], settings["steps"]
        sampler = Blockwise(find("samplers", "threshold")(threshold=settings["threshold"], least=block // steps))
        spec = replace(model.spec, attend=Attend("block", block))
        room = -(-(len(prompt) + count) // block) * block - len(prompt)  # the last block is filled up
        written = write(model.network, spec, sampler, [prompt], room, find("caches", "exact")())
        found = written.texts[0][len(prompt) :][:count]
        end = settings["eos_id"]
        found = found[: found.index(end) + 1] if end in found else found
        yield reference.same(f"its sampling, {case['name']}", [found], case["output_ids"])
        yield reference.same(f"passes of its sampling, {case['name']}", [[written.passes]], [[case["nfe"]]])


SUITE = Suite(checks)
