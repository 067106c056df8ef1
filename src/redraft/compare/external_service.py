"""Asks an external service with OpenAI's interface the test items of a study."""

from __future__ import annotations

import json
import os
import random
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from redraft.errors import UserError
from redraft.options import check, setting

KEY = "REDRAFT_SERVICE_KEY"  # environment variable of the API key; it is never an option and never in a report
_MOST_TOKENS = 1 << 40  # of one answer; more is nonsense
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_REFUSED = (401, 403, 404)  # wrong key, model or address: no further request can succeed
# Fields that some services reject -> the name that they accept instead; None: leave the field out.
_REPLACED = {"max_tokens": "max_completion_tokens", "temperature": None}
_REJECTS = re.compile("unsupported|not support|unrecogni|unknown|not permitted|not allowed", re.IGNORECASE)


@dataclass(frozen=True)
class ExternalService:
    """A service to compare with. Without an instruction it gets a few training pairs as earlier turns."""

    endpoint: str = setting("", "Address up to /v1. The key is read from REDRAFT_SERVICE_KEY.", metavar="URL")
    model: str = setting("", "Name of the model.", metavar="NAME")
    instruction: str = setting("", "System message.")
    shots: int = setting(4, "Training pairs shown as earlier turns.", least=0)
    price_in: float = setting(0.0, "Price of a million prompt tokens, in any currency.", least=0)
    price_out: float = setting(0.0, "Price of a million completion tokens.", least=0)
    concurrency: int = setting(8, "Requests at a time, to measure throughput.", least=1)
    tries: int = setting(6, "Largest number of attempts for one request.", least=1)
    timeout: float = setting(60.0, "Time limit of one attempt.", above=0, unit="seconds")

    def __post_init__(self) -> None:
        check(self)
        if not self.endpoint.startswith(("http://", "https://")):
            raise UserError(f"Service endpoint '{self.endpoint}' is not an address.", "For example https://host/v1.")
        if not self.model:
            raise UserError("The external service needs the name of its model.", "Give --service-model.")


@dataclass(frozen=True)
class Reply:
    """The outcome of one request."""

    text: str | None  # None: it was not answered
    seconds: float  # of the attempt that succeeded, or of all attempts
    tokens_in: int = 0
    tokens_out: int = 0
    tries: int = 1
    failure: str = ""


@dataclass(frozen=True)
class Replies:
    """The answers of a service to the test items."""

    service: ExternalService
    fields: dict[str, str | None]  # request fields that the service rejected -> the name used instead
    replies: tuple[Reply, ...]
    single: tuple[float, ...]  # seconds of requests sent one at a time and answered at the first attempt
    requests_per_second: float | None  # at the service's concurrency


class Client:
    """Sends requests, and repeats them after rate limits and temporary errors, as late as the service asks for."""

    def __init__(self, service: ExternalService, key: str | None = None, wait_scale: float = 1.0) -> None:
        """``wait_scale`` multiplies the waiting time between attempts; tests set it to 0."""
        import httpx2

        self.service, self.wait_scale = service, wait_scale
        key = os.environ.get(KEY, "") if key is None else key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._key = key
        self._http = httpx2.Client(headers=headers, timeout=service.timeout, follow_redirects=False)
        self._random = random.Random(0)
        self.names: dict[str, str | None] = {}  # see ``Replies.fields``

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def request(self, messages: Sequence[Mapping[str, str]], new_tokens: int) -> Reply:
        """Send one request.

        Raises:
            UserError: the key, the model or the address is wrong, so that no request can succeed.
        """
        import httpx2

        asked = {"model": self.service.model, "messages": list(messages), "max_tokens": new_tokens, "temperature": 0}
        url = f"{self.service.endpoint.rstrip('/')}/chat/completions"
        begun, why = time.perf_counter(), ""
        for number in range(1, self.service.tries + 1):
            body = {name: value for key, value in asked.items() if (name := self.names.get(key, key)) is not None}
            at = time.perf_counter()
            wait = 0.5 * 2 ** (number - 1) * self._random.uniform(0.75, 1.25)
            try:
                answer = self._http.post(url, json=body)
            except httpx2.HTTPError as error:
                why = f"no connection ({type(error).__name__})"
            else:
                if answer.status_code == 200:
                    return _read(answer, time.perf_counter() - at, number, self._key)
                why = f"{answer.status_code} {_message(answer, self._key)}"
                if answer.status_code in _REFUSED:
                    raise UserError(
                        f"The external service rejected the request: {why}.",
                        f"Check --service-endpoint, --service-model and the key in ${KEY}.",
                    )
                if answer.status_code == 400 and self._rename(why, body):
                    continue
                if answer.status_code not in _RETRIED:
                    return Reply(None, time.perf_counter() - begun, tries=number, failure=why)
                wait = max(wait, _seconds(answer.headers.get("retry-after", "")))
            if number < self.service.tries:
                time.sleep(min(wait, 60.0) * self.wait_scale)
        return Reply(None, time.perf_counter() - begun, tries=self.service.tries, failure=why)

    def _rename(self, why: str, body: Mapping[str, Any]) -> bool:
        """Rename the field that an error rejects, for all requests from now on; False if the error has another cause.

        A limit that is too large for one prompt names the field too, but doesn't call it unsupported.
        """
        named = [key for key in _REPLACED if key in body and re.search(rf"\b{key}\b", why)]
        found = named if _REJECTS.search(why) else []
        self.names.update({key: _REPLACED[key] for key in found})
        return bool(found)


