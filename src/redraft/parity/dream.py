"""Dream, with the decoding of Fast-dLLM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redraft.decode import CachePolicy
from redraft.model import Model
from redraft.parity._asking import Replayed, Truncated, answers, hidden, padded, write
from redraft.parity._reference import Check, Reference, Suite
from redraft.registry import find
from redraft.runtime import truncate
from redraft.samplers import _open, _scores
from redraft.samplers.threshold import Threshold
from redraft.types import SEALED, Attend, Canvas, Forward, Output, Sampler, Spec, Step


@dataclass(frozen=True)
class Paced(Threshold):
    """Fast-dLLM's threshold for Dream: never ahead of an even pace of ``steps`` turns, however sure it is."""

    steps: int = 1

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None
        written = (canvas.status[ask.rows] == SEALED).sum(1)
        due = (written + (ask.want >= 0).sum(1)) // self.steps * (canvas.step[ask.rows] + 1).clamp(max=self.steps)
        sure = (out.conf > math.log(self.threshold)) & _open.best(out.conf, due - written)
        return None, _open.write(ask, out, sure | _open.best(out.conf, torch.ones_like(written)))


@dataclass(frozen=True)
class FirstOfBlock:
    """Fast-dLLM's blocks for Dream: the pass that fills the caches writes a block's first position, sure or not; what
    follows goes by ``threshold``, or, if that is 0, by entropy and Dream's schedule over ``steps`` turns a block."""

    block: int
    steps: int
    threshold: float = 0.0
    eps: float = 1e-3

    exact = False
    retracts = False
    width = 1

    def start(self, canvas: Canvas, spec: Spec) -> None: ...

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, self.block), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        free = (ask.want >= 0).sum(1)
        if bool((free == self.block).all()):
            return None, _open.write(ask, out, torch.arange(ask.want.shape[1]).expand_as(ask.want) == 0)
        if self.threshold:
            sure = out.conf > math.log(self.threshold)
            return None, _open.write(ask, out, sure | _open.best(out.conf, torch.ones_like(free)))
        turn, stride = (canvas.step[ask.rows] % self.steps).double(), (1 - self.eps) / self.steps
        count = torch.where(turn + 1 >= self.steps, free, (free * stride / (1 - turn * stride)).floor().long())
        p = out.log_p.exp()
        order = _open.rectangle((p * (p + 1e-10).log()).sum(-1), ask, -torch.inf)
        return None, _open.write(ask, out, _open.best(order, count))


@dataclass(frozen=True)
class Late:
    """A cache policy that also keeps the position before a block, once the block's first position is written."""

    inner: CachePolicy

    exact = False

    def narrow(self, ask: Forward, cells: Any, shift: int) -> Forward:
        assert ask.active is not None
        begun = int(ask.want[0, 0]) > int(ask.active[0, 0])
        return self.inner.narrow(ask, cells, 0 if begun else shift)


def checks(reference: Reference) -> Iterator[Check]:
    model, values = reference.load(), reference.tensors("logits")
    yield reference.close("logits", answers(model, values["input_ids"]), values["logits"])
    yield reference.close("hidden states", hidden(model, values["input_ids"]), values["hidden_states"])
    yield reference.close("logits, ragged batch", *padded(model, values))
    yield from _confidences(reference)
    draws = reference.tensors("origin_draws")
    for case in reference.cases():
        yield from _case(reference, model, case, draws)


# The settings say top_k none, but that leaves the default of transformers' generation: 50 (found by trying).
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
    heard = Truncated(model.network, _TOP_K)
    written = write(heard, model.spec, sampler, prompts, count, policy)
    found, wanted = [ids[-count:] for ids in written.texts], [ids[-count:] for ids in case["output_ids"]]
    yield reference.same(f"{case['impl']}, {name}", found, wanted)
    if settings["alg"] != "origin":  # where turns are known to write nothing before, ours runs no pass
        yield reference.same(f"passes of {case['impl']}, {name}", [[written.passes]], [[case["nfe"]]])
    if name == _TRACED:
        states = reference.tensors("generate_trace")["states"]
        yield reference.same(f"states of {_TRACED}", written.states[1:, 0].tolist(), states.tolist())


_TRACED = "entropy_s8_b1"


def _truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    count = len(logits)
    return truncate(logits, torch.full((count,), top_k), torch.full((count,), top_p))


def _confidences(reference: Reference) -> Iterator[Check]:
    """How sure each rule is of given logits, and of which id."""
    values = reference.tensors("confidence")
    count = len(values["logits"])
    want = torch.arange(count)[None]
    ask = Forward(x=want, pos=want, want=want, attend=Attend(), rows=torch.zeros(1, dtype=torch.int64))
    canvas: Any = None  # these rules don't look at it
    for name, order in (*_ORDERS.items(), ("top_k20", "confidence"), ("top_p0.9", "confidence")):
        heard = values["logits"]
        if name.startswith("top_k2"):
            heard = _truncated(heard, 20, 1.0)
        elif name.startswith("top_p"):
            heard = _truncated(heard, 0, 0.9)
            kept = (heard > -torch.inf).long().tolist()
            yield reference.same("ids kept by top-p", kept, values["top_p0.9_keep"].long().tolist())
        log_p = heard.log_softmax(-1)
        best = log_p.max(-1)
        out = Output(log_p, best.indices[None], best.values[None])
        score = _scores.scores(order, canvas, ask, out)[0]
        sure = score.exp() if order == "confidence" else score
        yield reference.same("likeliest ids", [best.indices.tolist()], [values[f"x0.{name}"].tolist()])
        yield reference.close("confidences", sure, values[f"conf.{name}"], atol=1e-6)


def _table(draws: Mapping[str, Tensor], name: str, rows: int, prompt: int, count: int, steps: int) -> Tensor:
    """Dream's draws, recorded for what was still masked, by turn, row and position; what they reveal follows."""
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
