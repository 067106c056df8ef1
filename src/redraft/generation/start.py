"""Start a generation: create a canvas and a loop from prompts, or from rows with free positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from redraft.canvas import Growth, make_canvas
from redraft.errors import UserError
from redraft.generation.first_pass import Row
from redraft.generation.length import LengthChoice, LengthSearch, TypicalLength
from redraft.generation.loop import Loop, Method
from redraft.generation.method import build_method, build_sampler
from redraft.generation.prompts import Prompt, answer_suffix, check_length, check_mask, prompt_ids
from redraft.generation.run import GenerationRun
from redraft.models.cpu import cpu_form
from redraft.samplers.base import Sampler, unwrapped
from redraft.types import Canvas, Network, Sampling, Spec, Step

if TYPE_CHECKING:
    from redraft.model import Model
    from redraft.settings import Settings, Weights


_CHOSEN = ("head", "typical", "search")  # ways in which the output length is chosen before generation


@dataclass(frozen=True)
class Rows:
    """Rows of token ids, with None at free positions, and whether their lengths may change."""

    rows: Sequence[Row]
    prompts: Sequence[int]  # length of each row's leading prompt
    fixed: bool = False  # every free position is filled; no length is chosen
    growth: Growth | None = None  # how far rows may grow; None: their length is fixed
    seeds: Sequence[int] | None = None  # of each row; None: that of the settings plus the number of the row


def start(model: Model, prompts: Sequence[Prompt], settings: Settings, keep_trace: bool = False) -> GenerationRun:
    """A generation from prompts. No forward pass runs until iteration, or until ``begin`` chooses the output length.

    Raises:
        UserError: a prompt is longer than the context, or this model does not support the settings.
    """
    return _run(
        model, _from_prompts(model, [prompt_ids(model, each) for each in prompts], settings), settings, keep_trace
    )


def start_prompts(
    model: Model, heads: Sequence[list[int]], settings: Settings, seeds: Sequence[int] | None = None
) -> GenerationRun:
    """``start`` for prompts as token ids.

    Args:
        seeds: of each row; None: that of the settings plus the number of the row.
    Raises:
        UserError: as ``start``.
    """
    return _run(model, replace(_from_prompts(model, heads, settings), seeds=seeds), settings, False)


def start_rows(
    model: Model, rows: Sequence[Row], prompts: Sequence[int], settings: Settings, growth: Growth | None = None
) -> GenerationRun:
    """A generation that fills every free position of rows.

    Args:
        prompts: length of each row's leading prompt. growth: how far rows may grow; None: their length is fixed.
    Raises:
        UserError: as ``start``.
    """
    return _run(model, Rows(rows, prompts, True, growth), settings, False)


def start_holes(
    model: Model,
    rows: Sequence[Row],
    prompts: Sequence[int],
    settings: Settings,
    free: int,
    growth: Growth | None = None,
) -> GenerationRun:
    """``start_rows`` for at most ``free`` tokens per row. The sampler takes at most as many steps."""
    steps = settings.steps if settings.steps is None else min(settings.steps, free)
    return start_rows(model, rows, prompts, replace(settings, steps=steps, max_new_tokens=free), growth)


def networks(model: Model, weights: Weights = "float32") -> dict[str, Network]:
    """The networks of a generation, by the names that requests give them.

    A drafter that reads the model's hidden states runs the model's network, too.

    Raises:
        UserError: weights other than float32 for a network that has no CPU form on this machine.
    """
    if model.drafter is None:
        return {"main": model.inference_network(weights)}
    other = model.drafter.inference_network(weights)
    return {"main": other} if model.drafter.target else {"main": model.inference_network(weights), "drafter": other}


def check_settings(model: Model, settings: Settings) -> None:
    """Check that a model supports settings. No forward pass runs.

    Raises:
        UserError: it does not.
    """
    any_token = 0 if not model.tokenizer.has("mask") or model.tokenizer.mask_id else 1
    rows = _from_prompts(model, [[any_token]], settings)
    method, spec, canvas, _ = _prepare(model, rows, settings)
    method.sampler.start(canvas, spec)
    cpu_form(model.network, settings.weights)


def _run(model: Model, rows: Rows, settings: Settings, keep_trace: bool) -> GenerationRun:
    method, spec, canvas, length = _prepare(model, rows, settings)
    trace: list[Step] | None = [] if keep_trace else None
    choice: LengthChoice | None = None
    if length == "search":
        choice = LengthSearch(answer_suffix(model), model.spec, prompt_ids(model, ""))
    elif length == "typical" and model.answer_lengths is not None:
        choice = TypicalLength(answer_suffix(model), model.answer_lengths)
    chooses, by_score = length in _CHOSEN, method.sampler.width == 1
    continues = not model.paired and method.constraint is None  # a constraint describes the text without that space
    loop = Loop(networks(model, settings.weights), method, spec)
    return GenerationRun(canvas, loop, model.tokenizer, by_score, trace, chooses, choice, continues)


def _prepare(model: Model, rows: Rows, settings: Settings) -> tuple[Method, Spec, Canvas, str]:
    """The method, the spec, the canvas, and how the output length is determined (see ``_length``)."""
    check_length(model, max(map(len, rows.rows)))
    method, spec = build_method(model, settings), model.spec
    if settings.ignore_eos:
        spec = spec.with_tokens(eos_id=-1)
    check_mask(model)
    if rows.growth is not None and method.constraint is not None:
        raise UserError("A constraint needs a fixed length, and this model or sampler changes it.", "Use another one.")
    length = "fixed" if rows.fixed else _length(model, settings)
    chosen = length in _CHOSEN
    if settings.candidates > 1 and not chosen and not rows.fixed:
        raise UserError(
            f"candidates = {settings.candidates} needs a model that chooses its output length before generation.",
            "Set candidates to 1.",
        )
    copies = method.sampler.width if method.sampler.width > 1 else settings.candidates if chosen else 1
    canvas = make_canvas(
        rows.rows,
        rows.prompts,
        spec,
        seeds=rows.seeds or [settings.seed + number for number in range(len(rows.rows))],
        copies=copies,
        growth=rows.growth,
        **Sampling.values(settings),
    )
    return method, spec, canvas, length


def _from_prompts(model: Model, heads: Sequence[list[int]], settings: Settings) -> Rows:
    """Rows of prompts followed by free positions."""
    for head in heads:
        check_length(model, len(head) + settings.max_new_tokens, prompt=len(head))
    if model.spec.variable_length:
        return _growing(model, heads, settings)
    if settings.start is not None:
        raise UserError(f"A model of family '{model.family_name}' does not change its length.", "Remove start.")
    sampler = build_sampler(model, settings)
    if sampler.initial_length:
        return _growing_by(sampler, heads, settings)
    return Rows(_with_free(heads, settings.max_new_tokens), [len(head) for head in heads])


def _growing_by(sampler: Sampler, heads: Sequence[list[int]], settings: Settings) -> Rows:
    """Rows whose length a sampler changes.

    Raises:
        UserError: settings that fix or choose the length.
    """
    if settings.ignore_eos or settings.length not in ("auto", "fixed") or settings.candidates > 1:
        raise UserError(
            f"Sampler '{unwrapped(sampler).name}' finds the length of an answer itself.",
            "Leave out length, candidates and ignore_eos.",
        )
    first, most = min(sampler.initial_length, settings.max_new_tokens), settings.max_new_tokens
    return Rows(
        _with_free(heads, first), [len(head) for head in heads], True, Growth([len(head) + most for head in heads])
    )


def _with_free(heads: Sequence[list[int]], free: int, suffix: Sequence[int] = ()) -> list[list[int | None]]:
    return [[*head, *[None] * free, *suffix] for head in heads]


def _growing(model: Model, heads: Sequence[list[int]], settings: Settings) -> Rows:
    """Rows that start short, or with a predicted length, and may grow to ``max_new_tokens``.

    A constraint counts positions, so under a constraint the length (predicted, or ``max_new_tokens``) is fixed.
    """
    if settings.ignore_eos:
        raise UserError("ignore_eos needs a fixed length, and this model changes it.", "Remove ignore_eos.")
    prompts, most = [len(head) for head in heads], settings.max_new_tokens
    if settings.constraint:
        return Rows(_with_free(heads, most), prompts)
    limits = [prompt + most for prompt in prompts]
    if settings.start is None and _length(model, settings) == "head":
        return Rows(_with_free(heads, most), prompts, growth=Growth(limits))
    suffix = answer_suffix(model)
    first = model.family.initial_length if settings.start is None else settings.start
    growth = Growth(limits, [[prompt] for prompt in prompts] if suffix else ())
    return Rows(_with_free(heads, min(first, most - len(suffix)), suffix), prompts, True, growth)


def _length(model: Model, settings: Settings) -> str:
    """How the output length is determined: ``head``, ``typical``, ``search`` or ``fixed``.

    Raises:
        UserError: this model does not support the length in the settings.
    """
    spec = model.spec
    if settings.length == "head" and not spec.network.length_head:
        raise UserError("This model has no length head.", "Use length 'search' or 'fixed'.")
    if settings.length == "typical" and model.answer_lengths is None:
        raise UserError("This model's files don't record the lengths of its training answers.", "Use length 'search'.")
    if settings.ignore_eos and settings.length in _CHOSEN:
        raise UserError(f"Length '{settings.length}' needs the end-of-text token.", "Remove ignore_eos.")
    ends_itself = spec.family.schedule is None or spec.network.attention.kind == "block" or spec.variable_length
    if settings.length in ("typical", "search") and ends_itself:
        raise UserError(f"A model of family '{model.family_name}' ends its output itself.", "Use length 'auto'.")
    if settings.length != "auto":
        return settings.length
    if settings.ignore_eos:
        return "fixed"
    if spec.network.length_head:
        return "head"
    if ends_itself or not model.paired:
        return "fixed"
    return "search" if model.answer_lengths is None else "typical"
