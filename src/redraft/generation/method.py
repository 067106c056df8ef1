"""From settings to a method: the sampler, the cache policy, guidance and constraints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redraft import config
from redraft.caches.base import CachePolicy
from redraft.constraints import build_all
from redraft.errors import UserError
from redraft.generation.loop import Method
from redraft.guidance.base import Guidance, GuidanceOptions
from redraft.registry import field_names, find
from redraft.samplers.base import Sampler
from redraft.samplers.wrappers.blockwise import Blockwise
from redraft.samplers.wrappers.resizing import Resizing
from redraft.types import Constraint

if TYPE_CHECKING:
    from redraft.model import Model
    from redraft.settings import Settings


def build_method(model: Model, settings: Settings) -> Method:
    """The sampler, cache policy, guidance and constraint of the settings, wrapped as this model needs them.

    Raises:
        UserError: a name or option is unknown, or this model doesn't support it.
    """
    sampler = build_sampler(model, settings)
    if _predicts_vectors(model) and settings.guidance not in (None, "classifier_free"):
        raise UserError(f"Guidance '{settings.guidance}' needs predictions of tokens.", "Use classifier_free.")
    return Method(sampler, _cache(settings), _guidance(model, settings), build_constraint(model, settings))


def build_sampler(model: Model, settings: Settings) -> Sampler:
    """The sampler of the settings, wrapped as this model needs it.

    Raises:
        UserError: its name or an option is unknown or out of range.
    """
    default, spec = model.family.sampler(), model.spec
    kind: Any = type(default) if settings.sampler is None else find("samplers", settings.sampler)
    own = config.to_mapping(default) if settings.sampler is None else {}
    if model.drafter is not None and type(drafts := model.drafter.family.sampler()) is kind:
        own = config.to_mapping(drafts)  # of the size that the drafter was trained for
    options = {**{key: value for key, value in own.items() if key != "steps"}, **settings.options}
    fields, name = field_names(kind), kind.name
    if settings.steps is not None:
        if "steps" not in fields:
            raise UserError(f"Sampler '{name}' has no option 'steps'.", f"Its options: {', '.join(fields) or 'none'}.")
        options["steps"] = settings.steps
    elif "steps" in fields and "steps" not in options:
        options["steps"] = min(16, settings.max_new_tokens, spec.network.attention.block or settings.max_new_tokens)
    sampler: Sampler = config.build(kind, options, f"sampler '{name}'")
    if spec.network.attention.kind == "block":
        sampler = Blockwise(sampler)
    if spec.tokens.expand_id >= 0:
        sampler = Resizing(sampler)
    return sampler


def _cache(settings: Settings) -> CachePolicy | None:
    if settings.cache == "none":
        return None
    kind = find("caches", settings.cache)
    policy: CachePolicy = config.build(kind, settings.cache_options, f"cache '{settings.cache}'")
    return policy


def _guidance(model: Model, settings: Settings) -> Guidance | None:
    if settings.guidance is None:
        if settings.guide:
            raise UserError("Options of a guidance method need its name.", "For example --guidance classifier_free.")
        return None
    kind = find("guidance", settings.guidance)
    built: GuidanceOptions = config.build(kind, settings.guide, f"guidance '{settings.guidance}'")
    return built.with_tokenizer(model.tokenizer)


def build_constraint(model: Model, settings: Settings) -> Constraint | None:
    """The constraint on the output; None without one.

    Raises:
        UserError: the model can't be constrained, or as ``constraints.build_all``.
    """
    if not settings.constraint:
        return None
    vectors = _predicts_vectors(model)
    if vectors or model.spec.edits:
        reason = "predicts vectors instead of tokens" if vectors else "may replace tokens that it has written"
        raise UserError(
            f"A model of family '{model.family_name}' can't be constrained, because it {reason}.",
            f"Use a masked model, or one of family '{'embedding' if vectors else 'expand'}'.",
        )
    if settings.start is not None:
        raise UserError("--start can't be combined with a constraint.", "Leave it out.")
    return build_all(settings.constraint, model.tokenizer)


def _predicts_vectors(model: Model) -> bool:
    return model.spec.network.outputs == "vectors"
