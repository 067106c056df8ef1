"""Response bodies in OpenAI's format, complete and streamed."""

from __future__ import annotations

import codecs
import json
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from redraft.generation.method import build_sampler
from redraft.options import echo
from redraft.samplers.base import unwrapped
from redraft.serve import schema
from redraft.serve.incremental_text import GeneratedText, Token
from redraft.serve.requests import GenerationRequest
from redraft.serve.tool_calls import CallReader

_IMPOSSIBLE = -9999.0  # OpenAI's log-probability of what can't be generated
Frame = dict[str, Any]  # a picture of the canvas: see ``IncrementalDecoder.frame``


@dataclass
class ResponseBuilder:
    """Builds the response of one route: ``complete``, or the chunks of a stream.

    A stream is ``first_chunks``, then ``chunk`` and ``last_chunk`` for each sequence, then ``closing_chunks``.
    Subclasses define the format of a choice.
    """

    request: schema._Request
    generation: GenerationRequest
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    object: ClassVar[str] = ""  # OpenAI's type of the complete response
    chunk_object: ClassVar[str] = ""  # and of a chunk

    def complete(self, texts: Sequence[GeneratedText]) -> dict[str, Any]:
        """The complete response."""
        choices = [self._choice(index, text) for index, text in enumerate(texts)]
        head = {**self._head(self.object), "choices": choices, "usage": self.usage(texts)}
        return {**head, **self._warnings(), "redraft": self.settings}

    def first_chunks(self) -> list[dict[str, Any]]:
        """Chunks before any text."""
        return []

    def chunk(self, index: int, text: str, frame: Frame | None) -> dict[str, Any]:
        """More text of one sequence, with a picture of its canvas if the request asks for it."""
        chunk = {**self._head(self.chunk_object), "choices": [self._delta(index, text)]}
        return chunk if frame is None else {**chunk, "diffusion": {"index": index, **frame}}

    def last_chunk(self, index: int, text: str, result: GeneratedText, frame: Frame | None) -> dict[str, Any]:
        """The end of one sequence."""
        chunk = self.chunk(index, text, frame)
        finish = self._finish(index, result, chunk["choices"][0])
        chunk["choices"][0] |= {"finish_reason": finish, **self._details(result), **_statistics(result)}
        return {**chunk, "redraft": self.settings}

    def closing_chunks(self, texts: Sequence[GeneratedText]) -> list[dict[str, Any]]:
        """Chunks after all text."""
        options = self.request.stream_options
        if options is None or not options.include_usage:
            return []
        return [{**self._head(self.chunk_object), "choices": [], "usage": self.usage(texts)}]

    def usage(self, texts: Sequence[GeneratedText]) -> dict[str, Any]:
        """Numbers of tokens."""
        given, generated = self.generation.prompt_tokens, sum(text.new_tokens for text in texts)
        return {"prompt_tokens": given, "completion_tokens": generated, "total_tokens": given + generated}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that were used. Offline generation with the same settings gives the same text."""
        used = self.generation.settings
        sampler = unwrapped(build_sampler(self.generation.model, used))
        return {**echo(used, "http"), "sampler": sampler.name, "options": dict(vars(sampler))}

    def _warnings(self) -> dict[str, Any]:
        """What the client should know about its request; empty if there is nothing."""
        found = self.generation.left_out
        if not found:
            return {}
        said = {"code": "messages_left_out", "message": f"Messages were {found}.", "messages": list(found.messages)}
        return {"warnings": [said]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}

    def _choice(self, index: int, text: GeneratedText) -> dict[str, Any]:
        """A complete choice."""
        raise NotImplementedError

    def _delta(self, index: int, text: str) -> dict[str, Any]:
        """A choice of a chunk."""
        raise NotImplementedError

    def _finish(self, index: int, text: GeneratedText, choice: dict[str, Any]) -> str:
        """The reason why a streamed choice ended; ``choice`` gets what was held back."""
        return text.finish

    def _details(self, text: GeneratedText) -> dict[str, Any]:
        """Further fields of a finished choice."""
        return {}


class CompletionResponse(ResponseBuilder):
    """The response of ``/v1/completions``."""

    object = chunk_object = "text_completion"

    def _choice(self, index: int, text: GeneratedText) -> dict[str, Any]:
        head = {"index": index, "text": text.text, "finish_reason": text.finish}
        return {**head, **self._details(text), **_statistics(text)}

    def _delta(self, index: int, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": None, "logprobs": None}

    def _details(self, text: GeneratedText) -> dict[str, Any]:
        assert isinstance(self.request, schema.CompletionRequest)
        if self.request.logprobs is None:
            return {"logprobs": None}
        places = [at for at, token in enumerate(text.tokens) if token.log_p is not None]
        tokens, offsets = [text.tokens[at] for at in places], _offsets(text)
        alternatives = [{one.text: _finite(one.log_p) for one in reversed(token.alternatives)} for token in tokens]
        return {
            "logprobs": {
                "tokens": [token.text for token in tokens],
                "token_logprobs": [_finite(token.log_p) for token in tokens],
                "top_logprobs": [one or None for one in alternatives] if self.request.logprobs else None,
                "text_offset": [offsets[at] for at in places],
            }
        }


class ChatResponse(ResponseBuilder):
    """The response of ``/v1/chat/completions``."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    @cached_property
    def _readers(self) -> list[CallReader]:
        """Of each answer of a stream; none if the answers are text."""
        form = self.generation.call_form
        return [] if form is None else [CallReader(form) for _ in range(self.generation.n)]

    def first_chunks(self) -> list[dict[str, Any]]:
        """The role of each answer, and the warnings with the first."""
        role = {"role": "assistant", "content": None if self._readers else ""}
        found: list[dict[str, Any]] = [
            {**self._head(self.chunk_object), "choices": [{"index": index, "delta": role, "finish_reason": None}]}
            for index in range(self.generation.n)
        ]
        found[0] |= self._warnings()
        return found

    def _choice(self, index: int, text: GeneratedText) -> dict[str, Any]:
        form, finish = self.generation.call_form, text.finish
        message: dict[str, Any] = {"content": text.text}
        if form is not None:
            message = CallReader(form).message(text.text)
            finish = "tool_calls" if "tool_calls" in message else finish
        head = {"index": index, "message": {"role": "assistant", **message, "refusal": None}, "finish_reason": finish}
        return {**head, **self._details(text), **_statistics(text)}

    def _delta(self, index: int, text: str) -> dict[str, Any]:
        if self._readers:
            delta = self._readers[index].feed(text)
        else:
            delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}

    def _finish(self, index: int, text: GeneratedText, choice: dict[str, Any]) -> str:
        if not self._readers:
            return text.finish
        choice["delta"] |= self._readers[index].feed("", final=True)
        return "tool_calls" if self._readers[index].calls else text.finish

    def _details(self, text: GeneratedText) -> dict[str, Any]:
        assert isinstance(self.request, schema.ChatRequest)
        if not self.request.logprobs:
            return {"logprobs": None}
        content = [
            {**_logprob(token), "top_logprobs": [_logprob(other) for other in token.alternatives]}
            for token in text.tokens
            if token.log_p is not None
        ]
        return {"logprobs": {"content": content, "refusal": None}}


