"""Parity of GPT-2, Llama, Qwen2 and Qwen3 with transformers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from redraft.parity.outputs import hidden_states, model_logits, ragged_logits
from redraft.parity.reference import Check, Reference, Suite


def checks(reference: Reference) -> Iterator[Check]:
    """Logits, hidden states, cross-entropy and greedy decoding."""
    model, values = reference.load(), reference.tensors("logits")
    found = model_logits(model, values["input_ids"])
    yield reference.close("logits", found, values["logits"])
    yield reference.close("hidden states", hidden_states(model, values["input_ids"]), values["hidden_states"])
    yield reference.close("logits, ragged batch", *ragged_logits(model, values))
    nll = torch.nn.functional.cross_entropy(found[:, :-1].transpose(1, 2), values["input_ids"][:, 1:], reduction="none")
    yield reference.close("next-token cross-entropy", nll, values["token_nll"])
    for case in reference.cases():
        starts = [mask.index(1) for mask in case["attention_mask"]]
        prompts = [ids[start:] for ids, start in zip(case["prompt_ids"], starts, strict=True)]
        new = case["settings"]["max_new_tokens"]
        texts = model.generate(prompts, max_new_tokens=new, ignore_eos=True)
        expected = [ids[-new:] for ids in case["output_ids"]]
        yield reference.same(f"greedy, {case['name']}", [text.ids for text in texts], expected)


SUITE = Suite(checks)
