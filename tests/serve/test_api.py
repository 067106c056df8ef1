"""The HTTP interface as clients see it: OpenAI's own client, plain requests, wrong requests."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from redraft import infilling
from redraft.errors import UserError
from redraft.loading import load
from redraft.model import Model
from tests.serve.conftest import settings

ROUTES = {
    "/v1/completions": {"model": "text-masked", "prompt": "the cat", "max_tokens": 8},
    "/v1/chat/completions": {"model": "pairs-masked", "messages": [{"role": "user", "content": "the cat"}]},
    "/v1/infill": {"model": "text-masked", "text": "the [[2]] sat on [[1]] mat"},
}


@pytest.fixture(scope="session")
def offline(folders: dict[str, Path]) -> dict[str, Model]:
    return {name: load(folder, "cpu") for name, folder in folders.items()}


def events(response: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, the closing mark checked and dropped."""
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


# ---- OpenAI's own client


@pytest.fixture(scope="session")
def openai(address: str) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)


def test_openai_lists_models(openai: Any, folders: dict[str, Path]) -> None:
    assert {model.id for model in openai.models.list()} == set(folders)
    assert openai.models.retrieve("text-masked").id == "text-masked"


@pytest.mark.parametrize("name", ["text-masked", "text-autoregressive", "pairs-masked", "pairs-autoregressive"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_openai_completions_equal_offline_generation(
    openai: Any, offline: dict[str, Model], name: str, temperature: float
) -> None:
    asked = {"model": name, "prompt": "the cat", "max_tokens": 10, "temperature": temperature, "seed": 7}
    truth = offline[name].generate("the cat", max_new_tokens=10, temperature=temperature, seed=7)[0]
    whole = openai.completions.create(**asked)
    assert whole.choices[0].text == truth.text
    assert whole.choices[0].finish_reason == truth.finish
    assert whole.usage.completion_tokens == len(truth.ids)
    assert whole.usage.prompt_tokens == len(offline[name].prompt_ids("the cat"))
    parts = list(openai.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in parts if part.choices) == truth.text
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == truth.finish
    assert parts[-1].usage == whole.usage


@pytest.mark.parametrize("name", ["pairs-masked", "pairs-autoregressive"])
def test_openai_chat_of_a_model_of_pairs_answers_the_last_message(
    openai: Any, offline: dict[str, Model], name: str
) -> None:
    truth = offline[name].generate("a dog ran", max_new_tokens=9, seed=3, temperature=1.0)[0]
    messages = [{"role": "user", "content": "unseen"}, {"role": "assistant", "content": "unseen"}]
    messages.append({"role": "user", "content": [{"type": "text", "text": "a dog"}, {"type": "text", "text": " ran"}]})
    asked = {"model": name, "messages": messages, "max_completion_tokens": 9, "seed": 3, "temperature": 1.0}
    assert openai.chat.completions.create(**asked).choices[0].message.content == truth.text
    parts = list(openai.chat.completions.create(**asked, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == truth.text


def test_openai_chat_of_a_model_of_text_is_a_transcript(openai: Any, offline: dict[str, Model]) -> None:
    said = "You are a cat.\nUser: hi\nAssistant: hello\nUser: where\nAssistant:"
    truth = offline["text-autoregressive"].generate(said, max_new_tokens=8, seed=1, temperature=1.0)[0]
    messages = [
        {"role": "system", "content": "You are a cat."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "where"},
    ]
    found = openai.chat.completions.create(
        model="text-autoregressive", messages=messages, max_tokens=8, seed=1, temperature=1.0
    )
    assert found.choices[0].message.content == truth.text.split("\nUser:")[0]


def test_openai_gets_errors_of_its_own_kinds(openai: Any) -> None:
    import openai as package

    with pytest.raises(package.NotFoundError, match="not served here"):
        openai.completions.create(model="nothing", prompt="a")
    with pytest.raises(package.BadRequestError, match="can't be honoured"):
        openai.completions.create(model="text-masked", prompt="a", presence_penalty=1.0)
    with pytest.raises(package.BadRequestError, match="steps = 9"):
        openai.completions.create(
            model="text-masked", prompt="a", max_tokens=4, stream=True, extra_body={"redraft": {"steps": 9}}
        )
    with pytest.raises(package.NotFoundError, match="embeddings"):
        openai.embeddings.create(model="text-masked", input="a")


# ---- what the fields do


def test_n_prompts_and_seeds(client: Any, offline: dict[str, Model]) -> None:
    """Choice i is what a batch of offline generation writes in row i."""
    body = {
        "model": "text-masked",
        "prompt": ["the cat", "a dog"],
        "n": 2,
        "max_tokens": 6,
        "temperature": 1,
        "seed": 5,
    }
    found = client.post("/v1/completions", json=body).json()
    truth = offline["text-masked"].generate(
        ["the cat", "the cat", "a dog", "a dog"], max_new_tokens=6, temperature=1.0, seed=5
    )
    assert [choice["text"] for choice in found["choices"]] == [one.text for one in truth]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]


def test_a_fresh_seed_is_told_and_repeats_the_text(client: Any) -> None:
    body = {"model": "text-autoregressive", "prompt": "the", "temperature": 1, "max_tokens": 12}
    first = client.post("/v1/completions", json=body).json()
    again = client.post("/v1/completions", json={**body, "seed": first["redraft"]["seed"]}).json()
    assert first["choices"][0]["text"] == again["choices"][0]["text"]


def test_token_ids_as_a_prompt(client: Any, offline: dict[str, Model]) -> None:
    ids = offline["text-masked"].prompt_ids("the cat")  # taken as they are, as offline
    body = {"model": "text-masked", "prompt": ids, "max_tokens": 6, "seed": 0}
    found = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert found == offline["text-masked"].generate("the cat", max_new_tokens=6)[0].text


def test_logprobs_are_those_of_the_tokens_as_written(client: Any, offline: dict[str, Model]) -> None:
    """Summed they are the score; of a left-to-right greedy text every token is its own likeliest alternative."""
    body = {"model": "text-autoregressive", "prompt": "the cat", "max_tokens": 6, "logprobs": 2, "temperature": 0}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    truth = offline["text-autoregressive"].generate("the cat", max_new_tokens=6)[0]
    shown = choice["logprobs"]
    assert len(shown["tokens"]) == len(truth.ids)
    if truth.finish == "length":
        assert sum(shown["token_logprobs"]) == pytest.approx(truth.score, abs=1e-3)
    for token, log_p, top in zip(shown["tokens"], shown["token_logprobs"], shown["top_logprobs"], strict=True):
        assert top[token] == pytest.approx(log_p, abs=1e-5)
        assert log_p == pytest.approx(max(top.values()), abs=1e-5)
    chat = {"model": "pairs-masked", "messages": [{"role": "user", "content": "the"}], "logprobs": True, "seed": 0}
    found = client.post("/v1/chat/completions", json={**chat, "top_logprobs": 3}).json()["choices"][0]
    assert all(len(one["top_logprobs"]) == 3 for one in found["logprobs"]["content"])


def test_own_settings_are_those_of_offline_generation(client: Any, offline: dict[str, Model]) -> None:
    own = {"sampler": "confidence", "steps": 3, "options": {"order": "margin"}, "block": 4, "top_k": 5}
    body = {"model": "text-masked", "prompt": "the cat", "max_tokens": 8, "seed": 2, "temperature": 0.8, "redraft": own}
    truth = offline["text-masked"].generate(
        "the cat",
        max_new_tokens=8,
        seed=2,
        temperature=0.8,
        sampler="confidence",
        steps=3,
        options={"order": "margin", "block": 4},
        top_k=5,
    )[0]
    found = client.post("/v1/completions", json=body).json()
    assert found["choices"][0]["text"] == truth.text
    assert found["choices"][0]["redraft"]["nfe"] == truth.nfe
    assert {"steps": 3, "order": "margin", "block": 4}.items() <= found["redraft"]["options"].items()
    spelt = {**body, "redraft": {**own, "block_length": 4}, "diffusion_steps": 3}
    del spelt["redraft"]["block"], spelt["redraft"]["steps"]
    assert client.post("/v1/completions", json=spelt).json()["choices"][0]["text"] == truth.text


def test_infilling_keeps_what_stands(client: Any, offline: dict[str, Model]) -> None:
    text = "the [[2]] sat on [[1]] mat"
    truth = offline["text-masked"].infill(text, seed=4)
    found = client.post("/v1/infill", json={"model": "text-masked", "text": text, "seed": 4}).json()["choices"][0]
    assert found["text"] == truth.text
    assert found["text"].startswith("the ") and found["text"].endswith(" mat") and len(found["holes"]) == 2
    holes = found["holes"]
    assert found["text"] == f"the {holes[0]} sat on {holes[1]} mat"
    parts = {"model": "text-masked", "parts": ["the ", 2, " sat on ", 1, " mat"], "seed": 4}
    assert client.post("/v1/infill", json=parts).json()["choices"][0]["text"] == truth.text


HOLES = ["the [[?]] sat on [[1-4]] mat", "[[2]] cat [[1-3]]", "the [[3-3]][[1]] mat", "the cat sat [[?]]"]


@pytest.mark.parametrize("name", ["text-masked", "pairs-masked"])
@pytest.mark.parametrize("text", HOLES)
def test_holes_of_open_size_are_what_they_are_offline(
    client: Any, offline: dict[str, Model], name: str, text: str
) -> None:
    """Whole, in parts, and streamed: one text, that of Python and the command line."""
    truth = offline[name].infill(text, prompt="a dog", seed=4, temperature=1.0)
    body = {"model": name, "prompt": "a dog", "seed": 4, "temperature": 1.0}
    found = client.post("/v1/infill", json={**body, "text": text}).json()["choices"][0]
    assert found["text"] == truth.text
    assert found["redraft"]["nfe"] == truth.nfe
    parts = [part if isinstance(part, str) else [part.least, part.most] for part in infilling.parse(text)]
    assert client.post("/v1/infill", json={**body, "parts": parts}).json()["choices"][0]["text"] == truth.text
    streamed = events(client.post("/v1/infill", json={**body, "text": text, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed if chunk["choices"]) == truth.text


def test_many_holes_of_unknown_size_are_refused(client: Any) -> None:
    answer = client.post("/v1/infill", json={"model": "text-masked", "text": "[[?]] a " * 17})
    assert answer.status_code == 400 and "unknown size" in answer.json()["error"]["message"]


def test_the_space_before_a_gap_is_left_to_it(client: Any, offline: dict[str, Model]) -> None:
    """A prompt of plain text that ends in a space, and a suffix: as infilling offline has it."""
    body = {"model": "text-masked", "prompt": "the cat ", "suffix": " mat", "max_tokens": 3, "seed": 4}
    found = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert "the cat " + found + " mat" == offline["text-masked"].infill("the cat [[3]] mat", seed=4).text


def test_only_what_was_written_is_counted(client: Any, offline: dict[str, Model]) -> None:
    given = [offline["text-masked"].tokenizer.encode(part) for part in ("the cat", " a mat")]
    answer = client.post("/v1/infill", json={"model": "text-masked", "text": "the cat[[2]] a mat", "seed": 4}).json()
    assert answer["usage"]["completion_tokens"] == answer["choices"][0]["redraft"]["tokens"] == 2
    assert answer["usage"]["prompt_tokens"] >= sum(map(len, given))


def test_an_empty_prompt_is_no_question_offline_either(offline: dict[str, Model]) -> None:
    for model in (offline["pairs-masked"], offline["pairs-autoregressive"]):
        with pytest.raises(UserError, match="the prompt is empty"):
            model.generate(["a dog", ""])
        with pytest.raises(UserError, match="the prompt is empty"):
            next(model.stream(" "))
    assert offline["text-masked"].generate("", max_new_tokens=4)


def test_a_suffix_makes_a_gap_of_max_tokens(client: Any, offline: dict[str, Model]) -> None:
    body = {"model": "pairs-masked", "prompt": "the cat", "suffix": " mat", "max_tokens": 5, "seed": 4}
    found = client.post("/v1/completions", json=body).json()["choices"][0]
    truth = offline["pairs-masked"].infill("[[5]] mat", prompt="the cat", seed=4)
    assert found["text"] + " mat" == truth.text
    assert found["finish_reason"] == "stop"


def test_pictures_of_the_canvas(client: Any) -> None:
    body = {
        "model": "pairs-masked",
        "prompt": "the cat",
        "max_tokens": 12,
        "seed": 1,
        "stream": True,
        "diffusing": True,
    }
    chunks = events(client.post("/v1/completions", json=body))
    pictures = [chunk["diffusion"] for chunk in chunks]
    assert [picture["step"] for picture in pictures] == sorted(picture["step"] for picture in pictures)
    sealed: dict[int, str] = {}
    for picture in pictures:
        places = [piece["position"] for piece in picture["canvas"]]
        assert places == sorted(set(places))
        for piece in picture["canvas"]:
            assert piece["status"] in ("given", "free", "draft", "sealed")
            assert piece["confidence"] is None or 0 <= piece["confidence"] <= 1
            if picture["rows"] == 1 and piece["status"] == "sealed" and piece["tokens"] == 1:
                assert sealed.setdefault(piece["position"], piece["text"]) == piece["text"], "sealed text never changes"
    assert not [piece for piece in pictures[-1]["canvas"] if piece["status"] in ("free", "draft")]
    assert "".join(piece["text"] for piece in pictures[-1]["canvas"]) == "".join(
        c["choices"][0]["text"] for c in chunks
    )


def test_a_format_is_kept_to(client: Any) -> None:
    body = {**ROUTES["/v1/completions"], "response_format": {"type": "regex", "pattern": "[ab]{2,6}"}}
    answer = client.post("/v1/completions", json=body)
    assert re.fullmatch("[ab]{2,6}", answer.json()["choices"][0]["text"])
    body["response_format"] = {"type": "text"}
    assert client.post("/v1/completions", json=body).status_code == 200


# ---- wrong requests


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"tempeature": 1}, "Did you mean 'temperature'"),
    ("/v1/completions", {"redraft": {"stpes": 3}}, "stpes"),
    ("/v1/completions", {"redraft": {"sampler": "confidnce"}}, "Did you mean 'confidence'"),
    ("/v1/completions", {"redraft": {"sampler": "confidence", "options": {"order": "sideways"}}}, "sideways"),
    ("/v1/completions", {"redraft": {"sampler": "../../etc/passwd"}}, "unknown sampler"),
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
    ("/v1/completions", {"model": "text-autoregressive", "suffix": "x"}, "can't see what follows"),
    ("/v1/completions", {"redraft": {"candidates": 2}}, "candidates"),
    ("/v1/completions", {"model": "pairs-masked", "prompt": " "}, "the prompt is empty"),
    ("/v1/completions", {"model": "pairs-autoregressive", "prompt": ["a dog", ""]}, "the prompt is empty"),
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
    ("/v1/infill", {"text": "a [[0]] b"}, "no tokens"),
    ("/v1/infill", {"text": "a [[5-2]] b"}, "smaller number"),
    ("/v1/infill", {"text": "a [[1-9999]] b"}, "context"),
    ("/v1/infill", {"text": "a [[999999]] b"}, "context"),
    ("/v1/infill", {"text": None}, "either"),
    ("/v1/infill", {"model": "text-autoregressive"}, "can't see what follows"),
]


@pytest.mark.parametrize(("route", "wrong", "why"), WRONG, ids=[json.dumps(case[1])[:40] for case in WRONG])
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_honoured_says_why(
    client: Any, route: str, wrong: dict[str, Any], why: str, stream: bool
) -> None:
    content = json.dumps({**ROUTES[route], **wrong, "stream": stream})
    answer = client.post(route, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert why in error["message"]


@pytest.mark.parametrize("body", ["", "{", "[]", "null", "[" * 100_000, '{"a":' * 50_000, "\xff", '{"seed": 1e400}'])
def test_what_is_no_request_is_told_so(client: Any, body: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.post("/v1/completions", content=body.encode("latin-1"), headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_an_error_of_ours_has_the_same_shape(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    from redraft.serve import wire
    from redraft.serve.app import create_app

    def broken(*_: Any) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(wire.Completion, "whole", broken)
    only = {"text-masked": folders["text-masked"]}
    with TestClient(create_app(settings(only)), raise_server_exceptions=False) as opened:
        answer = opened.post("/v1/completions", json=ROUTES["/v1/completions"])
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text
        assert opened.get("/healthz").status_code == 200


def test_unknown_routes_and_methods_have_the_same_shape(client: Any) -> None:
    assert client.post("/v1/nothing").status_code == 404
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/../../etc/passwd").status_code == 404
    for answer in (client.post("/v1/nothing"), client.get("/v1/completions"), client.get("/v1/models/none")):
        assert answer.json()["error"]["message"]


# ---- operation


def app_with(folders: dict[str, Path], **changes: Any) -> Any:
    from fastapi.testclient import TestClient

    from redraft.serve.app import create_app

    few = {"text-masked": folders["text-masked"]}
    return TestClient(create_app(settings(few, **changes)))


def test_keys_close_everything_but_the_page_and_health(folders: dict[str, Path]) -> None:
    with app_with(folders, api_keys=("first-secret", "second-secret")) as client:
        assert client.get("/healthz").status_code == client.get("/").status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert client.get(path, headers={"Authorization": "Basic first-secret"}).status_code == 401
            for key in ("first-secret", "second-secret"):
                assert client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_large_bodies_are_refused_declared_or_not(folders: dict[str, Path]) -> None:
    with app_with(folders, max_body=1000) as client:
        large = json.dumps({**ROUTES["/v1/completions"], "prompt": "x" * 2000}).encode()
        headers = {"Content-Type": "application/json"}
        assert client.post("/v1/completions", content=large, headers=headers).status_code == 413
        chunks = (large[i : i + 100] for i in range(0, len(large), 100))
        assert client.post("/v1/completions", content=chunks, headers=headers).status_code == 413


def test_a_local_server_has_only_local_names(folders: dict[str, Path]) -> None:
    with app_with(folders) as client:
        assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 421
        assert client.get("/healthz", headers={"Host": "localhost:8000"}).status_code == 200
        assert client.get("/healthz", headers={"Host": "[::1]:8000"}).status_code == 200


def test_no_page_from_elsewhere_may_ask_unless_named(folders: dict[str, Path]) -> None:
    asking = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    with app_with(folders) as client:
        assert "access-control-allow-origin" not in client.options("/v1/completions", headers=asking).headers
    with app_with(folders, cors=("https://page.example",)) as client:
        allowed = client.options("/v1/completions", headers=asking).headers
        assert allowed["access-control-allow-origin"] == "https://page.example"


def test_a_form_from_another_page_is_no_request(client: Any) -> None:
    """What a browser sends across origins without asking is not read as JSON."""
    content = json.dumps(ROUTES["/v1/completions"])
    answer = client.post("/v1/completions", content=content, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400 and "application/json" in answer.json()["error"]["message"]


def test_deadlines_and_output_limits(folders: dict[str, Path]) -> None:
    with app_with(folders, max_tokens=5) as client:
        body = dict(ROUTES["/v1/completions"])
        assert "allows" in client.post("/v1/completions", json=body).json()["error"]["message"]
        del body["max_tokens"]
        assert client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] <= 5
        late = client.post("/v1/completions", json={**body, "redraft": {"deadline": 1e-9}})
        assert late.status_code == 408


def test_metrics_and_log_tell_what_was_done_but_not_what_was_said(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    import logging

    for handler in list(logging.getLogger("redraft.serve").handlers):
        logging.getLogger("redraft.serve").removeHandler(handler)
    with app_with(folders) as client:
        assert client.post("/v1/completions", json={**ROUTES["/v1/completions"], "prompt": "secret"}).status_code == 200
        shown = client.get("/metrics").text
    assert 'redraft_requests_total{route="/v1/completions",status="200"} 1.0' in shown
    assert 'redraft_finished_total{model="text-masked"} 1.0' in shown
    line = json.loads(capsys.readouterr().err.strip().splitlines()[-1])
    assert line["event"] == "request" and line["completion_tokens"] > 0
    assert "secret" not in json.dumps(line)


def test_models_are_unloaded_and_come_back(folders: dict[str, Path]) -> None:
    with app_with(folders) as client:
        shelf = client.app.state.service.shelf
        first = client.post("/v1/completions", json={**ROUTES["/v1/completions"], "seed": 1}).json()
        gone = client.portal.call(shelf.put_away, 0.0)
        assert gone == ["text-masked"] and not client.get("/v1/models").json()["data"][0]["loaded"]
        again = client.post("/v1/completions", json={**ROUTES["/v1/completions"], "seed": 1}).json()
        assert again["choices"][0]["text"] == first["choices"][0]["text"]


def test_many_clients_at_once_get_their_own_answers(address: str, offline: dict[str, Model]) -> None:
    openai = pytest.importorskip("openai")
    connection = openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0)
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        body = {"model": "text-autoregressive", "prompt": f"the cat {number}", "max_tokens": 8, "seed": number}
        parts = connection.completions.create(**body, temperature=1.0, stream=True)
        found[number] = "".join(part.choices[0].text for part in parts)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    model = offline["text-autoregressive"]
    for number in range(24):
        truth = model.generate(f"the cat {number}", max_new_tokens=8, seed=number, temperature=1.0)[0]
        assert found[number] == truth.text


def test_public_checkpoints_are_served_by_ids_and_under_any_name(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import redraft

    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**shape, vocab_size=50, max_position_embeddings=64, eos_token_id=[2, 3])
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "checkpoint")
    models = (f"mine={tmp_path / 'checkpoint'}", f"{tmp_path / 'checkpoint'}")
    offline = redraft.load(tmp_path / "checkpoint", "cpu")
    from fastapi.testclient import TestClient

    from redraft.serve.app import create_app
    from redraft.serve.settings import Settings

    with TestClient(create_app(Settings(models, device="cpu"))) as opened:
        told = opened.get("/v1/models").json()["data"]
        assert [(one["id"], one["family"], one["infill"]) for one in told] == [
            ("mine", "autoregressive", False),
            ("checkpoint", "autoregressive", False),
        ]
        assert told[0]["samplers"] == ["autoregressive"]
        body = {"prompt": [5, 6, 7], "max_tokens": 6, "temperature": 1.0, "seed": 4}
        for name in ("mine", "checkpoint"):
            found = opened.post("/v1/completions", json={"model": name, **body}).json()
            expected = offline.generate([[5, 6, 7]], max_new_tokens=6, temperature=1.0, seed=4)[0]
            assert found["choices"][0]["text"] == expected.text and found["usage"]["prompt_tokens"] == 3
        refused = opened.post("/v1/completions", json={"model": "mine", "prompt": "text"})
        assert refused.status_code == 400 and "tokenizer.json" in refused.json()["error"]["message"]
    with pytest.raises(UserError, match="two models are called"):
        create_app(Settings((models[1], models[1])))


def test_the_openapi_document_names_every_route(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(ROUTES) | {"/healthz", "/metrics", "/v1/models", "/v1/models/{name}"} == set(paths)
