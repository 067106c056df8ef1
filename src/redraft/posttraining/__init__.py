"""Post-training: one file is one way to train a model further, on preferences or rewards.

A recipe selects one in ``[objective]``. It affects training only and is not saved with the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft import config
from redraft.errors import UserError, suggest
from redraft.objectives.base import Objective
from redraft.objectives.conversion import FOLDER as CONVERSIONS
from redraft.objectives.conversion import is_conversion
from redraft.posttraining.base import PostTraining, Weighted
from redraft.posttraining.estimators.base import Estimator
from redraft.registry import find, names
from redraft.types import Spec

_ESTIMATORS = "posttraining.estimators"


def build_method(described: Mapping[str, Any]) -> PostTraining | None:
    """``{"name": "preference", "beta": 0.1}`` -> ``Preference(beta=0.1)``; None for an empty table or a conversion's.

    Raises:
        UserError: unknown method, or a field that it does not have.
    """
    if not described or is_conversion(described):
        return None
    known = sorted((*names("posttraining"), *names(CONVERSIONS)))
    if not isinstance(described.get("name"), str):
        raise UserError("[objective] needs a name.", f"One of {', '.join(known)}.")
    if described["name"] not in known and ":" not in described["name"]:
        raise UserError(f"Unknown [objective] '{described['name']}'.", suggest(described["name"], known))
    fields = {key: value for key, value in described.items() if key != "name"}
    built: PostTraining = config.build(
        find("posttraining", described["name"]), fields, f"objective '{described['name']}'"
    )
    return built


def build_estimator(
    method: PostTraining, name: str, options: Mapping[str, Any], inner: Objective[Any], spec: Spec
) -> Estimator:
    """The named estimator of likelihoods, or with ``auto`` the first of the method's that fits the model.

    Args:
        inner: the objective of the model's family.
    Raises:
        UserError: an unknown estimator or option, one that doesn't fit the model, or no estimator fits.
    """
    wanted = method.estimators if name == "auto" else (name,)
    kinds = [find(_ESTIMATORS, one) for one in wanted]
    fitting = [kind for kind in kinds if not kind().misfit(inner, spec)]
    if not fitting:
        every = [one for one in names(_ESTIMATORS) if not find(_ESTIMATORS, one)().misfit(inner, spec)]
        reason = kinds[-1]().misfit(inner, spec)
        what = f"The likelihood of this model can't be estimated by '{wanted[-1]}': {reason}."
        raise UserError(
            what, f"These fit: {', '.join(every)}." if every else "Use a masked, block or autoregressive model."
        )
    built: Estimator = config.build(fitting[0], options, f"estimator '{fitting[0].name}'")
    return built


def build_objective(method: PostTraining, inner: Objective[Any], spec: Spec) -> Weighted:
    """The objective by which a method trains a model.

    Raises:
        UserError: as ``build_estimator``.
    """
    return method.objective(build_estimator(method, method.estimator, method.estimator_options, inner, spec))
