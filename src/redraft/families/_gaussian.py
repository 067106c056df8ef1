"""What the families of continuous diffusion share."""

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
    """The schedule of alpha^2: of the cosine, its square."""
    kind = find("noise.schedules", name)
    made: Schedule = kind(power=2.0) if name == "cosine" else kind()
    return made


def shape(base: Any, kind: Any, **more: Any) -> Any:
    """A transformer's shape as one of ``kind``, with further fields, and as many weights: its MLPs pay for what is new.

    Where they can't (a toy's), they keep half their width.

    Raises:
        UserError: the shape of another network.
    """
    if isinstance(base, kind):
        return base
    if type(base) is not transformer.Config:
        raise UserError("continuous diffusion has a network of its own.", "Leave out which one, and give its size.")
    if base.experts is not None:
        raise UserError("networks for continuous diffusion have no experts.", "Leave model.config.experts out.")
    made = kind(**{field.name: getattr(base, field.name) for field in fields(base)} | more)
    made = replace(made, mlp_dim=base.hidden)
    beyond = models.parameters(made) - models.parameters(base)
    width = round((base.hidden - beyond / (3 * made.dim * made.layers)) / 8) * 8
    return replace(made, mlp_dim=max(width, base.hidden // 16 * 8))
