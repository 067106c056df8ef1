"""Validation during training: the bound on the validation rows, the best weights, the steadiest objective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from redraft import config
from redraft.likelihood import bound, loss_std
from redraft.objectives.base import Objective
from redraft.train.logging import Event
from redraft.train.setup import Parts
from redraft.train.state import State
from redraft.types import Batch

_SEARCH_BATCHES = 2  # validation batches on which variants of an objective are compared


def validate(
    state: State, parts: Parts, objective: Objective[Any], batches: Iterable[Batch], can_be_best: bool, keep_best: bool
) -> Event:
    """Score the validation rows with the weights that would be saved.

    Args:
        batches: ``parts.validation``.
        can_be_best: every part of the model has been trained, so that its score counts.
        keep_best: keep a copy of the weights if they are the best so far.
    """
    with state.ema.applied(state.network) if state.ema else nullcontext():
        found = bound(state.network, batches, objective, parts.model.spec, device=state.device)
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
        best = can_be_best and (state.best is None or values["nats_per_token"] < state.best["nats_per_token"])
        if best:
            state.best = state.latest
            if keep_best:
                state.best_weights = {name: t.detach().cpu().clone() for name, t in state.trained().items()}
    return Event("validation", state.step, state.tokens, {**values, "best": best})


def steadiest(state: State, parts: Parts, objective: Objective[Any]) -> Objective[Any] | None:
    """The variant of an objective whose loss varies least on the validation rows; None if it has no variants."""
    variants = objective.candidates()
    if not variants:
        return None
    rows, network = parts.validation[:_SEARCH_BATCHES], state.network
    best = min(variants, key=lambda o: loss_std(network, rows, o, parts.model.spec, device=state.device))
    state.objective = config.to_mapping(best)
    return best


def configured(objective: Objective[Any], fields: Mapping[str, Any]) -> Objective[Any]:
    """The objective with the fields that training had chosen; unchanged if ``fields`` is empty."""
    return config.build(type(objective), fields, "checkpoint's objective") if fields else objective
