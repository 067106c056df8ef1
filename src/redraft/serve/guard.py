"""The gate: who may ask, from where, and how much a request may weigh. Before anything is parsed."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from redraft.serve.settings import Settings
from redraft.serve.wire import failure

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOCAL = ("localhost", "127.0.0.1", "[::1]", "testserver")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


class Guard:
    """ASGI middleware.

    - A server that only this machine reaches answers only to this machine's names: a web page elsewhere can't talk to
      it by letting its own name resolve to 127.0.0.1 (DNS rebinding).
    - Where there are API keys, everything but the page and /healthz needs one; all are compared, in constant time.
    - A body larger than allowed is refused as soon as that is known.
    """

    def __init__(self, app: App, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        send = _with_headers(send)
        if self.settings.loopback and _host(headers) not in _LOCAL:
            await _refuse(send, 421, failure("this server answers to localhost only", "invalid_request_error"))
            return
        path = scope["path"]
        if self.keys and (path.startswith("/v1") or path in ("/metrics", "/openapi.json", "/docs")):
            given = self._key(headers)
            if given is None:
                what = "no valid API key: send one as 'Authorization: Bearer KEY'"
                await _refuse(send, 401, failure(what, "authentication_error", "invalid_api_key"))
                return
            scope["client_key"] = given
        if _length(headers) > self.settings.max_body:
            await _refuse(send, 413, self._too_large())
            return
        await self._bounded(scope, receive, send)

    def _key(self, headers: dict[bytes, bytes]) -> int | None:
        """Which of the keys a request shows; every one is compared."""
        kind, _, shown = headers.get(b"authorization", b"").partition(b" ")
        found = None
        for number, key in enumerate(self.keys):
            if hmac.compare_digest(shown.strip(), key) and kind.lower() == b"bearer":
                found = number
        return found

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what arrives without a declared length."""
        size, started = 0, False

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.settings.max_body:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLarge:
            if not started:
                await _refuse(send, 413, self._too_large())

    def _too_large(self) -> dict[str, Any]:
        return failure(f"the request is larger than {self.settings.max_body} bytes", "invalid_request_error")


class _TooLarge(BaseException):
    """Not an Exception: parsers that catch those must not answer in its place."""


def _host(headers: dict[bytes, bytes]) -> str:
    name = headers.get(b"host", b"localhost").decode("latin-1").lower()
    return name.split("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]


def _length(headers: dict[bytes, bytes]) -> int:
    text = headers.get(b"content-length", b"0")
    return int(text) if text.isdigit() else 0


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
        await send(message)

    return wrapped


async def _refuse(send: Send, status: int, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
