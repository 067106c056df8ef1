"""Request and error bodies: OpenAI's fields, and the table ``redraft`` with further generation settings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from redraft.errors import suggest
from redraft.serve.settings_schema import (
    CONVERSIONS,
    OPENAI_NAMES,
    SETTINGS,
    SPELLINGS,
    Strict,
    Table,
    optional,
)
from redraft.serve.tool_schema import Call, NamedTool, Tool

# Fields of OpenAI's API that are not supported: the values that ask for nothing are accepted.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "echo": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "store": (False,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "service_tier": ("auto", "default"),
}
# Fields of OpenAI's API that do not change the answer.
IGNORED = ("user", "metadata", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")
Name = Annotated[str, Field(min_length=1, max_length=200)]
Int = Annotated[int, CONVERSIONS[int]]
Count = Annotated[int, Field(ge=1, le=1 << 20), CONVERSIONS[int]]
_StopText = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63), CONVERSIONS[int]]
_SEED_RANGE = 1 << 62  # of seeds that leave room for the further answers, which get seed + 1, seed + 2 ...
_DEPTH = 100  # nested levels of a request body
# Settings that are fields of the request itself.
if TYPE_CHECKING:
    MaxTokens = int | None
    Temperature = float | None
    TopP = float | None
else:
    MaxTokens, Temperature, TopP = (optional(SETTINGS[name]) for name in ("max_new_tokens", "temperature", "top_p"))


def check_values(value: Any) -> None:
    """Check all values of a request body, at every level.

    Raises:
        ValueError: a string is not valid Unicode, a number is not finite, or the nesting is too deep.
    """
    pending = [(value, 0)]
    while pending:
        one, depth = pending.pop()
        if depth > _DEPTH:
            raise ValueError(f"The request body has more than {_DEPTH} nested levels.")
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"The request body contains {one}, which is not a finite number.")
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError as error:
                code = ord(one[error.start])
                raise ValueError(f"The request body is not valid Unicode: it contains U+{code:04X}.") from None
        elif isinstance(one, dict):
            pending += [(part, depth + 1) for part in (*one.keys(), *one.values())]
        elif isinstance(one, list):
            pending += [(part, depth + 1) for part in one]


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="Send the number of tokens in a last chunk.")
    include_obfuscation: bool | None = None


class Body(Strict):
    """What every request with a model has."""

    model: Name

    @property
    def streams(self) -> bool:
        """Is the answer sent as server-sent events?"""
        return False

    @property
    def seconds(self) -> float | None:
        """Seconds after which the request is given up; None: not set."""
        raise NotImplementedError


class _Request(Body):
    max_tokens: MaxTokens = Field(None, description=SETTINGS["max_new_tokens"].help)
    temperature: Temperature = Field(None, description=SETTINGS["temperature"].help)
    top_p: TopP = Field(None, description=SETTINGS["top_p"].help)
    n: Annotated[int, Field(ge=1, le=128), CONVERSIONS[int]] = Field(
        1, description="Number of answers per prompt; answer i has the seed + i."
    )
    stop: _StopText | Annotated[list[_StopText], Field(max_length=8)] | None = Field(
        None, description="Texts that end the answer; it does not include them."
    )
    seed: Seed | None = Field(
        None, description="The same seed gives the same text. If unset, a random seed; the response includes it."
    )
    stream: bool | None = Field(None, description="Send the answer as server-sent events, as far as it is final.")
    stream_options: StreamOptions | None = None
    diffusing: bool = Field(False, description="With stream: send the whole canvas after every step.")
    redraft: Table = Field(default_factory=Table, description="Generation settings beyond OpenAI's.")

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, value: Any) -> Any:
        """Accept unsupported fields that ask for nothing, and reject unknown ones. null means unset."""
        if not isinstance(value, dict):
            return value
        check_values(value)
        found: dict[str, Any] = {}
        moved: dict[str, Any] = {}
        for key, one in value.items():
            if key in cls.model_fields:
                found[key] = one
            elif key in IGNORED:
                continue
            elif key in UNSUPPORTED:
                if one is not None and one not in UNSUPPORTED[key]:
                    raise ValueError(f"The field '{key}' can't be honoured here. Leave it out.")
            elif key in SPELLINGS:
                moved[key] = one
            elif key in Table.model_fields:
                raise ValueError(f"Unknown field '{key}'. It belongs to the table redraft: set redraft.{key}.")
            else:
                raise ValueError(f"Unknown field '{key}'. {suggest(key, [*cls.model_fields, *UNSUPPORTED, *IGNORED])}")
        if moved:
            table = found.get("redraft")
            found["redraft"] = {**moved, **table} if isinstance(table, dict) else moved
        return {key: one for key, one in found.items() if one is not None}

    @property
    def streams(self) -> bool:
        """Is the answer sent as server-sent events?"""
        return bool(self.stream)

    @property
    def seconds(self) -> float | None:
        """Seconds after which the request is given up; None: not set."""
        return self.redraft.deadline

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def settings(self) -> dict[str, Any]:
        """The generation settings that the request sets."""
        values = vars(self)
        shared = {name: values[field] for name, field in OPENAI_NAMES.items() if values[field] is not None}
        if self.seed is not None:  # every seed of 64 bits is accepted; the response names the one that was used
            shared["seed"] = (self.seed + _SEED_RANGE // 2) % _SEED_RANGE - _SEED_RANGE // 2
        return {**self.redraft.settings(), **shared}


class JsonSchema(Strict):
    """A JSON Schema in OpenAI's format."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Strict):
    """The format of the answer: ``text``, OpenAI's ``json_schema``, or redraft's ``regex`` with a ``pattern``."""

    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: JsonSchema | None = None
    pattern: Annotated[str, Field(max_length=10_000)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        needed = {"json_schema": self.json_schema, "regex": self.pattern}
        if self.type in needed and needed[self.type] is None:
            field = "pattern" if self.type == "regex" else "json_schema"
            raise ValueError(f"response_format of type '{self.type}' needs the field '{field}'.")
        return self


Ids = Annotated[list[int], Field(min_length=1)]


class CompletionRequest(_Request):
    """The body of ``POST /v1/completions``."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=64)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=64)]
    ) = Field(description="One or several prompts, each a text or a list of token ids.")
    suffix: str | None = Field(
        None, description="Text after the answer: the model fills the max_tokens tokens between prompt and suffix."
    )
    logprobs: Annotated[int, Field(ge=0, le=20), CONVERSIONS[int]] | None = Field(
        None, description="Number of alternatives per token in the answer's log-probabilities."
    )
    best_of: Int | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise ValueError("'best_of' other than n can't be honoured here. Use redraft.candidates.")
        return self


class Part(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A message of a conversation."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(min_length=1)] | None = None
    tool_calls: Annotated[list[Call], Field(max_length=128)] | None = Field(None, description="Of the assistant.")
    tool_call_id: str | None = Field(None, description="The call whose result a message with the role 'tool' holds.")

    @model_validator(mode="after")
    def _check_content(self) -> Message:
        if self.content is None and self.role != "assistant":  # an assistant that called tools may have said nothing
            raise ValueError(f"A message with the role '{self.role}' needs a content: a text or a list of parts.")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("A message with the role 'tool' needs the field 'tool_call_id'.")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"A message with the role '{self.role}' has no 'tool_calls': the assistant calls tools.")
        return self

    def as_template_reads(self) -> dict[str, Any]:
        """The message as chat templates read it."""
        found: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.tool_calls:
            found["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            found["tool_call_id"] = self.tool_call_id
        return found

    @property
    def text(self) -> str:
        """The content as one text."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(_Request):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Count | None = Field(None, description="Newer name of max_tokens.")
    logprobs: bool = Field(False, description="Include the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0, le=20), CONVERSIONS[int]] | None = Field(
        None, description="Number of alternatives per token; needs logprobs."
    )
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = Field(None, description="Functions that it may call.")
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="none: no call. auto: text or calls. required: one call or more. A tool: one call of it."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call.")

    @model_validator(mode="after")
    def _check_fields(self) -> ChatRequest:
        self._check_tools()
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ. Set one of them.")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true.")
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("Two of the 'tools' have the same name.")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("'tool_choice' asks for a call, and there are no 'tools'.")
        if names and self.tool_choice != "none":
            if self.response_format is not None and self.response_format.type != "text":
                raise ValueError("'response_format' can't be combined with 'tools': their schemas are the format.")
            if self.stop:
                raise ValueError("'stop' can't be combined with 'tools': it could cut off a call.")

    def settings(self) -> dict[str, Any]:
        """The generation settings that the request sets."""
        given = super().settings()
        return given if self.max_completion_tokens is None else {**given, "max_new_tokens": self.max_completion_tokens}


