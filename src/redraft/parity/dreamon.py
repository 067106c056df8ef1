"""Parity of DreamOn (DreamLM/DreamOn): Dream, with masks that become two or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from redraft.canvas import Growth, extent, make_canvas
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.parity.outputs import model_logits
from redraft.parity.reference import Check, Reference, Suite
from redraft.samplers.confidence import Confidence
from redraft.samplers.shared import ranking
from redraft.samplers.wrappers.resizing import Resizing
from redraft.types import DELETE, FREE, Canvas, Output, Request, Sampling, Spec, Step

_ORDERS = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


@dataclass(frozen=True)
class Few(Confidence):
    """A fixed number of positions at each step, by confidences among the likeliest tokens only (``top_p``)."""

    each: int = 1
    top_p: float = 1.0

    def chosen(self, canvas: Canvas, request: Request, out: Output) -> Tensor:
        """[R, W] bool: positions to write at this step."""
        kept = Sampling.of(len(out.log_p), top_p=self.top_p).truncate(out.log_p).log_softmax(-1)
        conf = out.conf.clone()
        conf[request.targets >= 0] = kept.amax(-1)
        scores = ranking.scores(self.order, canvas, request, replace(out, log_p=kept, conf=conf))
        # With top_p many confidences are equal. Which one comes first is up to topk, as in the reference.
        best = scores.topk(min(self.each, scores.shape[1]), 1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)


@dataclass(frozen=True)
class Budgeted(Resizing):
    """DreamOn's own limits: a row expands while it has room, also room from deletions, and at most ``budget`` times.

    With ``to_right``, a ``delete`` also removes all masks after it. Without ``deletes`` it is an ordinary token.
    ``history`` is filled with the rows after each choice, deletion and expansion.
    """

    budget: int = 0
    to_right: bool = False
    deletes: bool = True
    history: list[list[int]] = field(default_factory=list)

    def start(self, canvas: Canvas, spec: Spec) -> Tensor:
        """[B] how many more times each row may expand."""
        super().start(canvas, spec)
        return torch.full_like(canvas.limit, self.budget)

    def _disallow(self, canvas: Canvas, state: Tensor, spec: Spec, request: Request) -> Request:
        full = extent(canvas) >= canvas.limit
        return super()._disallow(canvas, state.masked_fill(full, 0), spec, request)

    def apply(
        self, canvas: Canvas, state: Tensor, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[Tensor, Step]:
        _, chosen = self.inner.apply(canvas, None, spec, requests, outputs)
        state, step = super().apply(
            canvas, state, spec if self.deletes else spec.with_tokens(delete_id=-1), requests, outputs
        )
        deleted = step.pos[step.kind == DELETE] if step.kind is not None else step.pos[:0]
        if self.to_right and len(deleted):
            free = (canvas.status[0] == FREE) & (torch.arange(canvas.ids.shape[1]) > deleted.min())
            more = free.nonzero()[:, 0]
            more = more[~torch.isin(more, step.pos)]
            zero = torch.zeros_like(more)
            extra = Step(zero, more, zero, zero, torch.zeros(len(more)), kind=torch.full_like(more, DELETE))
            names = ("row", "pos", "token", "status", "conf", "kind")
            step = Step(**{name: torch.cat([vars(step)[name], vars(extra)[name]]) for name in names})
            deleted = step.pos[step.kind == DELETE]
        self._record(canvas, spec, chosen, deleted)
        return state, step

    def _record(self, canvas: Canvas, spec: Spec, chosen: Step, deleted: Tensor) -> None:
        row = canvas.ids[0, : int(extent(canvas)[0])].clone()
        row[chosen.pos] = chosen.token
        self.history.append(row.tolist())
        if len(deleted):
            kept = torch.ones(len(row), dtype=torch.bool).index_fill(0, deleted, False)
            row = row[kept]
            self.history.append(row.tolist())
        if bool((row == spec.tokens.expand_id).any()):
            twice = [[spec.tokens.mask_id] * 2 if id_ == spec.tokens.expand_id else [id_] for id_ in row.tolist()]
            self.history.append([id_ for ids in twice for id_ in ids])


def checks(reference: Reference) -> Iterator[Check]:
    """Logits and both published ways of decoding."""
    model, values = reference.load(), reference.tensors("logits")
    found = model_logits(model, values["input_ids"])
    yield reference.close("logits", found, values["logits_unshifted"])
    yield reference.close("logits, window in a longer row", found, values["logits_window_padded"])
    tokens = model.spec.tokens
    ids = [tokens.mask_id, tokens.expand_id, tokens.delete_id]
    yield reference.same("special tokens", [ids], [[reference.values("generate", f"{key}_id") for key in _SPECIAL]])
    for case in reference.cases():
        yield from _case(reference, model, case)


_SPECIAL = ("mask", "expand", "delete")


def _case(reference: Reference, model: Model, case: Mapping[str, Any]) -> Iterator[Check]:
    settings, [given], name = case["settings"], case["prompt_ids"], case["name"]
    mask, repository = model.spec.tokens.mask_id, "min_gen_len" in case["settings"]
    masks, prompt, steps = given.count(mask), given.index(mask), settings.get("steps", 1 << 20)
    if repository:
        limit = min(settings["max_tokens"], len(given) + settings["max_gen_len"] - settings["min_gen_len"])
        budget, right = settings["max_gen_len"], settings["pad_eos_to_right"]
    else:
        limit = len(given) - masks + settings["max_new_tokens"]
        budget, right = settings["expand_budget"], settings["pad_delete_to_right"]
        budget = 2 * (limit - prompt) if budget is None else budget
    inner = Few(
        1, _ORDERS[settings["alg"]], each=settings.get("number_transfer_tokens", 1), top_p=settings["top_p"] or 1.0
    )
    sampler = Budgeted(inner, budget, right, settings.get("delete_eos_token", True))
    row = [None if id_ == mask else id_ for id_ in given]
    spec = model.spec.with_tokens(eos_id=-1)
    canvas = make_canvas([row], [prompt], spec, seeds=[0], growth=Growth([limit]))
    run, passes = Loop({"main": model.network}, Method(sampler), spec).run(canvas), [given]
    for _ in run:
        passes.append(canvas.ids[0, : int(extent(canvas)[0])].tolist())
        if len(passes) > steps:
            break
    impl = "repository" if repository else "generation_utils"
    yield reference.same(f"{impl}, {name}", [passes[-1]], case["output_ids"])
    yield reference.same(f"ids in every pass of {impl}, {name}", [_flat(passes[:-1])], [_flat(case["passes"])])
    yield reference.same(f"forward passes of {impl}, {name}", [[int(canvas.nfe[0])]], [[case["nfe"]]])
    if "history" in case:
        yield reference.same(f"history, {name}", [_flat(sampler.history)], [_flat(case["history"])])


def _flat(rows: list[list[int]]) -> list[int]:
    return [number for row in rows for number in (-1, *row)]


SUITE = Suite(checks)
