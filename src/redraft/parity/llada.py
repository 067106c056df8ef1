"""LLaDA and LLaDA-MoE, with the decoding of Fast-dLLM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from redraft.model import Model
from redraft.parity._asking import Guided, answers, hidden, logits, masked_nll, padded, write
from redraft.parity._reference import Check, Reference, Suite
from redraft.registry import find
from redraft.types import Forward, Network


def dense(reference: Reference) -> Iterator[Check]:
    model, values = reference.load(), reference.tensors("logits")
    yield reference.close("logits", answers(model, values["input_ids"]), values["logits"])
    yield reference.close("hidden states", hidden(model, values["input_ids"]), values["hidden_states"])
    yield reference.close("logits, ragged batch", *padded(model, values))
    yield from _cached(reference, model)
    traced = {"s16_g32_b8": reference.tensors("generate_trace")["states"]}
    for case in reference.cases():
        yield from _case(reference, model, case, traced.get(case["name"]))
    yield from _likelihood(reference, model)
    yield _counts(reference, model)


def _case(reference: Reference, model: Model, case: Mapping[str, Any], states: Tensor | None = None) -> Iterator[Check]:
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
        network = Guided(network, len(prompts[0]), model.spec.mask_id, settings["cfg_scale"])
    policy = next((find("caches", name)() for name in ("prefix", "dual") if f"{name}_cache" in case["impl"]), None)
    written = write(network, model.spec, sampler, prompts, count, policy)
    found, wanted = [ids[-count:] for ids in written.texts], [ids[-count:] for ids in case["output_ids"]]
    yield reference.same(f"{case['impl']}, {case['name']}", found, wanted)
    if states is not None:
        yield reference.same(f"states of {case['name']}", written.states[:, 0].tolist(), states.tolist())
    if "nfe" in case:
        passes = written.passes + (_idle(written.states, len(prompts[0]), block) if policy else 0)
        yield reference.same(f"passes of {case['impl']}, {case['name']}", [[passes]], [[case["nfe"]]])


def _idle(states: Tensor, prompt: int, block: int) -> int:
    """Blocks that the pass which fills the caches has finished: Fast-dLLM then makes one more, for nothing."""
    begun = (states[1:] != states[:-1]).any(1)  # [turns, L] written in this turn
    turns = begun[:, prompt:].unflatten(1, (-1, block)).any(2)  # [turns, blocks]
    return int((turns.sum(0) == 1).sum())


def _cached(reference: Reference, model: Model) -> Iterator[Check]:
    """Passes over a part of a text, with keys and values kept from another pass."""
    values = reference.tensors("cache")
    x, changed = values["x"], values["x2"]
    store = model.network.store(1, x.shape[1])

    def ask(ids: Tensor, begin: int, end: int, read: int) -> Tensor:
        pos = torch.arange(begin, end)[None]
        slot, below = torch.tensor([0]), torch.tensor([read])
        request = Forward(ids[:, begin:end], pos, pos, model.spec.attend, slot=slot, read=below)
        with torch.inference_mode():
            flat = model.network(request, store)
        return flat[None]

    full, first, last = ask(x, 0, x.shape[1], 0), 20, 28
    yield reference.close("logits, keys kept of all", full, values["full_logits_x"])
    yield reference.close("logits, changed", answers(model, changed), values["full_logits_x2"])
    dual = ask(changed, first, last, x.shape[1])
    yield reference.close("logits, keys kept outside a block", dual, values["dual_logits_x2"])
    for name, ids in (("prefix_logits", x), ("prefix_logits_x2", changed)):
        yield reference.close("logits, keys kept of a prefix", ask(ids, first, x.shape[1], first), values[name])


def _counts(reference: Reference, model: Model) -> Check:
    """How many ids are written at each step."""
    found, wanted = [], []
    for case in reference.values("values", "transfer_counts"):
        sampler = find("samplers", "confidence")(steps=min(case["steps"], case["masked"]))
        states = write(model.network, model.spec, sampler, [[1]], case["masked"]).states[:, 0]
        counts = (states[1:] != states[:-1]).sum(1).tolist()
        found += [*counts, *[0] * (case["steps"] - len(counts))]
        wanted += case["counts"]
    return reference.same("ids at each step", [found], [wanted])


def _likelihood(reference: Reference, model: Model) -> Iterator[Check]:
    values = reference.tensors("likelihood")
    spec, prompt = model.spec, len(values["prompt"])
    clean = torch.cat([values["prompt"], values["answer"]])
    for scale in ("0.0", "1.5"):
        network: Network = model.network
        if float(scale):
            network = Guided(network, prompt, spec.mask_id, float(scale))
        total = []
        for noisy, share in zip(values[f"noisy_cfg{scale}"], values[f"p_mask_cfg{scale}"], strict=True):
            output = logits(network, noisy, spec.attend, spec.shift)
            nats, _ = masked_nll(spec, output, noisy, clean.expand(len(noisy), -1), 1 / share[:, -1])
            total.append(nats.mean())
        wanted = torch.tensor(reference.values("values", "log_likelihood_mc16_bs8")[f"cfg{scale}"])
        yield reference.close(f"log-likelihood, guidance {scale}", -torch.stack(total).mean(), wanted, atol=0.0)
    noisy = values["fixed_noisy"]
    nats, each = masked_nll(spec, answers(model, noisy), noisy, values["fixed_seq"], 1 / values["fixed_p_mask"][:, -1])
    yield reference.close("cross-entropy of one masking", each, values["fixed_token_ce"])
    yield reference.close("likelihood of one masking", nats.mean(), values["fixed_loss"][0], atol=0.0)
    clean, noisy = values["train_ids"], values["train_noisy"]
    nats, _ = masked_nll(spec, answers(model, noisy), noisy, clean, 1 / values["train_p_mask"][:, 0])
    yield reference.close("loss of pre-training", nats.sum() / clean.numel(), values["train_loss"][0], atol=0.0)
    noisy = values["sft_noisy"]
    answer = clean.shape[1] - values["sft_prompt_lengths"]
    nats, _ = masked_nll(spec, answers(model, noisy), noisy, clean, 1 / values["train_p_mask"][:, 0])
    yield reference.close("loss of fine-tuning", (nats / answer).mean(), values["sft_loss"][0], atol=0.0)


def moe(reference: Reference) -> Iterator[Check]:
    model, values = reference.load(mask_id=reference.cases()[0]["settings"]["mask_id"]), reference.tensors("logits")
    yield reference.close("logits", answers(model, values["input_ids"]), values["logits"])
    yield reference.close("hidden states", hidden(model, values["input_ids"]), values["hidden_states"])
    for case in reference.cases():
        yield from _case(reference, model, {"impl": "LLaDA", **case})


_SAME = "the same numbers as in likelihood.safetensors"
SUITE = Suite(
    dense,
    {
        "gumbel.*": "ids are drawn by inverting the distribution function (runtime.inverse_cdf), not by Gumbel noise",
        "values.*_loss": _SAME,
        "likelihood.answer": "part of fixed_seq",
        "likelihood.train_t": "the draw from which train_p_mask was made",
        "generate.mask_id": "a setting",
    },
)
MOE = Suite(moe)
