"""Answers in OpenAI's shapes."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redraft.samplers import unwrapped
from redraft.serve import schema
from redraft.serve.reading import Text
from redraft.serve.requests import Wanted, now


@dataclass
class Voice:
    """How one route answers. An answer is a ``whole`` or ``chunk``s; ``choice`` and ``piece`` are its parts."""

    request: schema._Request
    wanted: Wanted
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(12)}")
    created: int = field(default_factory=now)
    object = ""

    def whole(self, texts: Sequence[Text]) -> dict[str, Any]:
        """The answer at once."""
        choices = [self._choice(number, text) for number, text in enumerate(texts)]
        return {**self._head(self.object), "choices": choices, "usage": self.usage(texts), "redraft": self.own}

    def opening(self) -> list[dict[str, Any]]:
        """Chunks before anything is written."""
        return []

    def chunk(self, number: int, text: str, frame: dict[str, Any] | None) -> dict[str, Any]:
        """More of one text, and a picture of its canvas where pictures were asked for."""
        found = {**self._head(self._chunked), "choices": [self._piece(number, text)]}
        return found if frame is None else {**found, "diffusion": {"index": number, **frame}}

    def last(self, number: int, text: str, result: Text, frame: dict[str, Any] | None) -> dict[str, Any]:
        """The end of one text."""
        found = self.chunk(number, text, frame)
        found["choices"][0] |= {"finish_reason": result.finish, **self._details(result), **_effort(result)}
        return {**found, "redraft": self.own}

    def closing(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        """Chunks after everything is written."""
        asked = self.request.stream_options
        if asked is None or not asked.include_usage:
            return []
        return [{**self._head(self._chunked), "choices": [], "usage": self.usage(texts)}]

    def usage(self, texts: Sequence[Text]) -> dict[str, Any]:
        given, written = self.wanted.prompt_tokens, sum(text.written for text in texts)
        return {"prompt_tokens": given, "completion_tokens": written, "total_tokens": given + written}

    @property
    def own(self) -> dict[str, Any]:
        """What offline generation would need to write the same."""
        chosen = self.wanted.generation
        sampler = unwrapped(self.wanted.model.method(chosen).sampler)
        names = ("seed", "temperature", "top_k", "top_p", "candidates", "max_new_tokens")
        return {
            "sampler": type(sampler).__module__.rsplit(".", 1)[-1],
            "options": dict(vars(sampler)),
            **{name: getattr(chosen, name) for name in names},
        }

    @property
    def _chunked(self) -> str:
        return self.object

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}

    def _choice(self, number: int, text: Text) -> dict[str, Any]:
        raise NotImplementedError

    def _piece(self, number: int, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _details(self, text: Text) -> dict[str, Any]:
        """Further fields of a finished choice."""
        return {}


class Completion(Voice):
    object = "text_completion"

    def _choice(self, number: int, text: Text) -> dict[str, Any]:
        head = {"index": number, "text": text.text, "finish_reason": text.finish}
        return {**head, **self._details(text), **_effort(text)}

    def _piece(self, number: int, text: str) -> dict[str, Any]:
        return {"index": number, "text": text, "finish_reason": None, "logprobs": None}

    def _details(self, text: Text) -> dict[str, Any]:
        assert isinstance(self.request, schema.CompletionRequest)
        if self.request.logprobs is None:
            return {"logprobs": None}
        tokens = [token for token in text.tokens if token.log_p is not None]
        offsets, at = [], 0
        for token in tokens:
            offsets.append(at)
            at += len(token.text)
        top = [dict(token.top) or None for token in tokens] if self.request.logprobs else None
        return {
            "logprobs": {
                "tokens": [token.text for token in tokens],
                "token_logprobs": [token.log_p for token in tokens],
                "top_logprobs": top,
                "text_offset": offsets,
            }
        }


class Chat(Voice):
    object = "chat.completion"

    @property
    def _chunked(self) -> str:
        return "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        role = {"role": "assistant", "content": ""}
        return [
            {**self._head(self._chunked), "choices": [{"index": i, "delta": role, "finish_reason": None}]}
            for i in range(self.wanted.copies)
        ]

    def _choice(self, number: int, text: Text) -> dict[str, Any]:
        message = {"role": "assistant", "content": text.text, "refusal": None}
        head = {"index": number, "message": message, "finish_reason": text.finish}
        return {**head, **self._details(text), **_effort(text)}

    def _piece(self, number: int, text: str) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        return {"index": number, "delta": delta, "finish_reason": None, "logprobs": None}

    def _details(self, text: Text) -> dict[str, Any]:
        assert isinstance(self.request, schema.ChatRequest)
        if not self.request.logprobs:
            return {"logprobs": None}
        content = [
            {**_likely(token.text, token.log_p), "top_logprobs": [_likely(*other) for other in token.top]}
            for token in text.tokens
            if token.log_p is not None
        ]
        return {"logprobs": {"content": content, "refusal": None}}


class Infill(Voice):
    object = "infill"

    @property
    def _chunked(self) -> str:
        return "infill.chunk"

    def _choice(self, number: int, text: Text) -> dict[str, Any]:
        return {
            "index": number,
            "text": text.text,
            "finish_reason": text.finish,
            **self._details(text),
            **_effort(text),
        }

    def _piece(self, number: int, text: str) -> dict[str, Any]:
        return {"index": number, "text": text, "finish_reason": None}

    def _details(self, text: Text) -> dict[str, Any]:
        return {"holes": text.parts}


def _effort(text: Text) -> dict[str, Any]:
    """What a text took, and how sure the model was of it."""
    return {"redraft": {"nfe": text.nfe, "log_probability": text.score, "tokens": text.written}}


def _likely(text: str, log_p: float) -> dict[str, Any]:
    """A token that is part of a character only has no bytes to show."""
    return {"token": text, "logprob": log_p, "bytes": None if "\ufffd" in text else list(text.encode())}


def failure(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's shape of an error. What it quotes of a request may not be valid Unicode."""
    message = message.encode("utf-8", "replace").decode()
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
