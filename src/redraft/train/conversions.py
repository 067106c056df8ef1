"""What objectives of conversion need besides a batch: facts about the autoregressive model that a run starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from redraft.errors import UserError
from redraft.loading import load, outline
from redraft.model import Model
from redraft.objectives.base import OwnTexts, TrainingPhase
from redraft.objectives.conversion import build_conversions, wrapped
from redraft.objectives.conversion.base import Origin
from redraft.objectives.conversion.on_policy import OnPolicy
from redraft.train.recipe import Recipe


def wrapped_phases(recipe: Recipe, phases: Sequence[TrainingPhase]) -> Sequence[TrainingPhase]:
    """The phases of a family with their objectives within those of the recipe's conversion, if it has any.

    Raises:
        UserError: the checkpoint is not autoregressive, or an objective can't be wrapped.
    """
    conversions = build_conversions(recipe.objective)
    if not conversions:
        return phases
    origin = _origin(recipe)
    return [replace(phase, objective=wrapped(conversions, phase.objective, origin)) for phase in phases]


def own_texts(recipe: Recipe) -> OwnTexts | None:
    """The texts that the starting checkpoint writes for a conversion; None: those of the data are learnt."""
    wanted = [texts for one in build_conversions(recipe.objective) if (texts := one.own_texts) is not None]
    return wanted[0] if wanted else None


def own_generation(recipe: Recipe) -> Mapping[str, Any] | None:
    """Settings with which the model in training writes texts for a conversion; None: it writes none."""
    return next((one.generation for one in build_conversions(recipe.objective) if isinstance(one, OnPolicy)), None)


def starting_model(recipe: Recipe) -> Model:
    """The autoregressive model of a recipe as it was, to write texts."""
    return load(recipe.start, device="cpu")


def _origin(recipe: Recipe) -> Origin:
    name = recipe.objective["name"]
    if not recipe.model.from_:
        raise UserError(f"[objective] {name} learns from an autoregressive checkpoint.", "Name one: --from.")
    model = outline(recipe.start)
    if model.spec.network.attention.kind != "causal" or model.spec.network.shift != 1:
        what = f"[objective] {name} learns from an autoregressive checkpoint; this one is '{model.family_name}'."
        raise UserError(what, "Start from an autoregressive model, or leave out [objective].")
    return Origin.of(model.spec, model.network)
