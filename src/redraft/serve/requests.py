"""From a checked request to texts for the engine: every translation between OpenAI's words and ours."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from redraft import infilling
from redraft.data import chat
from redraft.drafting import Drafting
from redraft.errors import UserError, suggest
from redraft.infilling import Hole, Plan
from redraft.model import Model
from redraft.serve import schema
from redraft.serve.engine import Job
from redraft.serve.mailbox import Mailbox
from redraft.serve.reading import Span
from redraft.serve.settings import Settings
from redraft.settings import Settings as Generation

MOST_UNSURE = 16  # holes of unknown size in one text: each is tried at several sizes


@dataclass(frozen=True)
class Wanted:
    """What a request wants written: rows to fill, one for each prompt, and how."""

    model: Model
    rows: list[list[int | None]]
    heads: list[int]  # length of each row's prompt
    spans: list[Span]
    generation: Generation
    stop: tuple[str, ...]
    top: int
    copies: int  # answers to each prompt
    plans: list[Plan | None]  # of texts with holes

    @property
    def prompt_tokens(self) -> int:
        return sum(sum(token is not None for token in row) for row in self.rows)

    def jobs(self, mailbox: Mailbox, request: schema._Request, deadline: float) -> list[Job]:
        """Texts in the order of OpenAI's choices: all answers to the first prompt, then to the second ..."""
        made = []
        for number in range(len(self.rows) * self.copies):
            prompt = number // self.copies
            made.append(
                Job(
                    drafting=self._drafting(prompt, number),
                    span=self.spans[prompt],
                    listen=mailbox.put,
                    stop=self.stop,
                    top=self.top,
                    streams=bool(request.stream),
                    frames=mailbox.room if request.stream and request.diffusing else None,
                    deadline=deadline,
                )
            )
        return made

    def _drafting(self, prompt: int, number: int) -> Drafting:
        drawn = replace(self.generation, seed=self.generation.seed + number)
        row, head, plan = self.rows[prompt], self.heads[prompt], self.plans[prompt]
        if plan is not None:
            return plan.draft(drawn)
        return self.model.compose([[token for token in row[:head] if token is not None]], drawn)


def completion(request: schema.CompletionRequest, model: Model, limits: Settings) -> Wanted:
    """``/v1/completions``: prompts, with a suffix a gap between two texts."""
    given = _prompts(request.prompt)
    heads = [_head(prompt, model, request.suffix is None) for prompt in given]
    generation = _generation(request, model, limits, max(map(len, heads)), request.max_tokens, request.suffix)
    top = request.logprobs or 0
    texts = [prompt if isinstance(prompt, str) else head for prompt, head in zip(given, heads, strict=True)]
    return _wanted(request, model, limits, heads, generation, request.stops, top, request.suffix, texts)


def conversation(request: schema.ChatRequest, model: Model, template: str | None, limits: Settings) -> Wanted:
    """``/v1/chat/completions``"""
    messages = [{"role": message.role, "content": message.text} for message in request.messages]
    head, ends = chat.prompt(messages, model.tokenizer, model.conditional, template)
    most = request.max_completion_tokens or request.max_tokens
    generation = _generation(request, model, limits, len(head), most)
    stops = (*request.stops, *ends)
    return _wanted(request, model, limits, [head], generation, stops, request.top_logprobs or 0)


def infill(request: schema.InfillRequest, model: Model, limits: Settings) -> Wanted:
    """``/v1/infill``: a text with holes."""
    parts = infilling.parse(request.text) if request.text is not None else [_part(part) for part in request.parts or []]
    unsure = sum(isinstance(part, Hole) and part.most > part.least for part in parts)
    if unsure > MOST_UNSURE:
        raise UserError(f"{unsure} holes of unknown size in one text: at most {MOST_UNSURE}.", "Name some sizes.")
    _check_texts(request.n, limits)
    plan = Plan.of(model, parts, request.prompt or "", model.settings())
    head = len(plan.layout.head)
    generation = _generation(request, model, limits, len(plan.row) - sum(plan.sizes), plan.free)
    span = Span(head, len(plan.row), filled=True, plan=plan)
    return Wanted(model, [plan.row], [head], [span], generation, request.stops, 0, request.n, [plan])


def _part(part: str | int | list[int]) -> str | Hole:
    return part if isinstance(part, str) else Hole(part, part) if isinstance(part, int) else Hole(*part)


