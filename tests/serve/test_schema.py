"""Requests, responses and the documentation follow the declared settings."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from redraft.errors import UserError
from redraft.loading import load
from redraft.options import declared, http_fields, table
from redraft.serve.config import ServerConfig
from redraft.serve.settings_schema import OPENAI_NAMES, SETTINGS, SPELLINGS
from redraft.settings import Settings

REQUEST = {"model": "text-masked", "prompt": "the cat", "max_tokens": 8, "seed": 3}
ROOT = Path(__file__).parents[2]


def post(client: Any, **changes: Any) -> Any:
    return client.post("/v1/completions", json={**REQUEST, **changes})


def test_every_setting_that_http_may_set_is_documented_with_its_range(client: Any) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    settings = schemas["GenerationSettings"]["properties"]
    request = schemas["CompletionRequest"]["properties"]
    assert settings.keys() - {"deadline"} == http_fields(Settings).keys() - OPENAI_NAMES.keys()
    names = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
    for name, one in SETTINGS.items():
        if name == "seed":  # has limits and a description of its own: further answers need further seeds
            continue
        shown = request[OPENAI_NAMES[name]] if name in OPENAI_NAMES else settings[name]
        assert shown["description"] == one.help
        for limit in names.keys() & one.limits.keys():
            assert shown["anyOf"][0][names[limit]] == one.limits[limit], name
    assert set(SPELLINGS.values()) <= settings.keys() | {"block"}


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 1.0, "redraft": {"sampler": "confidence", "steps": 3, "top_k": 7}},
        {"temperature": 0.7, "top_p": 0.8, "redraft": {"cache": "none"}},
        {"model": "pairs-masked", "redraft": {"length": "search", "candidates": 2, "steps": 4}},
        {"model": "text-autoregressive", "redraft": {"options": {"beams": 2}}},
    ],
)
def test_offline_generation_with_the_returned_settings_gives_the_same_text(
    client: Any, folders: dict[str, Path], asked: dict[str, Any]
) -> None:
    answer = post(client, **asked).json()
    used = answer["redraft"]
    assert declared(Settings, "http").keys() <= used.keys()
    model = load(folders[answer["model"]], "cpu")
    assert model.generate("the cat", **used)[0].text == answer["choices"][0]["text"]
    given = {**{name: asked[name] for name in ("temperature", "top_p") if name in asked}, **asked["redraft"]}
    assert all(used[name] == value for name, value in given.items() if name != "options")


def test_numbers_may_be_integers_or_floats_and_null_is_unset(client: Any) -> None:
    plain = post(client, temperature=1.0, redraft={"steps": 4}).json()["choices"]
    assert post(client, temperature=1, redraft={"steps": 4.0, "sampler": None}, n=None).json()["choices"] == plain
    for wrong in ({"steps": 4.5}, {"steps": True}, {"steps": "4"}, {"candidates": 1000}, {"length": "long"}):
        assert post(client, redraft=wrong).status_code == 400, wrong


def test_an_unknown_field_is_an_error_with_a_suggestion(client: Any) -> None:
    for changes, expected in (
        ({"redraft": {"sampleer": "confidence"}}, "Did you mean 'sampler'?"),
        ({"steps": 3}, "redraft.steps"),
        ({"max_new_tokens": 3}, "max_tokens"),
        ({"redraft": {"temperature": 1}}, "Unknown field 'redraft.temperature'"),
        ({"redraft": {"weights": "int8"}}, "Unknown field 'redraft.weights'"),
        ({"redraft": 3}, "redraft"),
    ):
        answer = post(client, **changes)
        assert answer.status_code == 400 and expected in answer.json()["error"]["message"], answer.text


@pytest.mark.parametrize("name", ["this.zen", "this", "../this", "this:zen", "_shared"])
def test_a_request_cannot_import_code(client: Any, name: str) -> None:
    """A registry may accept dotted names of the operator's own parts. A request must not reach it with one."""
    sys.modules.pop("this", None)
    for key in ("sampler", "cache"):
        answer = post(client, redraft={key: name})
        assert answer.status_code == 400, answer.text
        assert "this" not in sys.modules


def test_errors_do_not_name_options_of_the_command_line(client: Any) -> None:
    for changes in ({"max_tokens": 4000}, {"redraft": {"steps": 99}}, {"redraft": {"candidates": 200}}, {"model": "x"}):
        answer = post(client, **changes)
        assert answer.status_code in (400, 404) and "--" not in answer.json()["error"]["message"], answer.text
    assert "redraft.steps" in post(client, redraft={"steps": 99}).json()["error"]["message"]


def test_the_documentation_has_the_table_of_server_options() -> None:
    assert table(ServerConfig, "cli") in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def test_every_field_of_the_configuration_is_declared_and_checked() -> None:
    assert {field.name for field in fields(ServerConfig)} == declared(ServerConfig).keys()
    for wrong in ({"batch": 0}, {"deadline": 0}, {"port": 70_000}, {"dtype": "int4"}, {"api_keys": ("short",)}):
        with pytest.raises(UserError):
            ServerConfig(("a model",), **wrong)
    with pytest.raises(UserError):
        ServerConfig(())