def measure_service(
    service: ExternalService, prompts: Sequence[str], shots: Sequence[tuple[str, str]], new_tokens: int, single: int
) -> Replies:
    """Send all prompts: the first ``single`` one at a time, for latency, the rest several at a time.

    Args:
        shots: (prompt, answer) pairs shown as earlier turns.
    Raises:
        UserError: the service rejects us, or does not answer the first request.
    """
    client = Client(service)
    asked = [_messages(service, prompt, shots) for prompt in prompts]
    try:
        first = client.request(asked[0], new_tokens)  # opens the connection; not timed
        if first.text is None:
            raise UserError(f"The external service does not answer: {first.failure}.", "Check --service-endpoint.")
        replies = [client.request(messages, new_tokens) for messages in asked[:single]]
        begin = time.perf_counter()
        with ThreadPoolExecutor(service.concurrency) as pool:
            rest = list(pool.map(lambda messages: client.request(messages, new_tokens), asked[single:]))
        wall = time.perf_counter() - begin
    finally:
        client.close()
    answered = sum(reply.text is not None for reply in rest)
    return Replies(
        service=service,
        fields=client.names,
        replies=(*replies, *rest),
        single=tuple(reply.seconds for reply in replies if reply.text is not None and reply.tries == 1),
        requests_per_second=answered / wall if answered else None,
    )


def _messages(service: ExternalService, prompt: str, shots: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    found = [{"role": "system", "content": service.instruction}] if service.instruction else []
    for question, answer in shots:
        found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*found, {"role": "user", "content": prompt}]


def _read(answer: Any, seconds: float, tries: int, key: str = "") -> Reply:
    """The reply in an answer of status 200. One without text, or with what can't be written down, is a failure."""
    try:
        body = answer.json()
        choice, usage = body["choices"][0], body.get("usage") or {}
        text = choice["message"]["content"]
        if choice.get("finish_reason") == "content_filter" or not isinstance(text, str):
            return Reply(None, seconds, tries=tries, failure="the service withheld the answer")
        counts = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        if not 0 <= min(counts) <= max(counts) <= _MOST_TOKENS:
            return Reply(None, seconds, tries=tries, failure="the answer's count of tokens makes no sense")
        text.encode("utf-8")  # half of a surrogate pair is not text
        return Reply(_redacted(text.strip(), key), seconds, *counts, tries=tries)
    except UnicodeEncodeError:
        return Reply(None, seconds, tries=tries, failure="the answer is not valid Unicode")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
        return Reply(None, seconds, tries=tries, failure="the answer does not have OpenAI's format")


def _message(answer: Any, key: str = "") -> str:
    """The message of an error, shortened; without the key, which some services repeat."""
    try:
        error = answer.json()["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        text = str(answer.reason_phrase)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(_redacted(text, key).split())[:160]


def _redacted(text: str, key: str) -> str:
    """The text without the key, as it is or as it stands in an address or in JSON."""
    forms = {key, urllib.parse.quote(key, safe=""), json.dumps(key)[1:-1]} - {""}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "[key]")
    return text


def _seconds(text: str) -> float:
    """Seconds of a Retry-After header; 0 if it holds a date."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0
