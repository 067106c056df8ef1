"""Invalid requests, unknown routes and internal errors: every error is in OpenAI's format and has a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import ROUTES, server_config

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"tempeature": 1}, "Did you mean 'temperature'"),
    ("/v1/completions", {"redraft": {"stpes": 3}}, "stpes"),
    ("/v1/completions", {"redraft": {"sampler": "confidnce"}}, "Did you mean 'confidence'"),
    ("/v1/completions", {"redraft": {"sampler": "confidence", "options": {"order": "sideways"}}}, "sideways"),
    ("/v1/completions", {"redraft": {"sampler": "../../etc/passwd"}}, "is not a name"),
    ("/v1/completions", {"model": "../../etc"}, "not served here"),
    ("/v1/completions", {"max_tokens": 0}, "max_tokens"),
    ("/v1/completions", {"max_tokens": 4000}, "exceed the context"),
    ("/v1/completions", {"prompt": "cat " * 500}, "context"),
    ("/v1/completions", {"prompt": []}, "prompt"),
    ("/v1/completions", {"prompt": [1 << 40]}, "not a token id"),
    ("/v1/completions", {"prompt": "\ud800"}, "not valid Unicode"),
    ("/v1/completions", {"model": "\ud800"}, "not valid Unicode"),
    ("/v1/completions", {"\ud800": 1}, "not valid Unicode"),
    ("/v1/completions", {"n": 100}, "at most 64"),
    ("/v1/completions", {"temperature": -1}, "temperature"),
    ("/v1/completions", {"temperature": "hot"}, "temperature"),
    ("/v1/completions", {"top_p": 2}, "top_p"),
    ("/v1/completions", {"stop": ""}, "stop"),
    ("/v1/completions", {"seed": 1 << 70}, "seed"),
    ("/v1/completions", {"logit_bias": {"5": 1}}, "logit_bias"),
    ("/v1/completions", {"best_of": 4}, "best_of"),
    ("/v1/completions", {"model": "text-autoregressive", "suffix": "x"}, "can't attend to the text after"),
    ("/v1/completions", {"redraft": {"candidates": 2}}, "candidates"),
    ("/v1/completions", {"model": "pairs-masked", "prompt": " "}, "The prompt is empty"),
    ("/v1/completions", {"model": "pairs-autoregressive", "prompt": ["a dog", ""]}, "The prompt is empty"),
    (
        "/v1/chat/completions",
        {"model": "pairs-masked", "messages": [{"role": "user", "content": ""}]},
        "no user message",
    ),
    ("/v1/chat/completions", {"messages": []}, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "system", "content": "x"}]}, "no user message"),
    ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "role"),
    ("/v1/chat/completions", {"tools": [{"type": "function"}]}, "tools"),
    ("/v1/chat/completions", {"max_tokens": 3, "max_completion_tokens": 4}, "differ"),
    ("/v1/infill", {"text": "no hole"}, "no hole"),
    ("/v1/infill", {"text": "a [[0]] b"}, "at least one token"),
    ("/v1/infill", {"text": "a [[5-2]] b"}, "smaller number"),
    ("/v1/infill", {"text": "a [[1-9999]] b"}, "context"),
    ("/v1/infill", {"text": "a [[999999]] b"}, "context"),
    ("/v1/infill", {"text": None}, "either"),
    ("/v1/infill", {"model": "text-autoregressive"}, "can't attend to the text after"),
]


@pytest.mark.parametrize(("route", "wrong", "why"), WRONG, ids=[json.dumps(case[1])[:40] for case in WRONG])
@pytest.mark.parametrize("stream", [False, True])
def test_an_invalid_request_gets_the_reason(
    client: Any, route: str, wrong: dict[str, Any], why: str, stream: bool
) -> None:
    content = json.dumps({**ROUTES[route], **wrong, "stream": stream})
    answer = client.post(route, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert why in error["message"]


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "[" * 100_000, '{"a":' * 50_000, "\xff", '{"seed": 1e400}'])
def test_an_invalid_body_gets_the_reason(client: Any, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/completions", content=body.encode("latin-1"), headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_an_internal_error_has_the_same_format(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    from redraft.serve import responses
    from redraft.serve.app import create_app

    def broken(*_: Any) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(responses.CompletionResponse, "complete", broken)
    only = {"text-masked": folders["text-masked"]}
    with TestClient(
        create_app(server_config(only)), base_url="http://localhost", raise_server_exceptions=False
    ) as opened:
        answer = opened.post("/v1/completions", json=ROUTES["/v1/completions"])
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text
        assert opened.get("/healthz").status_code == 200


def test_unknown_routes_and_methods_have_the_same_format(client: Any) -> None:
    assert client.post("/v1/nothing").status_code == 404
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/../../etc/passwd").status_code == 404
    for answer in (client.post("/v1/nothing"), client.get("/v1/completions"), client.get("/v1/models/none")):
        assert answer.json()["error"]["message"]
