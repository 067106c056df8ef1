"""Curricula: how attention changes while a network is trained into another family. One file defines one curriculum.

A recipe selects one in ``[curriculum]``. It affects training only and is not saved with the model. ``progress`` is the
share of the training budget that is spent, from 0 to 1, as for the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft import config
from redraft.curricula.base import Curriculum
from redraft.errors import UserError
from redraft.registry import find


def build_curriculum(described: Mapping[str, Any]) -> Curriculum | None:
    """``{"name": "anneal", "until": 0.3}`` -> ``Anneal(until=0.3)``; None for an empty table.

    Raises:
        UserError: unknown curriculum, or a field that it does not have.
    """
    if not described:
        return None
    if not isinstance(described.get("name"), str):
        raise UserError("[curriculum] needs a name.", "For example name = 'anneal'.")
    fields = {key: value for key, value in described.items() if key != "name"}
    built: Curriculum = config.build(find("curricula", described["name"]), fields, f"curriculum '{described['name']}'")
    return built
