"""Parity of LLaDA2.1 (inclusionAI), whose decoding edits tokens that are already there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redraft.generation.loop import CachePolicy
from redraft.model import Model
from redraft.parity import blocks
from redraft.parity.outputs import generate, hidden_states, model_logits
from redraft.parity.reference import Check, Reference, Suite
from redraft.registry import find
from redraft.samplers.wrappers.blockwise import Blockwise
from redraft.types import AttentionPattern, Forward, Network, QueryMask

_BLOCK = 8


@dataclass(frozen=True)
class Biased:
    """A network as the published code of 2.1 runs it: the mask, 1 for the same or an earlier block and 0 for a later
    one, is added to the attention scores, so that every position is seen."""

    network: Network
    attend: AttentionPattern

    def __call__(self, request: Forward, store: Any = None) -> Tensor:
        group = self.attend.group(request.positions, None)
        bias = (group[:, None] <= group[:, :, None]).float()
        return self.network(request.with_extra(QueryMask(bias)))


def checks(reference: Reference) -> Iterator[Check]:
    """Logits with each mask, hidden states and decoding."""
    model, values = reference.load(reference.values("generate", "mask_id")), reference.tensors("logits")
    ids, within, full = values["input_ids"], AttentionPattern("block", _BLOCK), AttentionPattern("full")
    yield reference.close("logits, block-causal", model_logits(model, ids, within), values["logits_block_mask_log"])
    yield reference.close("logits, full attention", model_logits(model, ids, full), values["logits_full"])
    pos = torch.arange(ids.shape[1])[None]
    with torch.inference_mode():
        biased = Biased(model.network, within)(Forward(ids, pos, pos, within)).view(*ids.shape, -1)
    yield reference.close("logits, mask added to the scores", biased, values["logits_block_mask_01"])
    group = within.group(pos, None)[0]
    mask = (group[None] <= group[:, None]).long().tolist()
    yield reference.same("mask, block-causal", mask, values["block_mask"].long().tolist())
    yield reference.close("hidden states", hidden_states(model, ids, within), values["hidden_states_log"])
    for case in reference.cases():
        yield from _case(reference, model, case)


def _case(reference: Reference, model: Model, case: Mapping[str, Any]) -> Iterator[Check]:
    settings, [prompt], count, name = case["settings"], case["prompt_ids"], case["settings"]["gen_length"], case["name"]
    block, end = settings["block_length"], settings["eos_id"]
    sampler = find("samplers", "joint_threshold")(
        threshold=settings["threshold"],
        edit=settings["editing_threshold"],
        rounds=settings["max_post_steps"],
        least=settings["num_to_transfer"],
    )
    within = AttentionPattern("block", block)
    spec, biased = model.spec.with_network(attention=within), case["attention_mask"] == "additive_0_1"
    network = blocks.Traced(Biased(model.network, within) if biased else model.network)
    cache: CachePolicy | None = None if biased else find("caches", "exact")()
    room = -(-(len(prompt) + count) // block) * block - len(prompt)  # the last block is complete
    stops = end if settings["eos_early_stop"] else -1
    made = generate(network, spec, Blockwise(sampler), [prompt], room, cache, stops)
    found = made.texts[0][len(prompt) :][:count]
    found = found[: found.index(end) + 1] if end in found else found
    kind = "mask added to the scores" if biased else "block-causal"
    yield reference.same(f"generate ({kind}), {name}", [found], [case["output_ids"][0]])
    states = [
        (begin, made.states[number, 0, begin : begin + block].tolist())
        for number, (begin, _) in enumerate(case["passes"][: made.passes])
    ]
    recorded = [(begin, ids) for begin, ids in case["passes"]]
    yield reference.same(
        f"ids in every pass of generate ({kind}), {name}", [blocks.flat(states)], [blocks.flat(recorded)]
    )
    yield reference.same(f"forward passes of generate ({kind}), {name}", [[made.passes]], [[case["nfe"]]])


SUITE = Suite(checks)
