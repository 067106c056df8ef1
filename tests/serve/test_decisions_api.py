"""Decisions over HTTP are those of ``Model.decide``."""

from __future__ import annotations

from typing import Any

import pytest

from redraft.model import Model
from redraft.options import http_fields
from redraft.settings import DecisionSettings

TEXT, LABELS = "the {what} sat on [where] and [who]", {"where": ["a mat", "the house"], "who": ["cat", "dog", "a bird"]}
ROWS = [{"what": "cat"}, {"what": "the bird that sang all day"}, {"what": ""}]
BODY = {"text": TEXT, "labels": LABELS, "rows": ROWS}


def post(client: Any, **body: Any) -> Any:
    return client.post("/v1/decide", json={"model": "text-masked", **BODY, **body})


@pytest.mark.parametrize("name", ["text-masked", "text-autoregressive", "pairs-masked"])
def test_decisions_are_those_of_the_model(client: Any, offline: dict[str, Model], name: str) -> None:
    paired = name.startswith("pairs")
    more: dict[str, Any] = {"text": "[where] [who]", "prompt": "the {what}"} if paired else {}
    answer = post(client, model=name, calibrate=True, by="token", **more)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    text, prompt = (more["text"], more["prompt"]) if paired else (TEXT, "")
    expected = offline[name].decide(text, LABELS, ROWS, prompt, calibrate=True, by="token")
    assert body["object"] == "decision" and body["redraft"]["by"] == "token" and len(body["decisions"]) == 3
    for found, own in zip(body["decisions"], expected, strict=True):
        assert (found["text"], found["labels"], found["nfe"]) == (own.text, own.labels, own.nfe)
        for slot, p in own.probabilities.items():
            assert found["probabilities"][slot] == pytest.approx(p, abs=1e-5)
    alone = post(client, model=name, calibrate=True, by="token", **{**more, "rows": ROWS[1:2]}).json()["decisions"][0]
    assert alone["labels"] == body["decisions"][1]["labels"]


def test_the_schema_declares_settings_and_response(client: Any) -> None:
    document = client.get("/openapi.json").json()
    request = document["components"]["schemas"]["DecideRequest"]["properties"]
    for name, one in http_fields(DecisionSettings).items():
        assert request[name]["description"] == one.help
    schema = document["paths"]["/v1/decide"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/DecideResponse")
    properties = document["components"]["schemas"]["DecideResponse"]["properties"]
    assert set(post(client).json()) == set(properties)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {"where": ["a mat", "a mat"], "who": ["x", "y"]}}, "occurs twice"),
        ({"labels": {"where": ["a mat", "b"]}}, "[who] has no labels"),
        ({"labels": {"where": ["a mat"], "who": ["x", "y"]}}, "labels.where"),
        ({"labels": {"where": ["a", "b"], "wo": ["x", "y"]}}, "Did you mean"),
        ({"rows": [{}]}, "no field 'what'"),
        ({"rows": [{"what": 3}]}, "rows.0.what"),
        ({"rows": ROWS * 30}, "at most 64"),
        ({"method": "guess"}, "method"),
        ({"metod": "chain"}, "Did you mean 'method'"),
        ({"model": "text-autoregressive", "method": "one_pass"}, "Use method 'likelihood'"),
        ({"model": "gone"}, "not served here"),
        ({"deadline": 0.000001}, "deadline"),
        ({"text": "the {what} " * 400 + "[where][who]"}, "does not fit"),
    ],
)
def test_mistakes_are_named(client: Any, changes: dict[str, Any], words: str) -> None:
    answer = post(client, **changes)
    assert answer.status_code in (400, 404, 408) and words in answer.json()["error"]["message"], answer.text


def test_requests_are_counted(client: Any) -> None:
    assert post(client).status_code == 200
    assert 'route="/v1/decide"' in client.get("/metrics").text
