"""One file = one course: how attention changes while a network is taught another family than it was made for.

A recipe names one in ``[course]``; it is no part of the model that comes out. ``progress`` is the share of the training
budget that is spent, 0 to 1, as for the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from redraft import config
from redraft.errors import UserError
from redraft.registry import find
from redraft.types import Batch, Objective, Prepared, Spec


class Course(Protocol):
    """Prepares a batch as the objective does, for a network that sees what it may see at this point of training."""

    def prepare(
        self, objective: Objective, batch: Batch, spec: Spec, progress: float, generator: torch.Generator
    ) -> Prepared: ...


def build_course(described: Mapping[str, Any]) -> Course | None:
    """``{"name": "anneal", "until": 0.3}`` -> ``Anneal(until=0.3)``; None for an empty table.

    Raises:
        UserError: no such course, or a field that it does not have.
    """
    if not described:
        return None
    if not isinstance(described.get("name"), str):
        raise UserError("[course] needs a name.", "For example name = 'anneal'.")
    fields = {key: value for key, value in described.items() if key != "name"}
    built: Course = config.build(find("courses", described["name"]), fields, f"course '{described['name']}'")
    return built


def check_share(course: str, name: str, value: float) -> None:
    """Raise UserError unless ``value`` is a share of training."""
    if not 0 <= value <= 1:
        raise UserError(f"course {course}: {name} = {value} must lie between 0 and 1.", "It is a share of training.")
