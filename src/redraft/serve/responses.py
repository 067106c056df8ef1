"""Response bodies in OpenAI's format, complete and streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from redraft.generation.method import build_method
from redraft.options import echo
from redraft.samplers.base import unwrapped
from redraft.serve import schema
from redraft.serve.incremental_text import GeneratedText
from redraft.serve.requests import GenerationRequest

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
        return {**self._head(self.object), "choices": choices, "usage": self.usage(texts), "redraft": self.settings}

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
        chunk["choices"][0] |= {"finish_reason": result.finish, **self._details(result), **_statistics(result)}
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
        sampler = unwrapped(build_method(self.generation.model, used).sampler)
        return {**echo(used, "http"), "sampler": sampler.name, "options": dict(vars(sampler))}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}

    def _choice(self, index: int, text: GeneratedText) -> dict[str, Any]:
        """A complete choice."""
        raise NotImplementedError

    def _delta(self, index: int, text: str) -> dict[str, Any]:
        """A choice of a chunk."""
        raise NotImplementedError

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
        tokens = [token for token in text.tokens if token.log_p is not None]
        offsets, at = [], 0
        for token in tokens:
            offsets.append(at)
            at += len(token.text)
        return {
            "logprobs": {
                "tokens": [token.text for token in tokens],
                "token_logprobs": [token.log_p for token in tokens],
                "top_logprobs": [dict(one.alternatives) or None for one in tokens] if self.request.logprobs else None,
                "text_offset": offsets,
            }
        }


class ChatResponse(ResponseBuilder):
    """The response of ``/v1/chat/completions``."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def first_chunks(self) -> list[dict[str, Any]]:
        """The role of each answer."""
        role = {"role": "assistant", "content": ""}
        return [
            {**self._head(self.chunk_object), "choices": [{"index": index, "delta": role, "finish_reason": None}]}
            for index in range(self.generation.n)
        ]

    def _choice(self, index: int, text: GeneratedText) -> dict[str, Any]:
        message = {"role": "assistant", "content": text.text, "refusal": None}
        head = {"index": index, "message": message, "finish_reason": text.finish}
        return {**head, **self._details(text), **_statistics(text)}

    def _delta(self, index: int, text: str) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}

    def _details(self, text: GeneratedText) -> dict[str, Any]:
        assert isinstance(self.request, schema.ChatRequest)
        if not self.request.logprobs:
            return {"logprobs": None}
        content = [
            {**_logprob(token.text, token.log_p), "top_logprobs": [_logprob(*other) for other in token.alternatives]}
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
    return {"redraft": {"nfe": text.nfe, "log_probability": text.score, "tokens": text.new_tokens}}


def _logprob(text: str, log_p: float) -> dict[str, Any]:
    """A token with its log-probability. A token that is only a part of a character has no bytes."""
    return {"token": text, "logprob": log_p, "bytes": None if "\ufffd" in text else list(text.encode())}
