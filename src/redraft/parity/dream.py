"""Parity of Dream (DreamLM/Dream), also with the decoding of Fast-dLLM (NVlabs/Fast-dLLM)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redraft.generation.loop import CachePolicy
from redraft.model import Model
from redraft.parity.outputs import Replayed, Truncated, generate, hidden_states, model_logits, ragged_logits
from redraft.parity.reference import Check, Reference, Suite
from redraft.registry import find
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common, ranking
from redraft.samplers.threshold import Threshold
from redraft.types import SEALED, AttentionPattern, Canvas, Drawing, Output, Request, Sampling, Spec, Step


@dataclass(frozen=True)
class Paced(Threshold):
    """Fast-dLLM's threshold for Dream: it never writes faster than an even pace over ``steps`` steps."""

    steps: int = 1

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        written = (canvas.status[request.rows] == SEALED).sum(1)
        due = (
            (written + (request.targets >= 0).sum(1))
            // self.steps
            * (canvas.step[request.rows] + 1).clamp(max=self.steps)
        )
        sure = (out.conf > math.log(self.threshold)) & common.best(out.conf, due - written)
        return None, common.write(request, out, sure | common.best(out.conf, torch.ones_like(written)))


@dataclass(frozen=True)
class FirstOfBlock(Sampler):
    """Fast-dLLM's blocks for Dream. The forward pass that fills the caches writes the first position of a block at any
    confidence. The others follow ``threshold``, or, if it is 0, entropy and Dream's schedule over ``steps`` steps in
    each block."""

    block: int
    steps: int
    threshold: float = 0.0
    eps: float = 1e-3

    def start(self, canvas: Canvas, spec: Spec) -> None: ...

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, self.block), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        free = (request.targets >= 0).sum(1)
        if bool((free == self.block).all()):
            return None, common.write(
                request, out, torch.arange(request.targets.shape[1]).expand_as(request.targets) == 0
            )
        if self.threshold:
            sure = out.conf > math.log(self.threshold)
            return None, common.write(request, out, sure | common.best(out.conf, torch.ones_like(free)))
        turn, stride = (canvas.step[request.rows] % self.steps).double(), (1 - self.eps) / self.steps
        count = torch.where(turn + 1 >= self.steps, free, (free * stride / (1 - turn * stride)).floor().long())
        p = out.log_p.exp()
        order = common.rectangle((p * (p + 1e-10).log()).sum(-1), request, -torch.inf)
        return None, common.write(request, out, common.best(order, count))


@dataclass(frozen=True)
class Late(CachePolicy):
    """A cache policy that also keeps the position before a block, once the block's first position is written."""

    inner: CachePolicy

    def narrow(self, request: Request, stored: Any, shift: int, moved: Any = None) -> Request:
        assert request.cache.active_region is not None
        begun = int(request.targets[0, 0]) > int(request.cache.active_region[0, 0])
        return self.inner.narrow(request, stored, 0 if begun else shift)


def checks(reference: Reference) -> Iterator[Check]:
    """Logits, hidden states, confidences and decoding."""
    model, values = reference.load(), reference.tensors("logits")
    yield reference.close("logits", model_logits(model, values["input_ids"]), values["logits"])
    yield reference.close("hidden states", hidden_states(model, values["input_ids"]), values["hidden_states"])
    yield reference.close("logits, ragged batch", *ragged_logits(model, values))
    yield from _confidences(reference)
    draws = reference.tensors("origin_draws")
    for case in reference.cases():
        yield from _case(reference, model, case, draws)


# The settings have top_k none, which leaves the default of transformers' generation, 50 (confirmed by trial).
_TOP_K = 50
_ORDERS = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


