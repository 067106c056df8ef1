"""Parity of LLaDA (ML-GSAI/LLaDA) and LLaDA-MoE, also with the decoding of Fast-dLLM (NVlabs/Fast-dLLM)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from redraft.model import Model
from redraft.models.parts.store import KeyValueView
from redraft.parity.outputs import Guided, generate, hidden_states, logits, masked_nll, model_logits, ragged_logits
from redraft.parity.reference import Check, Reference, Suite
from redraft.registry import find
from redraft.types import Forward, Network


def dense(reference: Reference) -> Iterator[Check]:
    """Logits, hidden states, cached passes, decoding and likelihood of LLaDA."""
    model, values = reference.load(), reference.tensors("logits")
    yield reference.close("logits", model_logits(model, values["input_ids"]), values["logits"])
    yield reference.close("hidden states", hidden_states(model, values["input_ids"]), values["hidden_states"])
    yield reference.close("logits, ragged batch", *ragged_logits(model, values))
    yield from _cached(reference, model)
    traced = {"s16_g32_b8": reference.tensors("generate_trace")["states"]}
    for case in reference.cases():
        yield from decoding(reference, model, case, traced.get(case["name"]))
    yield from _likelihood(reference, model)
    yield _counts(reference, model)


def decoding(
    reference: Reference, model: Model, case: Mapping[str, Any], states: Tensor | None = None
) -> Iterator[Check]:
    """A recorded generation by LLaDA's ``generate``, or by Fast-dLLM; ``states`` [steps + 1, L]: ids in every pass."""
    settings, prompts = case["settings"], case["prompt_ids"]
    if "attention_mask" in case:
        starts = [mask.index(1) for mask in case["attention_mask"]]
        prompts = [ids[start:] for ids, start in zip(prompts, starts, strict=True)]
    count, block = settings["gen_length"], settings["block_length"]
    options: dict[str, Any] = {"block": 0 if block == count else block}
    if "threshold" in settings:
        sampler = find("samplers", "threshold")(threshold=settings["threshold"], **options)
    else:
        sampler = find("samplers", "confidence")(steps=settings["steps"], **options)
    network: Network = model.network
    if settings.get("cfg_scale"):
        network = Guided(network, len(prompts[0]), model.spec.tokens.mask_id, settings["cfg_scale"])
    policy = next((find("caches", name)() for name in ("prefix", "dual") if f"{name}_cache" in case["impl"]), None)
    made = generate(network, model.spec, sampler, prompts, count, policy)
    found, expected = [ids[-count:] for ids in made.texts], [ids[-count:] for ids in case["output_ids"]]
    yield reference.same(f"{case['impl']}, {case['name']}", found, expected)
    if states is not None:
        yield reference.same(f"states of {case['name']}", made.states[:, 0].tolist(), states.tolist())
    if "nfe" in case:
        passes = made.passes + (_idle(made.states, len(prompts[0]), block) if policy else 0)
        yield reference.same(f"forward passes of {case['impl']}, {case['name']}", [[passes]], [[case["nfe"]]])


def _idle(states: Tensor, prompt: int, block: int) -> int:
    """Number of blocks that the pass which fills the caches completes: Fast-dLLM then makes one unused pass more."""
    changed = (states[1:] != states[:-1]).any(1)  # [steps, L] written in this step
    steps = changed[:, prompt:].unflatten(1, (-1, block)).any(2)  # [steps, blocks]
    return int((steps.sum(0) == 1).sum())


def _cached(reference: Reference, model: Model) -> Iterator[Check]:
    """Forward passes over a part of a sequence, with cached keys and values of another pass."""
    values = reference.tensors("cache")
    x, changed = values["x"], values["x2"]
    store = model.network.store(1, x.shape[1])

    def request(ids: Tensor, begin: int, end: int, read: int) -> Tensor:
        pos = torch.arange(begin, end)[None]
        slot, below = torch.tensor([0]), torch.tensor([read])
        request = Forward(ids[:, begin:end], pos, pos, model.spec.network.attention)
        with torch.inference_mode():
            flat = model.network(request, KeyValueView(store, slot, below))
        return flat[None]

    full, first, last = request(x, 0, x.shape[1], 0), 20, 28
    yield reference.close("logits, all keys cached", full, values["full_logits_x"])
    yield reference.close("logits, changed", model_logits(model, changed), values["full_logits_x2"])
    dual = request(changed, first, last, x.shape[1])
    yield reference.close("logits, keys cached outside a block", dual, values["dual_logits_x2"])
    for name, ids in (("prefix_logits", x), ("prefix_logits_x2", changed)):
        yield reference.close("logits, keys of a prefix cached", request(ids, first, x.shape[1], first), values[name])


