"""Registry of families: one file is one named combination of noise process, schedule, objective and sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft import config as configs
from redraft.errors import UserError
from redraft.registry import find


def build_family(described: Mapping[str, Any]) -> tuple[str, Any]:
    """Build a family from plain values: ``{"name": "masked", "schedule": "cosine"}`` -> ("masked", Masked("cosine")).

    Raises:
        UserError: no name, an unknown family, or an option that isn't valid.
    """
    if "name" not in described:
        raise UserError("[family] 'name' is missing.", "For example name = 'masked'.")
    name = described["name"]
    fields = {key: value for key, value in described.items() if key != "name"}
    return name, configs.build(find("families", name), fields, f"family '{name}'")
