"""Requests that clients really send, and what they read in the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redraft.cli.serve import read_keys
from redraft.errors import UserError
from redraft.model import Model
from redraft.serve.config import ServerConfig
from tests.serve.conftest import ROUTES, server_config

CHAT = "/v1/chat/completions"


def opened(folders: dict[str, Path], **changes: Any) -> Any:
    from fastapi.testclient import TestClient

    from redraft.serve.app import create_app

    return TestClient(create_app(server_config(folders, **changes)), base_url="http://localhost")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["/v1/completions", CHAT])
def test_log_probabilities_under_a_constraint_are_finite_numbers(client: Any, route: str, stream: bool) -> None:
    more = {"logprobs": 3} if route == "/v1/completions" else {"logprobs": True, "top_logprobs": 3}
    body = {**ROUTES[route], "response_format": {"type": "regex", "pattern": "ja"}, "stream": stream, **more}
    answer = client.post(route, json=body)
    assert answer.status_code == 200
    assert "Infinity" not in answer.text and "NaN" not in answer.text
    assert '"ja"' in answer.text or '"j"' in answer.text


def test_offsets_and_bytes_of_characters_that_several_tokens_make_up(client: Any) -> None:
    """The offset of a token is the index of its character in the text; its bytes are those that it adds."""
    pattern = "a\U0001f600 é日b"
    form = {"response_format": {"type": "regex", "pattern": pattern}}
    body = {**ROUTES["/v1/completions"], **form, "max_tokens": 20, "logprobs": 1}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == pattern
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    body = {**ROUTES[CHAT], "model": "text-masked", **form, "max_tokens": 20, "logprobs": True}
    data = [bytes(one["bytes"]) for one in client.post(CHAT, json=body).json()["choices"][0]["logprobs"]["content"]]
    assert b"".join(data).decode() == pattern
    begins = [len(b"".join(data[:at])) for at in range(len(data))]
    whole = [len(pattern[:at].encode()) for at in range(len(pattern) + 1)]
    if [len(tokens)] == [len(data)]:
        assert offsets == [max(at for at, begin in enumerate(whole) if begin <= byte) for byte in begins]
    assert tokens[0] == "a" and "bytes:\\xf0" in tokens and "\ufffd" not in "".join(tokens)


def test_a_model_whose_name_has_a_slash_can_be_read(folders: dict[str, Path]) -> None:
    with opened({"own": folders["text-masked"]}, models=(f"my/org={folders['text-masked']}",)) as client:
        (listed,) = client.get("/v1/models").json()["data"]
        for path in ("my/org", "my%2Forg"):
            assert client.get(f"/v1/models/{path}").json()["id"] == listed["id"] == "my/org"


def test_preflights_need_no_key_and_errors_can_be_read_by_allowed_pages(folders: dict[str, Path]) -> None:
    page = {"Origin": "https://app.example"}
    asking = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    only = {"text-masked": folders["text-masked"]}
    with opened(only, api_keys=("secret-key",), cors=("https://app.example",), max_body=100) as client:
        assert client.options(CHAT, headers=asking).status_code == 200
        refused = client.post(CHAT, headers=page, json={})
        large = client.post(CHAT, headers={**page, "Authorization": "Bearer secret-key"}, json={"model": "x" * 200})
        assert (refused.status_code, large.status_code) == (401, 413)
        for answer in (refused, large):
            assert answer.headers["access-control-allow-origin"] == "https://app.example"


@pytest.mark.parametrize("host", ["[::1].evil.example", "localhost.evil.example", "testserver", "127.0.0.1:80:80", ""])
def test_hosts_that_only_begin_like_a_local_one_are_refused(client: Any, host: str) -> None:
    assert client.get("/healthz", headers={"Host": host}).status_code == 421


def test_probes_may_use_head(client: Any) -> None:
    for path in ("/healthz", "/metrics", "/v1/models"):
        answer = client.head(path)
        assert answer.status_code == 200 and not answer.content


def test_a_message_without_text_is_that_of_an_assistant(client: Any) -> None:
    talk = [{"role": "user", "content": "the"}, {"role": "assistant", "content": None}]
    last = {"role": "user", "content": "the cat"}
    assert client.post(CHAT, json={**ROUTES[CHAT], "messages": [*talk, last]}).status_code == 200
    answer = client.post(CHAT, json={**ROUTES[CHAT], "messages": [{"role": "user", "content": None}]})
    assert answer.status_code == 400 and "messages.0: " in answer.json()["error"]["message"]


@pytest.mark.parametrize("seed", [(1 << 63) - 1, -(1 << 63), 1 << 61, -(1 << 61) - 1, 7])
def test_every_seed_of_64_bits_is_accepted_and_the_one_in_the_answer_repeats_the_text(
    client: Any, offline: dict[str, Model], seed: int
) -> None:
    body = {**ROUTES["/v1/completions"], "seed": seed, "temperature": 1.0, "n": 2}
    answer = client.post("/v1/completions", json=body).json()
    used = answer["redraft"]["seed"]
    assert used == seed or abs(seed) >= 1 << 61
    for index, choice in enumerate(answer["choices"]):
        truth = offline["text-masked"].generate("the cat", max_new_tokens=8, seed=used + index, temperature=1.0)
        assert choice["text"] == truth[0].text


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"prompt": []}, "prompt: list should have at least 1 item, not 0."),
    ("/v1/completions", {"prompt": ["x"] * 65}, "prompt: list should have at most 64 items, not 65."),
    ("/v1/completions", {"prompt": 5}, "prompt: input should be a valid string or a valid list."),
    ("/v1/completions", {"stop": ["x"] * 9}, "stop: list should have at most 8 items, not 9."),
    ("/v1/completions", {"stop": "x" * 201}, "stop: string should have at most 200 characters."),
    ("/v1/completions", {"diffusion_steps": 0}, "redraft.steps: input should be greater than or equal to 1."),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content: input should be a valid string or"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: field"),
]


@pytest.mark.parametrize(("route", "wrong", "why"), WRONG)
def test_an_error_names_the_field_and_its_limit(client: Any, route: str, wrong: dict[str, Any], why: str) -> None:
    answer = client.post(route, json={**ROUTES[route], **wrong})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(why)


NUMBERS = ["NaN", "Infinity", "-Infinity", "1e400"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "field",
    ['"temperature": %s', '"seed": %s', '"redraft": {"options": {"steps": %s}}', '"redraft": {"deadline": %s}',
     '"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "number", "minimum": %s}}}'],
)  # fmt: skip
def test_numbers_that_are_not_finite_are_refused(client: Any, field: str, number: str) -> None:
    content = json.dumps(ROUTES["/v1/completions"])[:-1] + ", " + field % number + "}"
    answer = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "finite" in answer.json()["error"]["message"]


@pytest.mark.parametrize("levels", [99, 150, 450, 900])
def test_deep_nesting_is_refused(client: Any, levels: int) -> None:
    schema = '{"items": ' * levels + "{}" + "}" * levels
    form = '{"type": "json_schema", "json_schema": {"schema": ' + schema + "}}"
    content = json.dumps(ROUTES["/v1/completions"])[:-1] + f', "response_format": {form}' + "}"
    answer = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "nested" in answer.json()["error"]["message"]


def test_a_source_of_keys_without_a_key_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDRAFT_API_KEY", raising=False)
    assert read_keys(None, None) == ()
    keys = tmp_path / "keys.txt"
    for content in ("", "\n \n", "\ufeff"):
        keys.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="contains no API key"):
            read_keys(["given-key"], keys)
    keys.write_text("\ufefffirst-key\r\nsecond-key\r\n", encoding="utf-8")
    assert read_keys(None, keys) == ("first-key", "second-key")
    for blank in ("", "   ", "\n"):
        monkeypatch.setenv("REDRAFT_API_KEY", blank)
        with pytest.raises(UserError, match="REDRAFT_API_KEY contains no API key"):
            read_keys(None, None)
    for wrong in ("", " " * 8, "two words", "x" * 7):
        with pytest.raises(UserError, match="API key"):
            ServerConfig(("any",), api_keys=(wrong,))


def test_an_answer_to_which_nothing_can_be_added_ends_with_stop(client: Any, offline: dict[str, Model]) -> None:
    """Also if it takes all of ``max_tokens``; where more text may follow, it is cut off by the length."""
    for pattern, finish in (("[ab]{4}", "stop"), ("[ab]{4,9}", "length")):
        form = {"type": "regex", "pattern": pattern}
        body = {**ROUTES["/v1/completions"], "model": "text-autoregressive", "max_tokens": 4, "response_format": form}
        body["redraft"] = {"options": {"beams": 1}}
        choice = client.post("/v1/completions", json=body).json()["choices"][0]
        model = offline["text-autoregressive"]
        truth = model.generate("the cat", max_new_tokens=4, constraint={"regex": pattern})[0]
        assert choice["text"] == truth.text and len(truth.ids) <= 4
        if len(truth.ids) == 4:
            assert choice["finish_reason"] == truth.finish == finish
        else:
            assert choice["finish_reason"] == truth.finish == "stop"


def test_a_log_that_can_not_be_written_does_not_end_requests(
    client: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    from redraft.serve.telemetry import logger

    class Full:
        def write(self, _: str) -> None:
            raise OSError(28, "No space left on device")

        flush = write

    log = logger()
    before = list(log.handlers)
    log.handlers.clear()
    with monkeypatch.context() as context:
        context.setattr("sys.stderr", Full())
        logger()  # makes a handler for the full disk
    try:
        assert client.post("/v1/completions", json=ROUTES["/v1/completions"]).status_code == 200
    finally:
        log.handlers[:] = before
    assert "Logging error" not in capsys.readouterr().err and logging.raiseExceptions


def test_a_response_tells_which_messages_the_model_did_not_get(client: Any) -> None:
    talk = [("system", "be kind"), ("user", "the cat"), ("assistant", "a mat"), ("user", "the dog")]
    messages = [{"role": role, "content": content} for role, content in talk]
    body = {"model": "pairs-masked", "messages": messages, "seed": 1, "n": 2}
    (said,) = client.post(CHAT, json=body).json()["warnings"]
    assert said["code"] == "messages_left_out" and said["messages"] == [0, 1, 2]
    assert "the system message and 2 other messages" in said["message"]
    lines = [line for line in client.post(CHAT, json={**body, "stream": True}).text.splitlines() if line]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert [chunk.get("warnings") for chunk in chunks] == [[said], *[None] * (len(chunks) - 1)]
    for whole in ({**body, "messages": messages[-1:]}, {**body, "model": "text-masked"}):
        assert "warnings" not in client.post(CHAT, json=whole).json()
