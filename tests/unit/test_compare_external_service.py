"""An external service: requests are repeated where that can help; failures are counted and not scored."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from redraft.compare.external_service import Client, ExternalService, Replies, Reply, measure_service
from redraft.compare.select import Selected
from redraft.compare.service_comparison import summarise
from redraft.errors import UserError
from tests.unit._studies import measured

pytest.importorskip("httpx2")

Answer = tuple[int, dict[str, str], Any]


@contextmanager
def service(answer: Callable[[int, dict[str, Any]], Answer]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A service on this machine: ``answer`` gets the number of the call and its body."""
    seen: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
                number = len(seen)
            status, headers, content = answer(number, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def said(text: Any, finish: str = "stop") -> Answer:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, {}, {"choices": [choice], "usage": {"prompt_tokens": 20, "completion_tokens": 5}}


def refused(status: int, message: str, wait: str = "") -> Answer:
    return status, {"Retry-After": wait} if wait else {}, {"error": {"message": message}}


def ask(address: str, **fields: Any) -> Reply:
    client = Client(ExternalService(address, "small", **fields), key="secret", wait_scale=0.0)
    try:
        return client.request([{"role": "user", "content": "hi"}], 9)
    finally:
        client.close()


def test_requests_have_the_format_of_openai() -> None:
    with service(lambda number, body: said(" hello ")) as (address, seen):
        reply = ask(address)
    assert (reply.text, reply.tokens_in, reply.tokens_out, reply.tries) == ("hello", 20, 5, 1)
    assert seen[0]["path"] == "/v1/chat/completions" and seen[0]["key"] == "Bearer secret"
    assert seen[0]["model"] == "small" and seen[0]["max_tokens"] == 9 and seen[0]["temperature"] == 0


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_tried_again(status: int) -> None:
    with service(lambda n, body: refused(status, "busy", "0") if n < 3 else said("at last")) as (address, seen):
        assert ask(address).text == "at last"
    assert len(seen) == 3


def test_fields_that_a_service_rejects_are_renamed() -> None:
    """Some models accept neither max_tokens nor a temperature."""

    def answer(number: int, body: dict[str, Any]) -> Answer:
        if "max_tokens" in body:
            return refused(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return (
            refused(400, "Unsupported value: 'temperature' does not support 0") if "temperature" in body else said("x")
        )

    with service(answer) as (address, seen):
        found = measure_service(ExternalService(address, "small", shots=0), ["a", "b"], [], 5, single=2)
    assert [reply.text for reply in found.replies] == ["x", "x"]
    assert found.fields == {"max_tokens": "max_completion_tokens", "temperature": None}
    with service(lambda number, body: refused(400, "prompt and max_tokens exceed the context")) as (address, said_no):
        assert "exceed" in ask(address).failure
    assert len(said_no) == 1  # another name would not help
    assert len(seen) == 5 and all(body["max_completion_tokens"] == 5 for body in seen[1:])  # remembered


def test_what_fails_for_good_is_a_failure_and_not_an_answer() -> None:
    for answer, why in [
        (refused(400, "too long"), "400 too long"),
        (said(None), "withheld"),
        (said("partly", "content_filter"), "withheld"),
        ((200, {}, b"not json"), "OpenAI's format"),
        ((200, {}, {"choices": []}), "OpenAI's format"),
        (refused(429, "slow down"), "429 slow down"),
    ]:
        with service(lambda number, body, answer=answer: answer) as (address, _):
            reply = ask(address, tries=2)
        assert reply.text is None and why in reply.failure


def test_a_wrong_key_ends_the_measurement_at_once() -> None:
    with (
        service(lambda number, body: refused(401, "no such key")) as (address, seen),
        pytest.raises(UserError, match="rejected the request: 401 no such key"),
    ):
        ask(address)
    assert len(seen) == 1


def test_an_address_without_a_service_is_an_error() -> None:
    with pytest.raises(UserError, match="does not answer"):
        measure_service(ExternalService("http://127.0.0.1:9/v1", "small", tries=1), ["a"], [], 5, 1)


def test_examples_are_shown_as_earlier_turns() -> None:
    with service(lambda number, body: said("x")) as (address, seen):
        found = measure_service(
            ExternalService(address, "small", instruction="Translate."), ["a", "b", "c"], [("q", "r")], 5, single=1
        )
    assert [one.text for one in found.replies] == ["x"] * 3
    assert len(found.single) == 1 and found.requests_per_second is not None
    roles = [(m["role"], m["content"]) for m in seen[1]["messages"]]
    assert roles == [("system", "Translate."), ("user", "q"), ("assistant", "r"), ("user", "a")]


def test_failures_are_left_out_of_the_comparison() -> None:
    """A service that answers what one of our settings answers, and fails on some items: there is no difference."""
    study = measured(seeds=1)
    ours = next(one for one in study.texts if one.part == "test")
    family = study.settings[ours.setting].family
    replies = [Reply(text, 0.5, 10, 4) for text in ours.texts]
    for number in range(0, len(replies), 20):
        replies[number] = Reply(None, 9.0, failure="429 slow down")
    service = ExternalService("http://x/v1", "small", price_in=1.0, price_out=2.0)
    study.service = Replies(service, {}, tuple(replies), (0.4, 0.5, 0.6), 8.0)
    selected = {family: Selected(ours.setting, ours.setting)}
    found = summarise(study, selected)
    assert found is not None
    assert found.answered == sum(reply.text is not None for reply in replies) < found.asked
    assert found.failures[0].why == "429 slow down"
    assert found.against[0].difference.difference == 0.0 and found.against[0].difference.verdict == "same"
    assert found.p50 == 0.5
    assert found.cost_per_thousand == pytest.approx(1000 * (10 * 1.0 + 4 * 2.0) / 1e6)
    for number in range(len(replies) // 2):
        replies[number] = Reply(None, 9.0, failure="429 slow down")
    study.service = Replies(service, {}, tuple(replies), (0.4, 0.5, 0.6), 8.0)
    again = summarise(study, selected)
    assert again is not None
    assert again.against[0].difference.verdict == "undecided", "too few answers for a verdict"
    assert np.isfinite(again.quality[study.primary.name].value)


@pytest.mark.parametrize("wrong", [{"endpoint": "host/v1"}, {"model": ""}, {"tries": 0}, {"price_in": -1}])
def test_a_wrong_service_is_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        ExternalService(**{"endpoint": "http://x/v1", "model": "small", **wrong})


@pytest.mark.parametrize(
    "content",
    [
        b'{"choices": [{"message": {"content": "\\ud800"}}]}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": 1e400}}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": -3}}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": {"completion_tokens": 1e300}}',
        b"[" * 200_000,
    ],
)
def test_an_answer_that_makes_no_sense_is_a_failure_and_not_an_error(content: bytes) -> None:
    with service(lambda number, body: (200, {}, content)) as (address, _):
        reply = ask(address)
    assert reply.text is None and reply.failure
    json.dumps(vars(reply), ensure_ascii=False).encode()


@pytest.mark.parametrize("key", ["secret", 'a"b/c d'])
def test_a_key_that_the_service_repeats_is_not_kept(key: str) -> None:
    for status in (401, 400):
        with service(lambda number, body, status=status: refused(status, f"bad key {key} ({key})")) as (address, _):
            client = Client(ExternalService(address, "small"), key=key, wait_scale=0.0)
            try:
                told = client.request([], 5).failure
            except UserError as error:
                told = str(error)
        assert "[key]" in told and key not in told
    with service(lambda number, body: said(f"your key is {key}")) as (address, _):
        client = Client(ExternalService(address, "small"), key=key, wait_scale=0.0)
        assert client.request([], 5).text == "your key is [key]"
