"""The likelihood of texts: implementation of ``Model.score``, ``Model.rolling`` and ``Model.rank``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from redraft import likelihood
from redraft.errors import UserError, suggest
from redraft.generation.method import build_method
from redraft.generation.prompts import check_length, longest, prompt_ids
from redraft.likelihood import Bound
from redraft.registry import find
from redraft.settings import Settings

if TYPE_CHECKING:
    from redraft.model import Model

Measure = Literal["sum", "token", "byte"]


@dataclass(frozen=True)
class ScoredOption:
    """An option and its likelihood."""

    option: str
    score: float  # log p or its lower bound: in total, per token, or per byte
    stderr: float  # Monte-Carlo error of ``score``; 0 where it is exact


def score(
    model: Model,
    prompt: str,
    continuation: str,
    samples: int,
    seed: int,
    sampler: str | None,
    options: Mapping[str, Any] | None,
) -> Bound:
    """See ``Model.score``.

    Raises:
        UserError: a sequence longer than the context, or a sampler whose likelihood can't be computed.
    """
    encode = model.tokenizer.encode_target if model.paired else model.tokenizer.encode
    head, tail = prompt_ids(model, prompt), encode(continuation)
    check_length(model, len(head) + len(tail), most=longest(model))
    size = len(continuation.encode())
    if sampler is None:
        objective = model.family.objective()
        return likelihood.score(model.network, head, tail, objective, model.spec, samples, seed, size)
    batch = likelihood.one_row(head, tail, size)
    settings = Settings(max_new_tokens=max(1, len(tail)), sampler=sampler, options=options or {})
    takes_steps = any(field.name == "steps" for field in fields(find("samplers", sampler)))
    if "steps" not in settings.options and takes_steps:
        settings = replace(settings, steps=max(1, len(tail)))
    return likelihood.sampler_likelihood(
        model.network, [batch], build_method(model, settings).sampler, model.spec, samples, seed
    )


def rolling(model: Model, text: str, stride: int, samples: int, seed: int) -> Bound:
    """See ``Model.rolling``.

    Raises:
        UserError: the model was trained on pairs, or the text is empty.
    """
    if model.paired:
        raise UserError("This model answers prompts and has no likelihood of plain text.", "Use score.")
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
    window = model.network.config.max_length
    objective, size = model.family.objective(), len(text.encode())
    return likelihood.rolling(model.network, ids, objective, model.spec, window, stride, samples, seed, size)


def rank(
    model: Model,
    prompt: str,
    options: Sequence[str],
    by: Measure,
    samples: int,
    seed: int,
    sampler: str | None,
    sampler_options: Mapping[str, Any] | None,
) -> list[ScoredOption]:
    """See ``Model.rank``.

    Raises:
        UserError: fewer than two options, or an empty one.
    """
    if len(options) < 2:
        raise UserError("Ranking needs at least two options.", "Add options.")
    if by not in ("sum", "token", "byte"):
        raise UserError(f"Unknown measure '{by}'.", suggest(by, ("sum", "token", "byte")))
    found = []
    for option in options:
        bound = score(model, prompt, option, samples, seed, sampler, sampler_options)
        unit = {"sum": 1, "token": bound.tokens, "byte": max(1, bound.bytes)}[by]
        found.append(ScoredOption(option, -bound.nats / unit, bound.stderr / unit))
    return sorted(found, key=lambda one: -one.score)
