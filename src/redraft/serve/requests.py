"""From a validated request to sequences for the engine: settings, prompts, spans and limits."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from redraft.data import chat
from redraft.data.tools import CallForm
from redraft.errors import UserError
from redraft.generation.holes import Hole
from redraft.generation.infill import InfillPlan, parse
from redraft.generation.method import build_sampler
from redraft.generation.prompts import answerable_prompt_ids, prompt_ids
from redraft.generation.run import GenerationRun
from redraft.generation.start import start_prompts
from redraft.model import Model
from redraft.registry import find
from redraft.serve import schema
from redraft.serve.config import ServerConfig
from redraft.serve.event_queue import EventQueue
from redraft.serve.incremental_text import Span
from redraft.serve.jobs import Job
from redraft.serve.tool_calls import conversation_of
from redraft.settings import Settings

Checkpoint = Callable[[], None]
Request = schema.CompletionRequest | schema.ChatRequest | schema.InfillRequest

_MAX_OPEN_HOLES = 16  # holes of unknown size in one text; each is tried with several sizes


@dataclass(frozen=True)
class Target:
    """One row to fill: the prompt, the positions of the answer, and where they are."""

    row: list[int | None]  # token ids; None: to be generated
    prompt_length: int
    span: Span
    plan: InfillPlan | None = None  # set for a text with holes


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate for a request: ``n`` answers for each target."""

    model: Model
    targets: list[Target]
    settings: Settings
    n: int
    stop_texts: tuple[str, ...] = ()
    top_logprobs: int = 0
    left_out: chat.LeftOut = chat.LeftOut()  # messages of the conversation that the model doesn't get
    call_form: CallForm | None = None  # how the answers call tools; None: they are text

    @property
    def prompt_tokens(self) -> int:
        """Number of given tokens."""
        return sum(sum(token is not None for token in target.row) for target in self.targets)

    def jobs(self, events: EventQueue, request: schema._Request, deadline: float) -> list[Job]:
        """Jobs in the order of OpenAI's choices: all answers to the first prompt, then all to the second ..."""
        pairs = [(target, index) for target in self.targets for index in range(self.n)]
        return [
            Job(
                run=self._run(target, replace(self.settings, seed=self.settings.seed + number)),
                span=target.span,
                on_event=events.put,
                stop_texts=self.stop_texts,
                top_logprobs=self.top_logprobs,
                streams=bool(request.stream),
                wants_frame=events.has_room_for_frame if request.stream and request.diffusing else None,
                deadline=deadline,
            )
            for number, (target, _) in enumerate(pairs)
        ]

    def _run(self, target: Target, settings: Settings) -> GenerationRun:
        if target.plan is not None:
            return target.plan.start(settings)
        prompt = [token for token in target.row[: target.prompt_length] if token is not None]
        return start_prompts(self.model, [prompt], settings)


def completion(
    request: schema.CompletionRequest, model: Model, config: ServerConfig, checkpoint: Checkpoint
) -> GenerationRequest:
    """``/v1/completions``: continue prompts, or fill the gap between a prompt and a suffix.

    Args:
        checkpoint: called before every forward pass; it may raise an exception.
    Raises:
        UserError: the request can't be fulfilled.
    """
    prompts = _prompts(request.prompt)
    _check_answers(len(prompts) * request.n, config)
    heads = [_prompt_ids(prompt, model, request.suffix is None) for prompt in prompts]
    settings = _settings(request, model, config, max(map(len, heads)), request.suffix)
    top_logprobs = request.logprobs or 0
    _check_logprobs(top_logprobs, settings)
    size = settings.max_new_tokens
    if request.suffix is None:
        targets = [_continuation(head, size) for head in heads]
    else:
        # A prompt that is a text stays one, so that the plan can move a space at its end into the gap.
        given = [prompt if isinstance(prompt, str) else head for prompt, head in zip(prompts, heads, strict=True)]
        targets = [_gap(model, prompt, size, request.suffix, settings, checkpoint) for prompt in given]
    return GenerationRequest(model, targets, settings, request.n, request.stop_texts, top_logprobs)


