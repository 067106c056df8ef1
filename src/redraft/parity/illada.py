"""Parity of iLLaDA (ML-GSAI/LLaDA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from redraft.model import Model
from redraft.parity import llada
from redraft.parity.outputs import generate, hidden_states, model_logits
from redraft.parity.reference import Check, Reference, Suite
from redraft.registry import find
from redraft.types import AttentionPattern, Forward, QueryMask


def checks(reference: Reference) -> Iterator[Check]:
    """Logits with each mask, hidden states and decoding."""
    model, values = reference.load(), reference.tensors("logits")
    ids, mask_id = values["input_ids"], reference.values("generate", "mask_id")
    yield reference.same("mask token", [[model.spec.tokens.mask_id]], [[mask_id]])
    yield reference.close("logits", model_logits(model, ids), values["logits"])
    yield reference.close("hidden states", hidden_states(model, ids), values["hidden_states"])
    yield reference.close("logits, padded rows", _padded(model, values), values["padded_logits"])
    blocks = model_logits(model, ids, AttentionPattern("block", 8))
    yield reference.close("logits, block-causal mask", blocks, values["logits_3d_mask"])
    for case in reference.cases():
        if case["impl"] == "var_generate":
            yield from _block_by_block(reference, model, case)
        else:
            states = torch.tensor([*case["passes"], case["output_ids"][0]]) if case["passes"] else None
            yield from llada.decoding(reference, model, case, states)


def _padded(model: Model, values: Mapping[str, Tensor]) -> Tensor:
    """Logits [B, L, V] of left-padded rows, at padding, too: it attends to the tokens, and positions count it."""
    ids, keys = values["padded_input_ids"], values["padded_attention_mask"].bool()
    pos = torch.arange(ids.shape[1]).expand(ids.shape)
    mask = QueryMask(keys[:, None].expand(-1, ids.shape[1], -1))
    with torch.inference_mode():
        return model.network(Forward(ids, pos, pos, AttentionPattern(), extra=(mask,))).view(*ids.shape, -1)


def _block_by_block(reference: Reference, model: Model, case: Mapping[str, Any]) -> Iterator[Check]:
    """Each block is generated after the text so far, without masks after it, until a stop id is in the answer."""
    settings, [prompt], name = case["settings"], case["prompt_ids"], case["name"]
    text, states, passes = prompt, list[list[int]](), 0
    while len(text) < len(prompt) + settings["gen_length"] and not set(text[len(prompt) :]) & set(settings["stop_ids"]):
        sampler = find("samplers", "confidence")(steps=settings["steps"])
        made = generate(model.network, model.spec, sampler, [text], settings["block_length"])
        states += made.states[:-1, 0].tolist()
        passes, [text] = passes + made.passes, made.texts
    yield reference.same(f"var_generate, {name}", [text], case["output_ids"])
    found, recorded = ([id_ for ids in rows for id_ in (-1, *ids)] for rows in (states, case["passes"]))
    yield reference.same(f"ids in every pass of var_generate, {name}", [found], [recorded])
    yield reference.same(f"forward passes of var_generate, {name}", [[passes]], [[case["nfe"]]])


SUITE = Suite(checks)
