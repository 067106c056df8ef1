"""Shared by families of continuous diffusion: noise schedules and network shapes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal

from redraft import models
from redraft.errors import UserError
from redraft.models import transformer
from redraft.registry import find
from redraft.types import Schedule

Variance = Literal["cosine", "sigmoid", "linear"]


def variance(name: Variance) -> Schedule:
    """The schedule of the signal's variance alpha^2; for ``cosine`` it is the squared cosine."""
    kind = find("noise.schedules", name)
    made: Schedule = kind(power=2.0) if name == "cosine" else kind()
    return made


def network_config(base: Any, kind: Any, **more: Any) -> Any:
    """A configuration of class ``kind`` with the fields of a transformer's, additional fields and equally many weights.

    MLPs are narrowed to compensate for additional parts, at most to half their width (in very small networks).

    Raises:
        UserError: ``base`` is the configuration of another network, or has experts.
    """
    if isinstance(base, kind):
        return base
    if type(base) is not transformer.Config:
        raise UserError(
            f"Continuous diffusion doesn't work with a '{base.name}' network.",
            "Leave the name of the network out, and give only its size.",
        )
    if base.experts is not None:
        raise UserError("Networks for continuous diffusion can't have experts.", "Leave model.config.experts out.")
    made = kind(**{field.name: getattr(base, field.name) for field in fields(base)} | more)
    made = replace(made, mlp_dim=base.hidden)
    added = models.parameters(made) - models.parameters(base)
    width = round((base.hidden - added / (3 * made.dim * made.layers)) / 8) * 8
    return replace(made, mlp_dim=max(width, base.hidden // 16 * 8))