def conversation(
    request: schema.ChatRequest, model: Model, chat_template: str | None, config: ServerConfig
) -> GenerationRequest:
    """``/v1/chat/completions``: answer a conversation.

    Raises:
        UserError: the request can't be fulfilled.
    """
    _check_answers(request.n, config)
    talk = conversation_of(request, model.tokenizer, chat_template)
    head, stop_texts = chat.prompt(talk.messages, model.tokenizer, model.paired, chat_template, talk.tools)
    settings = _settings(request, model, config, len(head), constraint=talk.constraint)
    top_logprobs = request.top_logprobs or 0
    _check_logprobs(top_logprobs, settings)
    target = _continuation(head, settings.max_new_tokens)
    stops = (*request.stop_texts, *stop_texts)
    left_out = talk.left_out(model.tokenizer, model.paired, chat_template)
    return GenerationRequest(model, [target], settings, request.n, stops, top_logprobs, left_out, talk.form)


def infill(
    request: schema.InfillRequest, model: Model, config: ServerConfig, checkpoint: Checkpoint
) -> GenerationRequest:
    """``/v1/infill``: fill the holes of a text.

    Args:
        checkpoint: called before every forward pass; it may raise an exception.
    Raises:
        UserError: the request can't be fulfilled.
    """
    _check_answers(request.n, config)
    if request.text is not None:
        parts = parse(request.text)
    else:
        parts = [_part(part) for part in request.parts or []]
    unknown = sum(isinstance(part, Hole) and part.most > part.least for part in parts)
    if unknown > _MAX_OPEN_HOLES:
        raise UserError(
            f"The text has {unknown} holes of unknown size; at most {_MAX_OPEN_HOLES} are allowed.",
            "Give some holes a size.",
        )
    plan = InfillPlan.of(model, parts, request.prompt or "", model.settings(), checkpoint)
    head = len(plan.layout.head)
    settings = _settings(request, model, config, len(plan.row) - sum(plan.sizes), new_tokens=plan.free)
    target = Target(plan.row, head, Span(head, len(plan.row), filled=True, plan=plan), plan)
    return GenerationRequest(model, [target], settings, request.n, request.stop_texts)


def _part(part: str | int | list[int]) -> str | Hole:
    return part if isinstance(part, str) else Hole(part, part) if isinstance(part, int) else Hole(*part)


def _continuation(head: list[int], size: int) -> Target:
    return Target([*head, *[None] * size], len(head), Span(len(head), len(head) + size))


def _gap(
    model: Model, prompt: str | list[int], size: int, suffix: str, settings: Settings, checkpoint: Checkpoint
) -> Target:
    plan = InfillPlan.of(model, [Hole(size, size), suffix], prompt, settings, checkpoint)
    begin = len(plan.layout.head)
    return Target(plan.row, begin, Span(begin, begin + size, filled=True, plan=plan), plan)


def constraint_of(request: schema._Request, model: Model, chat_template: str | None) -> Mapping[str, Any]:
    """The constraints on the answers to a request: its own, else those of the model. Empty: none.

    Raises:
        UserError: the format is not supported.
    """
    own: Mapping[str, Any] = {}
    if isinstance(request, schema.ChatRequest):
        own = conversation_of(request, model.tokenizer, chat_template).constraint
    if not own and not isinstance(request, schema.InfillRequest):
        own = format_constraint(vars(request).get("response_format"))
    return own or model.settings().constraint


def format_constraint(response_format: schema.ResponseFormat | None) -> dict[str, Any]:
    """The constraint of a ``response_format`` as in ``Settings.constraint``: kind -> text. Empty: no constraint.

    Raises:
        UserError: the format is not supported.
    """
    if response_format is None or response_format.type == "text":
        return {}
    if response_format.type == "json_object":
        raise UserError("response_format 'json_object' is not supported.", "Use json_schema.")
    if response_format.json_schema is not None:
        return {"json_schema": json.dumps(response_format.json_schema.schema_)}
    return {"regex": response_format.pattern}