class InfillResponse(ResponseBuilder):
    """The response of ``/v1/infill``."""

    object = "infill"
    chunk_object = "infill.chunk"

    def _choice(self, index: int, text: GeneratedText) -> dict[str, Any]:
        head = {"index": index, "text": text.text, "finish_reason": text.finish}
        return {**head, **self._details(text), **_statistics(text)}

    def _delta(self, index: int, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": None}

    def _details(self, text: GeneratedText) -> dict[str, Any]:
        return {"holes": text.holes}


def _statistics(text: GeneratedText) -> dict[str, Any]:
    """Forward passes, log-probability and number of tokens of a sequence."""
    score = text.score if math.isfinite(text.score) else None
    return {"redraft": {"nfe": text.nfe, "log_probability": score, "tokens": text.new_tokens}}


def _logprob(token: Token) -> dict[str, Any]:
    """A token with its log-probability and its bytes."""
    return {"token": token.text, "logprob": _finite(token.log_p), "bytes": list(token.data)}


def _finite(log_p: float | None) -> float | None:
    """A log-probability as JSON can express it: OpenAI's -9999.0 stands for an impossible token."""
    return None if log_p is None or math.isnan(log_p) else max(log_p, _IMPOSSIBLE)


def _offsets(text: GeneratedText) -> list[int]:
    """Where each token begins in the text: the index of the character to which its first byte belongs."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets, whole = [], ""
    for token in text.tokens:
        offsets.append(len(whole))
        whole += decoder.decode(token.data)
    dropped = whole.startswith(" ") and not text.text.startswith(" ")  # SentencePiece's first space
    return [min(max(offset - dropped, 0), len(text.text)) for offset in offsets]


def to_json(body: dict[str, Any]) -> str:
    """The text of a response body. JSON has no infinity and no NaN; they become null."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_without_infinities(body), ensure_ascii=False, separators=(",", ":"))


def _without_infinities(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_infinities(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