_Size = Annotated[int, Field(ge=1, le=1 << 16)]
_Sizes = Annotated[list[_Size], Field(min_length=2, max_length=2)]


class InfillRequest(_Request):
    """The body of ``POST /v1/infill``: a text with holes.

    Either ``text``, in which ``[[3]]`` is a hole of three tokens, ``[[1-8]]`` one of one to eight, and ``[[?]]`` one of
    unknown size; or ``parts``, in which a number is a hole of that many tokens, and a pair of numbers a hole with that
    minimum and maximum.
    """

    text: str | None = Field(None, description="The text with holes [[3]], [[1-8]] or [[?]].")
    parts: Annotated[list[str | _Size | _Sizes], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="The text with holes as a list of texts and sizes."
    )
    prompt: str | None = Field(None, description="The prompt that the text answers, for models of prompt and answer.")

    @model_validator(mode="after")
    def _check_fields(self) -> InfillRequest:
        if (self.text is None) == (self.parts is None):
            raise ValueError("Set either 'text' or 'parts'.")
        if self.max_tokens is not None:
            raise ValueError("'max_tokens' has no effect here: the holes define the number of tokens. Leave it out.")
        return self


class ErrorDetail(BaseModel):
    """An error in OpenAI's format."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of an error response."""

    error: ErrorDetail
