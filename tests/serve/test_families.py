"""Every family behind the server: /v1/models is correct, and no request is an internal error."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redraft.data.tokenizer import Tokenizer
from redraft.loading import load
from redraft.model import Model
from redraft.presets import preset
from redraft.registry import find, names
from tests.drafters import drafter_for
from tests.serve.conftest import server_config

OPENED: list[str] = []
ASK = {"prompt": "ab", "max_tokens": 6, "seed": 1}


def _note(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        OPENED.append(str(args[0]))


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, tokenizer = tmp_path_factory.mktemp("families"), Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size, max_length=64)
    for name in names("families"):  # "autoregressive" is the first
        if find("families", name).needs_target:
            drafter_for(root / "autoregressive").save(root / name)
        else:
            Model.fresh({"name": name}, tokenizer, shape, paired=True, seed=1).save(root / name)
    return {name: root / name for name in names("families")}


@pytest.fixture(scope="module")
def server(families: dict[str, Path]) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    from redraft.serve.app import create_app

    with TestClient(create_app(server_config(families)), base_url="http://localhost") as opened:
        yield opened


@pytest.mark.parametrize("family", names("families"))
def test_models_route_describes_what_a_family_can_do(server: Any, families: dict[str, Path], family: str) -> None:
    shown = server.get(f"/v1/models/{family}").json()
    assert shown["samplers"]
    for sampler in [None, *names("samplers")]:
        own = {} if sampler is None else {"sampler": sampler}
        answer = server.post("/v1/completions", json={"model": family, **ASK, "redraft": own})
        fits = sampler is None or sampler in shown["samplers"]
        assert answer.status_code == (200 if fits else 400), f"{sampler}: {answer.text}"
        if sampler is not None and fits:
            assert answer.json()["redraft"]["sampler"] == sampler
    infilled = server.post("/v1/infill", json={"model": family, "text": "a[[2]]b", "prompt": "x", "seed": 1})
    assert (infilled.status_code == 200) == shown["infill"], infilled.text
    assert shown["left_to_right"] == ("autoregressive" in shown["samplers"])
    answer_text = server.post("/v1/completions", json={"model": family, **ASK}).json()["choices"][0]["text"]
    offline = load(families[family], "cpu").generate("ab", max_new_tokens=6, seed=1)[0]
    assert answer_text == offline.text


@pytest.mark.parametrize("family", names("families"))
def test_response_format_is_satisfied_or_rejected(server: Any, family: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "word", "schema": {"enum": ["ab", "cde"]}}}
    asked = {"model": family, **ASK, "max_tokens": 9, "temperature": 1.0, "response_format": form}
    answer = server.post("/v1/completions", json=asked)
    if family in ("latent", "edit"):
        assert answer.status_code == 400 and "can't be constrained" in answer.text
    else:
        assert answer.status_code == 200, answer.text
        assert json.loads(answer.json()["choices"][0]["text"]) in ("ab", "cde")


def test_no_request_can_open_a_file(server: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    sys.addaudithook(_note)  # can't be removed again; it costs nothing
    tried = 0
    for kind, key in (("samplers", "sampler"), ("caches", "cache")):
        for name in names(kind):
            for field in dataclasses.fields(find(kind, name)):
                if field.type not in ("str", "str | None", "Path", "Path | None"):
                    continue
                options = "options" if key == "sampler" else "cache_options"
                own = {key: name, options: {field.name: str(secret)}}
                for family in ("masked", "embedding", "hybrid"):
                    answer = server.post("/v1/completions", json={"model": family, **ASK, "redraft": own})
                    assert answer.status_code == 400, answer.text
                tried += 1
    assert tried >= 2  # an order and a file of frequencies
    assert str(secret) not in OPENED
    with secret.open():
        assert str(secret) in OPENED  # the audit hook works
