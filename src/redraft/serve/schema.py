"""What requests may say. OpenAI's fields, and ours in one place: ``diffusing`` and the table ``redraft``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from redraft.errors import suggest

# Spellings of other tools, taken where a person would paste them (top level or in "redraft") -> ours in "redraft".
SPELLINGS = {
    "diffusion_steps": "steps",  # LLaDA and Dream scripts
    "num_steps": "steps",
    "block_length": "block",
    "block_size": "block",
}
_SAMPLER_FIELDS = ("block", "order", "threshold")  # fields of samplers that may be named without "options"
# Fields of OpenAI's that are taken as long as they ask for nothing: what they would do is not done here.
NEUTRAL: dict[str, tuple[Any, ...]] = {
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
_IGNORED = ("user", "metadata", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")  # change no answer
Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=1 << 20)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_text(value: Any) -> None:
    """Raises ValueError where a string anywhere in a JSON value is not valid Unicode: nothing could be done with it."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"the body is not valid Unicode: it holds U+{ord(one[error.start]):04X}") from None
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one


class Own(_Strict):
    """The table ``redraft``: how to denoise. Unset fields are the model's own generation settings."""

    sampler: Name | None = Field(None, description="Name of a sampler; /v1/models lists those of a model.")
    steps: Annotated[int, Field(ge=1, le=1 << 16)] | None = Field(None, description="Denoising steps.")
    options: dict[str, bool | int | float | str] = Field({}, description="Further fields of the sampler.")
    candidates: Annotated[int, Field(ge=1, le=256)] | None = Field(None, description="Output lengths tried.")
    length: Literal["auto", "head", "search", "fixed"] | None = Field(None, description="How the length comes about.")
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] | None = Field(None, description="Draw from the k likeliest.")
    cache: Name | None = Field(None, description="What passes may reuse: exact (default), none, or a file of caches/.")
    cache_options: dict[str, bool | int | float | str] = Field({}, description="Fields of the cache policy.")
    deadline: Annotated[float, Field(gt=0, le=86_400)] | None = Field(
        None, description="Seconds after which the request is given up (408)."
    )

    @model_validator(mode="before")
    @classmethod
    def _spellings(cls, value: Any) -> Any:
        """Other tools' names for our fields, and fields of the sampler named without ``options``."""
        if not isinstance(value, dict):
            return value
        found: dict[str, Any] = {}
        options = value.get("options", {})
        for key, one in value.items():
            name = SPELLINGS.get(str(key), str(key))
            if name in _SAMPLER_FIELDS and isinstance(options, dict):
                options = {**options, name: one}
            elif name != "options":
                found[name] = one
        return {**found, "options": options}


class _Request(_Strict):
    model: Name
    max_tokens: Count | None = Field(None, description="Most tokens to write. Unset: the model's own setting.")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="0 takes the likeliest token. Unset: the model's own setting, as offline."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = Field(1, description="Answers to a prompt; the i-th has seed + i.")
    stop: (
        Annotated[str, Field(min_length=1, max_length=200)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=8)]
        | None
    ) = None
    seed: Annotated[int, Field(gt=-(1 << 61), lt=1 << 61)] | None = Field(
        None, description="Same seed, same text, in whatever company. Unset: a fresh one, told in the answer."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    diffusing: bool = Field(False, description="With stream: every step as a picture of the whole canvas.")
    redraft: Own = Own()  # type: ignore[call-arg]

    @model_validator(mode="before")
    @classmethod
    def _openai(cls, value: Any) -> Any:
        """Take what asks for nothing, say of the rest why it is not done, and mend spellings."""
        if not isinstance(value, dict):
            return value
        check_text(value)
        found: dict[str, Any] = {}
        moved: dict[str, Any] = {}
        for key, one in value.items():
            if key in cls.model_fields:
                found[key] = one
            elif key in _IGNORED:
                continue
            elif key in NEUTRAL:
                if one is not None and one not in NEUTRAL[key]:
                    raise ValueError(f"'{key}' can't be honoured here: leave it out")
            elif key in SPELLINGS:
                moved[key] = one
            else:
                known = [*cls.model_fields, *NEUTRAL, *_IGNORED]
                raise ValueError(f"unknown field '{key}'. {suggest(key, known)}")
        if moved:
            own = found.get("redraft")
            found["redraft"] = {**moved, **own} if isinstance(own, dict) else moved
        for key in ("temperature", "top_p"):
            if isinstance(found.get(key), int) and not isinstance(found[key], bool):
                found[key] = float(found[key]) if abs(found[key]) < 1 << 53 else float("inf")
        for key in ("max_tokens", "max_completion_tokens", "n", "seed", "logprobs", "top_logprobs", "best_of"):
            if key in found:
                found[key] = _whole(found[key])
        # openai's clients write null for what is unset
        nullable = ("n", "diffusing", "redraft", "logprobs", "best_of")
        return {k: v for k, v in found.items() if v is not None or k not in nullable}

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(_Strict):
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_Strict):
    """``text``, OpenAI's ``json_schema``, or ours: ``regex`` with a ``pattern``."""

    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: JsonSchema | None = None
    pattern: Annotated[str, Field(max_length=10_000)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        needed = {"json_schema": self.json_schema, "regex": self.pattern}
        if self.type in needed and needed[self.type] is None:
            raise ValueError(f"type '{self.type}' needs '{'pattern' if self.type == 'regex' else 'json_schema'}'")
        return self


Ids = Annotated[list[int], Field(min_length=1)]


class CompletionRequest(_Request):
    """``POST /v1/completions``"""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=64)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=64)]
    )
    suffix: str | None = Field(None, description="What follows the text: the model fills in max_tokens tokens between.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: int | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _alone(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise ValueError("'best_of' other than n can't be honoured here: use redraft.candidates")
        return self


class Part(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(_Request):
    """``POST /v1/chat/completions``"""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("'max_tokens' and 'max_completion_tokens' differ: give one")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs logprobs: true")
        return self


_Size = Annotated[int, Field(ge=1, le=1 << 16)]
_Sizes = Annotated[list[_Size], Field(min_length=2, max_length=2)]


class InfillRequest(_Request):
    """``POST /v1/infill``: a text with holes. Either ``text``, where ``[[3]]`` is a hole of three tokens, ``[[1-8]]``
    one of one to eight and ``[[?]]`` one of unknown size; or ``parts``, in which a number is a hole of that many tokens
    and a pair of numbers one of so many at least and at most."""

    text: str | None = None
    parts: Annotated[list[str | _Size | _Sizes], Field(min_length=1, max_length=1000)] | None = None
    prompt: str | None = Field(None, description="What the text answers, for models trained on pairs.")

    @model_validator(mode="after")
    def _one(self) -> InfillRequest:
        if (self.text is None) == (self.parts is None):
            raise ValueError("give either 'text' or 'parts'")
        if self.max_tokens is not None:
            raise ValueError("'max_tokens' has no meaning here: the holes say how much is written")
        return self


class ApiError(BaseModel):
    """OpenAI's shape of an error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ApiErrorBody(BaseModel):
    error: ApiError
