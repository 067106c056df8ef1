"""ASGI middleware that checks host, API key and size of a request before anything is parsed."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from redraft.serve.config import ServerConfig
from redraft.serve.errors import error_body
from redraft.serve.exchange import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOCAL_HOST = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_PROTECTED = ("/metrics", "/openapi.json", "/docs")  # and everything below /v1
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


class RequestGuard:
    """Refuses requests before they reach the application.

    - A server that listens on the loopback interface only accepts local host names, so that a web page can't reach it
      by resolving its own domain to 127.0.0.1 (DNS rebinding).
    - With API keys configured, everything except the page and /healthz requires one. Each key is compared in constant
      time.
    - A body above the size limit is refused as soon as its size is known, and one that does not arrive in time, too.

    It also counts the requests under way, for which a shutdown waits.
    """

    def __init__(self, app: App, config: ServerConfig, service: Service) -> None:
        self.app, self.config, self.service = app, config, service
        self.keys = [key.encode() for key in config.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request, and pass it on or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        send = _with_security_headers(send)
        if self.config.loopback and not _LOCAL_HOST.fullmatch(headers.get(b"host", b"localhost")):
            message = "This server accepts requests to localhost only."
            await _respond(send, 421, error_body(message, "invalid_request_error"))
            return
        path = scope["path"]
        if self.keys and (path.startswith("/v1") or path in _PROTECTED):
            key = self._matching_key(headers)
            if key is None:
                message = "The request has no valid API key. Send one in the header 'Authorization: Bearer KEY'."
                await _respond(send, 401, error_body(message, "authentication_error", "invalid_api_key"))
                return
            scope["client_key"] = key
        if _declared_length(headers) > self.config.max_body:
            await _respond(send, 413, self._too_large())
            return
        self.service.pending += 1
        try:
            await self._with_counted_body(scope, receive, send)
        finally:
            self.service.pending -= 1

    def _matching_key(self, headers: dict[bytes, bytes]) -> int | None:
        """The index of the key that the request sends. Every key is compared, so that timing reveals nothing."""
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        found = None
        for index, key in enumerate(self.keys):
            if hmac.compare_digest(given.strip(), key) and scheme.lower() == b"bearer":
                found = index
        return found

    async def _with_counted_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application and stop it when its body becomes too large, or does not arrive in time."""
        size, started, complete = 0, False, False
        until = asyncio.get_running_loop().time() + self.config.receive_timeout

        async def counted() -> Message:
            nonlocal size, complete
            if complete:
                return await receive()  # of a closed connection
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise _BodyTooSlow from None
            complete = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self.config.max_body:
                raise _BodyTooLarge
            return message

        async def observed(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, counted, observed)
        except _BodyTooLarge:
            if not started:
                await _respond(send, 413, self._too_large())
        except _BodyTooSlow:
            if not started:
                message = f"The body of the request did not arrive within {self.config.receive_timeout:g} s."
                await _respond(send, 408, error_body(message, "timeout_error"), (b"connection", b"close"))

    def _too_large(self) -> dict[str, Any]:
        message = f"The request is larger than this server allows ({self.config.max_body} bytes)."
        return error_body(message, "invalid_request_error")


class _BodyTooLarge(BaseException):
    """Not an ``Exception``, so that parsers which catch those don't answer instead."""


class _BodyTooSlow(BaseException):
    """As ``_BodyTooLarge``."""


def _declared_length(headers: dict[bytes, bytes]) -> int:
    text = headers.get(b"content-length", b"0")
    return int(text) if text.isdigit() else 0


def _with_security_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_SECURITY_HEADERS]}
        await send(message)

    return wrapped


async def _respond(send: Send, status: int, body: dict[str, Any], *more: tuple[bytes, bytes]) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
