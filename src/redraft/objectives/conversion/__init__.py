"""Conversion: one file is one way in which a converted model learns from the autoregressive model that it was.

A recipe selects one in ``[objective]``; it wraps the objective of the family, and others (``also``) wrap it too. It
affects training only and is not saved with the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft import config
from redraft.errors import UserError
from redraft.objectives.base import Objective
from redraft.objectives.conversion.base import ConversionMethod, Origin
from redraft.registry import find, names

FOLDER = "objectives.conversion"


def is_conversion(described: Mapping[str, Any]) -> bool:
    """Does an ``[objective]`` name a file of this folder, or a class outside that derives from ``ConversionMethod``?"""
    name = described.get("name")
    if isinstance(name, str) and ":" in name:
        try:
            find(FOLDER, name)
        except UserError:
            return False
        return True
    return name in names(FOLDER)


def build_conversions(described: Mapping[str, Any]) -> tuple[ConversionMethod, ...]:
    """``{"name": "align", "also": {"name": "soft_targets"}}`` -> both, the one that wraps the other first.

    Their order in the table does not matter (``ConversionMethod.rank``). () for an ``[objective]`` of post-training.

    Raises:
        UserError: unknown objective, a field that it does not have, or the same one twice.
    """
    if not is_conversion(described):
        return ()
    found, left = list[ConversionMethod](), dict(described)
    while left:
        if not isinstance(left.get("name"), str):
            raise UserError("[objective] also needs a name.", f"One of {', '.join(names(FOLDER))}.")
        name = left.pop("name")
        built: ConversionMethod = config.build(find(FOLDER, name), left, f"objective '{name}'")
        if any(type(one) is type(built) for one in found):
            raise UserError(f"[objective] names '{name}' twice.", "Leave one out.")
        found.append(built)
        left = dict(built.also)
    for more in [other for one in found for other in one.brings]:
        if not any(type(one) is type(more) for one in found):
            found.append(more)
    return tuple(sorted(found, key=lambda one: -one.rank))


def wrapped(conversions: tuple[ConversionMethod, ...], inner: Objective[Any], origin: Origin) -> Objective[Any]:
    """The objective of a family, ``inner``, within those of its conversion.

    Raises:
        UserError: one of them can't wrap it.
    """
    for one in reversed(conversions):
        inner = one.wrap(inner, origin)
    return inner