def _counts(reference: Reference, model: Model) -> Check:
    """The number of ids that are written in each step."""
    found, expected = [], []
    for case in reference.values("values", "transfer_counts"):
        sampler = find("samplers", "confidence")(steps=min(case["steps"], case["masked"]))
        states = generate(model.network, model.spec, sampler, [[1]], case["masked"]).states[:, 0]
        counts = (states[1:] != states[:-1]).sum(1).tolist()
        found += [*counts, *[0] * (case["steps"] - len(counts))]
        expected += case["counts"]
    return reference.same("number of ids in each step", [found], [expected])


def _likelihood(reference: Reference, model: Model) -> Iterator[Check]:
    values = reference.tensors("likelihood")
    spec, prompt = model.spec, len(values["prompt"])
    clean = torch.cat([values["prompt"], values["answer"]])
    for scale in ("0.0", "1.5"):
        network: Network = model.network
        if float(scale):
            network = Guided(network, prompt, spec.tokens.mask_id, float(scale))
        total = []
        for noisy, share in zip(values[f"noisy_cfg{scale}"], values[f"p_mask_cfg{scale}"], strict=True):
            output = logits(network, noisy, spec.network.attention, spec.network.shift)
            nats, _ = masked_nll(spec, output, noisy, clean.expand(len(noisy), -1), 1 / share[:, -1])
            total.append(nats.mean())
        expected = torch.tensor(reference.values("values", "log_likelihood_mc16_bs8")[f"cfg{scale}"])
        yield reference.close(f"log-likelihood, guidance {scale}", -torch.stack(total).mean(), expected, atol=0.0)
    noisy = values["fixed_noisy"]
    nats, each = masked_nll(
        spec, model_logits(model, noisy), noisy, values["fixed_seq"], 1 / values["fixed_p_mask"][:, -1]
    )
    yield reference.close("cross-entropy of a given mask", each, values["fixed_token_ce"])
    yield reference.close("likelihood of a given mask", nats.mean(), values["fixed_loss"][0], atol=0.0)
    clean, noisy = values["train_ids"], values["train_noisy"]
    nats, _ = masked_nll(spec, model_logits(model, noisy), noisy, clean, 1 / values["train_p_mask"][:, 0])
    yield reference.close("loss of pre-training", nats.sum() / clean.numel(), values["train_loss"][0], atol=0.0)
    noisy = values["sft_noisy"]
    answer = clean.shape[1] - values["sft_prompt_lengths"]
    nats, _ = masked_nll(spec, model_logits(model, noisy), noisy, clean, 1 / values["train_p_mask"][:, 0])
    yield reference.close("loss of fine-tuning", (nats / answer).mean(), values["sft_loss"][0], atol=0.0)


def moe(reference: Reference) -> Iterator[Check]:
    """Logits, hidden states and decoding of LLaDA-MoE."""
    model, values = reference.load(mask_id=reference.cases()[0]["settings"]["mask_id"]), reference.tensors("logits")
    yield reference.close("logits", model_logits(model, values["input_ids"]), values["logits"])
    yield reference.close("hidden states", hidden_states(model, values["input_ids"]), values["hidden_states"])
    for case in reference.cases():
        yield from decoding(reference, model, {"impl": "LLaDA", **case})


_SAME = "the same numbers as in likelihood.safetensors"
SUITE = Suite(
    dense,
    {
        "gumbel.*": "redraft samples by inverting the distribution function (runtime.inverse_cdf), not by Gumbel noise",
        "values.*_loss": _SAME,
        "likelihood.answer": "part of fixed_seq",
        "likelihood.train_t": "the draw from which train_p_mask was computed",
        "generate.mask_id": "a setting",
    },
)
MOE = Suite(moe)
