"""Validation during training: the bound on the validation rows, the best weights, the steadiest objective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from redraft import config
from redraft.likelihood import Bound, Scored, joined, loss_std, scored
from redraft.objectives.base import Objective
from redraft.rollouts import evaluating
from redraft.train.logging import Event
from redraft.train.setup import Parts
from redraft.train.state import State
from redraft.types import Batch, Spec

_SHARES, _MOST_COST = 8, 0.1  # validations over a run, and their largest share of its operations
_SAMPLES = 4  # forward passes for each row
_FACTS = 4  # numbers of a ``Scored`` besides the nats of its rows
_RISE = 0.005  # a smaller rise of the validation, as a share of its value, is not called overfitting
_SEARCH_BATCHES = 2  # validation batches on which variants of an objective are compared


def validate(
    state: State,
    parts: Parts,
    objective: Objective[Any],
    batches: Iterable[Batch],
    can_be_best: bool,
    keep_best: bool,
    bfloat16: bool,
) -> Event:
    """Score the validation rows with the weights that would be saved.

    Args:
        batches: ``parts.validation``.
        can_be_best: every part of the model has been trained, so that its score counts.
        keep_best: keep a copy of the weights if they are the best so far.
        bfloat16: the network computes in bfloat16, as in training.
    """
    with state.ema.applied() if state.ema else nullcontext():
        parts.weights.ready(objective)
        found = _shared_bound(state, parts.model.spec, objective, batches, bfloat16)
        parts.weights.settle()
        values = {
            "nats_per_token": found.nats_per_token,
            "nats_error": found.nats_per_token_stderr,
            "bits_per_byte": found.bits_per_byte,
            "bits_error": found.bits_per_byte_stderr,
            "is_bound": found.is_bound,
            "rows": len(found.rows),
            "passes": state.loader.epochs,
        }
        state.latest = {**values, "step": state.step}
        nats = found.nats_per_token
        best = can_be_best and math.isfinite(nats) and (state.best is None or nats < state.best["nats_per_token"])
        state.validations += 1
        state.worse = 0 if best or state.best is None else state.worse + 1
        if best:
            state.best = state.latest
            if keep_best:
                state.best_weights = {name: t.detach().cpu().clone() for name, t in state.trained().items()}
    values |= {"best": best, "number": state.validations}
    if state.best is not None:
        values |= {"best_step": state.best["step"], "best_nats": state.best["nats_per_token"]}
    return Event("validation", state.step, state.tokens, values)


def _shared_bound(
    state: State, spec: Spec, objective: Objective[Any], batches: Iterable[Batch], bfloat16: bool
) -> Bound:
    """The bound of the validation rows, whose batches the ranks share out. One process computes the same."""
    ranks, network = state.ranks, state.network
    sizes, numbers, done = list[int](), list[float](), 0
    key, last = (0, 0), None

    def score(batch: Batch, key: tuple[int, int]) -> list[float]:
        return scored(network, batch, objective, spec, _SAMPLES, key, bfloat16).numbers()

    with evaluating(network):
        for number, batch in enumerate(batches):
            key, last = (0, number), batch
            mine = number % ranks.world == ranks.rank
            found = score(batch, key) if mine else [0.0] * (len(batch.ids) + _FACTS)
            numbers += found
            sizes.append(len(found))
            done += mine
        if last is not None and done * ranks.world < len(sizes):  # ranks with parts of the weights need each other
            score(last, key)
    every = iter(ranks.sum(numbers))  # of each number, one rank has the value, and the others 0
    return joined([Scored.of_numbers([next(every) for _ in range(size)]) for size in sizes], _SAMPLES)


def overfitting(state: State) -> dict[str, Any] | None:
    """Whether the validation has become worse since the best one: the values of an event, or None.

    All validations use the same rows and the same noise. A rise counts if it exceeds both its Monte-Carlo error and
    ``_RISE`` of the value.
    """
    best, latest = state.best, state.latest
    if not state.worse or best is None or latest is None:
        return None
    least = max(math.hypot(best["nats_error"], latest["nats_error"]), _RISE * best["nats_per_token"])
    if latest["nats_per_token"] - best["nats_per_token"] <= least:
        return None
    return {
        "best_step": best["step"],
        "best_nats": best["nats_per_token"],
        "nats_per_token": latest["nats_per_token"],
        "validations": state.worse,
        "kept": bool(state.best_weights),
    }


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    tokens: int
    spent: float  # share of the budget


def is_due(rows: Sequence[Batch], every: int | None, before: Progress, now: Progress, done: int) -> bool:
    """Is there a validation after the update that led from ``before`` to ``now``?

    Args:
        rows: validation rows. every: tokens between validations; 0: none; None: at every eighth of the budget, unless
            the ``done`` ones and this one would take more than a tenth of the operations so far.
    """
    if every is not None:
        return crossed(every, before.tokens, now.tokens)
    if int(now.spent * _SHARES) == int(before.spent * _SHARES):
        return False
    tokens = sum(int(batch.valid.sum()) for batch in rows)
    cost = tokens * _SAMPLES / 3  # in tokens of training, which takes three times as much as a forward pass
    return (done + 1) * cost <= _MOST_COST * now.tokens


def crossed(every: int, before: int, now: int) -> bool:
    """Is there a multiple of ``every`` above ``before`` and up to ``now``? 0 has no multiples."""
    return every > 0 and now // every > before // every


def steadiest(state: State, parts: Parts, objective: Objective[Any], bfloat16: bool) -> bool:
    """Find the variant of an objective whose loss varies least on the validation rows, for ``state.objective``.

    Returns:
        False if it has no variants.
    """
    variants = objective.candidates()
    if not variants:
        return False
    rows, network = parts.validation[:_SEARCH_BATCHES], state.network

    def deviation(variant: Objective[Any]) -> float:
        return loss_std(network, rows, variant, parts.model.spec, bfloat16=bfloat16)

    best = variants[state.ranks.same(min(range(len(variants)), key=lambda number: deviation(variants[number])))]
    parts.weights.settle()
    state.objective = config.to_mapping(best)
    return True