def _settings(
    request: Request,
    model: Model,
    config: ServerConfig,
    given: int,
    suffix: str | None = None,
    new_tokens: int | None = None,
    constraint: Mapping[str, Any] | None = None,
) -> Settings:
    """The model's own settings, overridden by those of the request, as in offline generation.

    Args:
        given: number of given tokens, without those of the suffix.
        new_tokens: number of new tokens, if the request's text defines it.
        constraint: that of the answer, where it is not that of the ``response_format``.
    """
    chosen = request.settings()
    wanted, name = (chosen.get("max_new_tokens"), "max_tokens") if new_tokens is None else (new_tokens, "size of holes")
    room = _room(model, given, suffix)
    _check_new_tokens(wanted, name, room, config, model)
    most = min(room, model.settings().max_new_tokens, config.max_tokens or room)
    chosen["max_new_tokens"] = most if wanted is None else wanted
    if suffix is not None:
        chosen.pop("candidates", None)  # the gap has a fixed size
    if not isinstance(request, schema.InfillRequest):
        chosen["constraint"] = constraint or format_constraint(request.response_format) or None
    chosen.setdefault("seed", secrets.randbits(48))
    _check_options(chosen, model)
    settings = model.settings(**chosen)
    holes = suffix is not None or new_tokens is not None
    _check_rows(settings, 1 if holes else settings.candidates, model, config)
    return settings


def _room(model: Model, given: int, suffix: str | None) -> int:
    """Number of positions that the context has left for new tokens.

    Raises:
        UserError: there are none.
    """
    context = model.network.config.max_length
    room: int = context - given - (0 if suffix is None else len(model.tokenizer.encode(suffix)) + 1)
    if room < 1:
        raise UserError(
            f"The prompt has {given} tokens, and the model's context has {context} positions.", "Shorten the prompt."
        )
    return room


def _check_new_tokens(wanted: int | None, name: str, room: int, config: ServerConfig, model: Model) -> None:
    if wanted is None:
        return
    if config.max_tokens and wanted > config.max_tokens:
        raise UserError(
            f"{name} = {wanted} is more than this server allows.", f"It allows at most {config.max_tokens} new tokens."
        )
    if wanted > room:
        context = model.network.config.max_length
        raise UserError(
            f"The prompt and {name} = {wanted} exceed the context of {context} positions.",
            f"There is room for {room} new tokens.",
        )


def _check_options(chosen: dict[str, Any], model: Model) -> None:
    """Reject an unknown sampler, and options that name a file: a request must not open files.

    Raises:
        UserError: as above.
    """
    sampler = model.settings(sampler=chosen.get("sampler")).sampler
    kinds = {"options": type(model.family.sampler()) if sampler is None else find("samplers", sampler)}
    if chosen.get("cache", "none") != "none":
        kinds["cache_options"] = find("caches", chosen["cache"])
    for field, kind in kinds.items():
        for name in chosen.get(field, {}):
            if name in kind.files:
                raise UserError(
                    f"The option '{name}' names a file, which a request can't do.",
                    "The operator of the server can set it in the model's generation_config.json.",
                )


def _check_rows(settings: Settings, candidates: int, model: Model, config: ServerConfig) -> None:
    """Check the number of canvas rows of an answer before anything is allocated."""
    rows = max(build_sampler(model, settings).width, candidates)
    if rows > config.batch:
        raise UserError(
            f"The request needs {rows} candidates or beams; this server runs at most {config.batch}.", "Ask for fewer."
        )


def _check_answers(count: int, config: ServerConfig) -> None:
    if count > config.max_answers:
        raise UserError(
            f"The request asks for {count} answers; at most {config.max_answers} are allowed.", "Send several requests."
        )


def _check_logprobs(top_logprobs: int, settings: Settings) -> None:
    if top_logprobs and settings.sampler == "autoregressive" and settings.options.get("beams", 1) != 1:
        raise UserError("Beam search has no log-probabilities of alternatives.", "Leave out beams or the alternatives.")


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[Any]:
    """The prompts of a completion request, each a text or token ids."""
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


def _prompt_ids(prompt: str | list[int], model: Model, complete: bool) -> list[int]:
    """Token ids of a prompt. Those of a request are used as they are, without adding special tokens.

    Args:
        complete: the prompt is all that is given: there is no suffix.
    Raises:
        UserError: the prompt is empty or contains an invalid id.
    """
    if isinstance(prompt, str):
        return answerable_prompt_ids(model, prompt) if complete else prompt_ids(model, prompt)
    tokenizer = model.tokenizer
    mask_id = tokenizer.mask_id if tokenizer.has("mask") else -1
    invalid = [token for token in prompt if not 0 <= token < tokenizer.vocab_size or token == mask_id]
    if invalid:
        raise UserError(
            f"The prompt contains {invalid[0]}, which is not a token id that a prompt may contain.",
            f"The vocabulary has {tokenizer.vocab_size} tokens; the mask token is not allowed.",
        )
    return prompt