def _case(reference: Reference, model: Model, case: Mapping[str, Any], draws: Mapping[str, Tensor]) -> Iterator[Check]:
    settings, prompts, name = case["settings"], case["prompt_ids"], case["name"]
    if "attention_mask" in case:
        starts = [mask.index(1) for mask in case["attention_mask"]]
        prompts = [ids[start:] for ids, start in zip(prompts, starts, strict=True)]
    count, steps, policy = settings["max_new_tokens"], settings["steps"], None
    sampler: Sampler
    if "block_length" in settings:
        policy = Late(find("caches", "dual" if settings["dual_cache"] else "prefix")())
        block = settings["block_length"]
        sampler = FirstOfBlock(block, steps * block // count, settings.get("threshold", 0.0))
    elif settings["alg"] == "confidence_threshold":
        sampler = Paced(settings["threshold"], steps=steps)
    elif settings["alg"] == "origin":
        sampler = Replayed(steps, settings["eps"], _table(draws, name, len(prompts), len(prompts[0]), count, steps))
    else:
        sampler = find("samplers", "dream")(steps=steps, order=_ORDERS[settings["alg"]], eps=settings["eps"])
    truncated = Truncated(model.network, _TOP_K)
    made = generate(truncated, model.spec, sampler, prompts, count, policy)
    found, expected = [ids[-count:] for ids in made.texts], [ids[-count:] for ids in case["output_ids"]]
    yield reference.same(f"{case['impl']}, {name}", found, expected)
    if settings["alg"] != "origin":  # redraft skips the forward pass of steps that write nothing
        yield reference.same(f"forward passes of {case['impl']}, {name}", [[made.passes]], [[case["nfe"]]])
    if name == _TRACED:
        states = reference.tensors("generate_trace")["states"]
        yield reference.same(f"states of {_TRACED}", made.states[1:, 0].tolist(), states.tolist())


_TRACED = "entropy_s8_b1"


def _truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    return Sampling.of(len(logits), top_k=top_k, top_p=top_p).truncate(logits)


def _confidences(reference: Reference) -> Iterator[Check]:
    """The confidence of each rule for given logits, and its likeliest id."""
    values = reference.tensors("confidence")
    count = len(values["logits"])
    want = torch.arange(count)[None]
    row = Drawing(torch.zeros(1, dtype=torch.int64))
    request = Request(tokens=want, positions=want, targets=want, attention=AttentionPattern(), drawing=row)
    canvas: Any = None  # these rules don't look at it
    for name, order in (*_ORDERS.items(), ("top_k20", "confidence"), ("top_p0.9", "confidence")):
        shown = values["logits"]
        if name.startswith("top_k2"):
            shown = _truncated(shown, 20, 1.0)
        elif name.startswith("top_p"):
            shown = _truncated(shown, 0, 0.9)
            kept = (shown > -torch.inf).long().tolist()
            yield reference.same("ids kept by top-p", kept, values["top_p0.9_keep"].long().tolist())
        log_p = shown.log_softmax(-1)
        best = log_p.max(-1)
        out = Output(log_p, best.indices[None], best.values[None])
        score = ranking.scores(order, canvas, request, out)[0]
        sure = score.exp() if order == "confidence" else score
        yield reference.same("likeliest ids", [best.indices.tolist()], [values[f"x0.{name}"].tolist()])
        yield reference.close("confidences", sure, values[f"conf.{name}"], atol=1e-6)


def _table(draws: Mapping[str, Tensor], name: str, rows: int, prompt: int, count: int, steps: int) -> Tensor:
    """Dream's draws [steps, rows, L]. They are recorded at masked positions only, so it tracks the unmasking."""
    eps = 1e-3
    table = torch.ones(steps, rows, prompt + count, dtype=torch.float64)
    free = torch.zeros(rows, prompt + count, dtype=torch.bool)
    free[:, prompt:] = True
    for turn in range(steps):
        table[turn][free] = draws[f"{name}.step{turn:02d}"].double()
        stride = (1 - eps) / steps
        free &= table[turn] >= stride / (1 - turn * stride)
    return table


SUITE = Suite(checks, {"generate.mask_id": "a setting"})