def _wanted(
    request: schema.CompletionRequest | schema.ChatRequest,
    model: Model,
    limits: Settings,
    heads: list[list[int]],
    generation: Generation,
    stop: tuple[str, ...],
    top: int,
    suffix: str | None = None,
    prompts: Sequence[str | list[int]] = (),
) -> Wanted:
    """
    Args:
        prompts: with a ``suffix`` the prompts as they were given; those that are ids may be ``heads``.
    """
    _check_texts(len(heads) * request.n, limits)
    if top and generation.sampler == "autoregressive" and generation.options.get("beams", 1) != 1:
        raise UserError("logprobs of alternatives are not defined for beams.", "Leave out beams, or ask for none.")
    most = generation.max_new_tokens
    plans: list[Plan | None] = [None] * len(heads)
    if suffix is not None:
        plans = [Plan.of(model, [Hole(most, most), suffix], prompt, generation) for prompt in prompts]
    rows = [[*head, *[None] * most] if plan is None else plan.row for head, plan in zip(heads, plans, strict=True)]
    begin = [len(head) if plan is None else len(plan.layout.head) for head, plan in zip(heads, plans, strict=True)]
    spans = [Span(at, at + most, plan is not None, plan) for at, plan in zip(begin, plans, strict=True)]
    return Wanted(
        model=model,
        rows=rows,
        heads=begin,
        spans=spans,
        generation=generation,
        stop=stop,
        top=top,
        copies=request.n,
        plans=plans,
    )


def constraint(wanted: schema.ResponseFormat | None) -> dict[str, Any]:
    """What a ``response_format`` demands, as generation settings hold it: kind -> text. Empty: anything may be written.

    Raises:
        UserError: there is no such constraint.
    """
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type == "json_object":
        raise UserError("response_format 'json_object' is not available.", "Give a json_schema.")
    if wanted.json_schema is not None:
        return {"json_schema": json.dumps(wanted.json_schema.schema_)}
    return {"regex": wanted.pattern}


def _generation(
    request: schema.CompletionRequest | schema.ChatRequest | schema.InfillRequest,
    model: Model,
    limits: Settings,
    given: int,
    most: int | None,
    suffix: str | None = None,
) -> Generation:
    """The model's own settings, overridden by the request's: what offline generation would be given."""
    own = request.redraft
    context = model.network.config.max_length
    room = context - given - (0 if suffix is None else len(model.tokenizer.encode(suffix)) + 1)
    if room < 1:
        raise UserError(f"the prompt has {given} tokens; the context of this model is {context}.", "Shorten it.")
    if limits.max_tokens and most is not None and most > limits.max_tokens:
        raise UserError(f"max_tokens = {most} is more than this server allows ({limits.max_tokens}).")
    if most is not None and most > room:
        raise UserError(f"prompt and max_tokens = {most} exceed the context of {context}; {room} tokens are left.")
    if most is None:
        most = min(room, model.settings().max_new_tokens, limits.max_tokens or room)
    _check_options(request, model)
    form = constraint(None if isinstance(request, schema.InfillRequest) else request.response_format)
    chosen = model.settings(
        max_new_tokens=most,
        sampler=own.sampler,
        steps=own.steps,
        options=own.options or None,
        temperature=request.temperature,
        top_k=own.top_k,
        top_p=request.top_p,
        candidates=own.candidates if suffix is None else None,
        length=own.length,
        cache=own.cache,
        cache_options=own.cache_options or None,
        seed=secrets.randbits(48) if request.seed is None else request.seed,
        constraint=form or None,
    )
    return chosen


def _check_options(request: schema._Request, model: Model) -> None:
    from redraft.registry import find, names

    own = request.redraft
    if own.sampler is not None and own.sampler not in names("samplers"):
        raise UserError(f"unknown sampler '{own.sampler}'.", suggest(own.sampler, names("samplers")))
    if own.cache is not None and own.cache not in ("none", *names("caches")):
        raise UserError(f"unknown cache '{own.cache}'.", suggest(own.cache, ("none", *names("caches"))))
    chosen = model.settings(sampler=own.sampler)
    kind = type(model.family.sampler()) if chosen.sampler is None else find("samplers", chosen.sampler)
    for name in own.options:
        if name in getattr(kind, "files", ()):
            raise UserError(f"option '{name}' names a file: a request can't.", "Set it where the model is saved.")


def _check_texts(count: int, limits: Settings) -> None:
    if count > limits.max_texts:
        raise UserError(f"{count} answers in one request: at most {limits.max_texts}.", "Send several requests.")


def _prompts(prompt: Any) -> list[Any]:
    """One prompt or several, each a text or token ids."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def _head(prompt: str | list[int], model: Model, asked: bool) -> list[int]:
    """Ids of a prompt, which is ``asked`` where it is all there is.

    One given as ids is taken as it is, as offline: whatever marks it needs, it has.
    """
    if isinstance(prompt, str):
        return model.asked(prompt) if asked else model.prompt_ids(prompt)
    tokenizer = model.tokenizer
    hole = tokenizer.mask_id if tokenizer.has("mask") else -1
    wrong = [token for token in prompt if not 0 <= token < tokenizer.vocab_size or token == hole]
    if wrong:
        raise UserError(f"{wrong[0]} is not a token id that a prompt may hold (vocabulary {tokenizer.vocab_size}).")
    return prompt


def now() -> int:
    """Seconds since 1970, as OpenAI's objects carry them."""
    return int(time.time())
