"""Error responses in OpenAI's format, for every way in which a request can fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Mount, Route

from redraft.errors import UserError
from redraft.serve import schema
from redraft.serve.decide_schema import DecideRequest
from redraft.serve.jobs import Failed, RequestOutcome
from redraft.serve.settings_schema import in_request_terms
from redraft.serve.telemetry import logger
from redraft.serve.tool_schema import Call, CalledFunction, Function, Tool

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a closed connection; it appears in logs and metrics only
# Names of fields, to tell them from the names of alternatives in pydantic's errors.
_BODIES = (schema.CompletionRequest, schema.ChatRequest, schema.InfillRequest, DecideRequest, schema.Table)
_PARTS = (schema.Message, schema.Part, schema.ResponseFormat, schema.JsonSchema, Tool, Function, Call, CalledFunction)
_FIELDS = frozenset(name for model in (*_BODIES, *_PARTS) for name in model.model_fields)
INTERNAL_ERROR = "Internal server error. The server's log has the details."
# Status and error type of each outcome.
_OUTCOMES: dict[RequestOutcome, tuple[int, str]] = {
    RequestOutcome.INVALID_REQUEST: (400, "invalid_request_error"),
    RequestOutcome.DEADLINE_EXCEEDED: (408, "timeout_error"),
    RequestOutcome.CANCELLED: (CLIENT_CLOSED_REQUEST, "cancelled"),
    RequestOutcome.SHUTDOWN: (503, "server_error"),
    RequestOutcome.INTERNAL_ERROR: (500, "server_error"),
}


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's format. Characters that are not valid Unicode, quoted from a request, are replaced."""
    message = message.encode("utf-8", "replace").decode()
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ApiError(Exception):
    """An error response.

    Args:
        kind: OpenAI's error type.
        code: OpenAI's error code.
        retry_after: seconds after which the client may try again; 0: not stated.
    """

    def __init__(self, status: int, message: str, kind: str, code: str | None = None, retry_after: int = 0) -> None:
        message = in_request_terms(message)
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.retry_after = status, message, kind, code, retry_after

    @classmethod
    def of(cls, event: Failed) -> ApiError:
        """The error response for a sequence that failed."""
        status, kind = _OUTCOMES[event.outcome]
        return cls(status, event.message, kind)

    @classmethod
    def late(cls) -> ApiError:
        """The error response for a missed deadline."""
        return cls(408, "The request was not finished before its deadline.", "timeout_error")

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's format."""
        return error_body(self.message, self.kind, self.code)

    def response(self) -> JSONResponse:
        """The response that carries the error."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else None
        return JSONResponse(self.body(), self.status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every exception in OpenAI's format."""
    app.exception_handlers[RequestValidationError] = _invalid_body
    app.exception_handlers[HTTPException] = _http_error
    app.exception_handlers[ApiError] = _api_error
    app.exception_handlers[UserError] = _user_error
    app.exception_handlers[Exception] = _internal_error


async def _api_error(_: Request, error: ApiError) -> JSONResponse:
    return error.response()


async def _user_error(_: Request, error: UserError) -> JSONResponse:
    return ApiError(400, str(error), "invalid_request_error").response()


async def _internal_error(_: Request, error: Exception) -> JSONResponse:
    """A bug: its traceback goes to the log and not to the client."""
    logger().error("a request failed because of an internal error", exc_info=error)
    return JSONResponse(error_body(INTERNAL_ERROR, "server_error"), 500)


async def _invalid_body(_: Request, error: RequestValidationError) -> JSONResponse:
    """The first mistake in a request body, and the field that it is in."""
    path, message, first = _first_mistake(error)
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", message)
        message, path = f"The request body is not valid JSON: {reason}.", []
    elif not path and first["type"] in ("missing", "model_attributes_type"):
        message = "The request body must be a JSON object with the header 'Content-Type: application/json'."
    elif path and first["type"] == "value_error":
        message = f"{'.'.join(path)}: {message}" if len(path) > 1 else message
    elif path:
        message = f"{'.'.join(path)}: {message[0].lower()}{message[1:]}."
    return JSONResponse(error_body(message, "invalid_request_error", param=path[0] if path else None), 400)


def _first_mistake(error: RequestValidationError) -> tuple[list[str], str, Mapping[str, Any]]:
    """The field of the first mistake, its description, and pydantic's record of it.

    A field with several types has an error for each of them. The one of the type that fits counts; if none fits, all of
    them do.
    """
    found = [(_path(one["loc"], error.body), one) for one in error.errors()]
    same = [each for each in found if each[0][:1] == found[0][0][:1]]
    fitting = [each for each in same if not each[1]["type"].endswith("_type")]
    path, first = max(fitting or same, key=lambda each: len(each[0]))
    messages = [first["msg"]] if fitting else [one["msg"] for each, one in same if each == path]
    more = [message.removeprefix("Input should be ") for message in messages[1:]]
    message = " or ".join(dict.fromkeys([messages[0], *more]))
    return path, message.removeprefix("Value error, ").replace(" after validation", ""), first


def _path(location: Sequence[Any], body: Any) -> list[str]:
    """The path to a field in a request body, without pydantic's names of alternatives, such as ``list[str]``."""
    path, value = [], body
    for part in location[1:] if location[:1] in (("body",), ("query",), ("path",)) else location:
        if (
            isinstance(value, dict)
            and part in value
            or isinstance(value, list)
            and isinstance(part, int)
            and part < len(value)
        ):
            value = value[part]
        elif part not in _FIELDS:
            continue
        path.append(str(part))
    return path


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    """Errors of the router and of the static files, which answer for every path that has no route."""
    status, path = error.status_code, request.url.path
    message = str(error.detail)
    if status in (404, 405):
        known = {route.path for route in request.app.routes if isinstance(route, Route | Mount)}
        status = 405 if path in known and request.method != "HEAD" else 404
    if status == 404:
        message = f"There is no route {request.method} {path}."
    elif status == 405:
        message = f"The route {path} does not accept {request.method}."
    return JSONResponse(error_body(message, "invalid_request_error"), status, error.headers)
