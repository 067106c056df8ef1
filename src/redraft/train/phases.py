"""The phases of a run: which objective trains which parameters over which share of the budget."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from redraft.errors import UserError
from redraft.models.parts.lora import base_of
from redraft.objectives.base import Objective, TrainingPhase
from redraft.train.recipe import Recipe


class Phases:
    """The phases of a run, in order.

    A phase none of whose parameters are trained (an adapter is trained instead) leaves its share of the budget to the
    others.
    """

    def __init__(self, every: Sequence[TrainingPhase], trainable: frozenset[str]) -> None:
        self._trainable = trainable
        kept = [phase for phase in every if any(name.startswith(phase.trains) for name in trainable)]
        whole = 1.0 if len(kept) == len(every) else sum(phase.share for phase in kept)
        self.phases = [replace(phase, share=phase.share / whole) for phase in kept]

    def __len__(self) -> int:
        return len(self.phases)

    @property
    def last(self) -> TrainingPhase:
        """The phase that ends the run. From its start on every part of the model has been trained."""
        return self.phases[-1]

    def at(self, spent: float) -> tuple[TrainingPhase, float]:
        """The phase of the update that begins when ``spent`` of the budget is gone, and the share at which it began."""
        begin = 0.0
        for phase in self.phases[:-1]:
            if spent < begin + phase.share:
                return phase, begin
            begin += phase.share
        return self.last, begin

    def freeze_others(self, network: nn.Module, phase: TrainingPhase) -> None:
        """Let the optimizer change the parameters of one phase only."""
        if len(self) > 1:
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name in self._trainable and name.startswith(phase.trains))

    def choose(self, fields: Mapping[str, Any]) -> None:
        """Train on with the variant of the last objective that has these ``fields``; none: as it is."""
        if fields:
            self.phases[-1] = replace(self.last, objective=self.last.objective.variant(fields))

    def check_curriculum(self, family: str) -> None:
        """Check that a curriculum can be used.

        Raises:
            UserError: an objective asks the network in training first, and this rollout follows no curriculum.
        """
        if any(not phase.objective.curricular for phase in self.phases):
            what = f"Family '{family}' with these options can't be trained with a curriculum."
            raise UserError(what, "Leave out [curriculum].")


def teacher(recipe: Recipe, network: nn.Module, objective: Objective[Any]) -> dict[str, nn.Module]:
    """The starting checkpoint as the network ``teacher``, if the last phase's objective needs it.

    Call it before weights are restored. With an adapter it is the base, which is in memory already.

    Raises:
        UserError: the run starts from no checkpoint.
    """
    if not objective.needs_teacher:
        return {}
    if not recipe.model.from_:
        what = "Distillation needs a teacher."
        raise UserError(what, "Name a trained checkpoint: [model] from, or finetune --from.")
    if recipe.lora is not None:
        return {"teacher": base_of(network).eval()}
    return {"teacher": copy.deepcopy(network).eval().requires_grad_(False)}
