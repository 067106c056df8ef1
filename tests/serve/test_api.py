"""The HTTP API as clients see it: OpenAI's own client, and plain requests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from redraft.errors import UserError
from redraft.generation import infill
from redraft.generation.prompts import prompt_ids
from redraft.model import Model
from tests.serve.conftest import ROUTES


def events(response: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, without the [DONE] at its end."""
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
    assert whole.usage.prompt_tokens == len(prompt_ids(offline[name], "the cat"))
    parts = list(openai.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in parts if part.choices) == truth.text
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == truth.finish
    assert parts[-1].usage == whole.usage


@pytest.mark.parametrize("name", ["pairs-masked", "pairs-autoregressive"])
def test_openai_chat_of_a_prompt_and_answer_model_uses_the_last_message(
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


def test_openai_chat_of_a_plain_text_model_uses_a_transcript(openai: Any, offline: dict[str, Model]) -> None:
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


def test_openai_raises_its_own_exceptions(openai: Any) -> None:
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


# ---- fields of requests


def test_choices_of_several_prompts_and_answers(client: Any, offline: dict[str, Model]) -> None:
    """Choice i equals row i of a batch in offline generation."""
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


def test_the_response_has_the_random_seed_that_repeats_the_text(client: Any) -> None:
    body = {"model": "text-autoregressive", "prompt": "the", "temperature": 1, "max_tokens": 12}
    first = client.post("/v1/completions", json=body).json()
    again = client.post("/v1/completions", json={**body, "seed": first["redraft"]["seed"]}).json()
    assert first["choices"][0]["text"] == again["choices"][0]["text"]


def test_token_ids_as_a_prompt(client: Any, offline: dict[str, Model]) -> None:
    ids = prompt_ids(offline["text-masked"], "the cat")  # used as they are, as offline
    body = {"model": "text-masked", "prompt": ids, "max_tokens": 6, "seed": 0}
    found = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert found == offline["text-masked"].generate("the cat", max_new_tokens=6)[0].text


def test_logprobs_are_those_of_the_generated_tokens(client: Any, offline: dict[str, Model]) -> None:
    """Their sum is the score; with greedy left-to-right decoding each token is its own best alternative."""
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


def test_the_table_redraft_has_the_settings_of_offline_generation(client: Any, offline: dict[str, Model]) -> None:
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


def test_infilling_keeps_the_given_text(client: Any, offline: dict[str, Model]) -> None:
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
def test_holes_of_unknown_size_equal_offline_infilling(
    client: Any, offline: dict[str, Model], name: str, text: str
) -> None:
    """As text, as parts and streamed, the answer is that of offline infilling."""
    truth = offline[name].infill(text, prompt="a dog", seed=4, temperature=1.0)
    body = {"model": name, "prompt": "a dog", "seed": 4, "temperature": 1.0}
    found = client.post("/v1/infill", json={**body, "text": text}).json()["choices"][0]
    assert found["text"] == truth.text
    assert found["redraft"]["nfe"] == truth.nfe
    parts = [part if isinstance(part, str) else [part.least, part.most] for part in infill.parse(text)]
    assert client.post("/v1/infill", json={**body, "parts": parts}).json()["choices"][0]["text"] == truth.text
    streamed = events(client.post("/v1/infill", json={**body, "text": text, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed if chunk["choices"]) == truth.text


def test_too_many_holes_of_unknown_size_are_rejected(client: Any) -> None:
    answer = client.post("/v1/infill", json={"model": "text-masked", "text": "[[?]] a " * 17})
    assert answer.status_code == 400 and "unknown size" in answer.json()["error"]["message"]


def test_a_space_before_a_gap_belongs_to_the_gap(client: Any, offline: dict[str, Model]) -> None:
    """A plain-text prompt that ends with a space, and a suffix, equal offline infilling."""
    body = {"model": "text-masked", "prompt": "the cat ", "suffix": " mat", "max_tokens": 3, "seed": 4}
    found = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert "the cat " + found + " mat" == offline["text-masked"].infill("the cat [[3]] mat", seed=4).text


def test_only_new_tokens_are_counted_as_completion(client: Any, offline: dict[str, Model]) -> None:
    given = [offline["text-masked"].tokenizer.encode(part) for part in ("the cat", " a mat")]
    answer = client.post("/v1/infill", json={"model": "text-masked", "text": "the cat[[2]] a mat", "seed": 4}).json()
    assert answer["usage"]["completion_tokens"] == answer["choices"][0]["redraft"]["tokens"] == 2
    assert answer["usage"]["prompt_tokens"] >= sum(map(len, given))


def test_an_empty_prompt_is_an_error_offline_too(offline: dict[str, Model]) -> None:
    for model in (offline["pairs-masked"], offline["pairs-autoregressive"]):
        with pytest.raises(UserError, match="The prompt is empty"):
            model.generate(["a dog", ""])
        with pytest.raises(UserError, match="The prompt is empty"):
            next(model.stream(" "))
    assert offline["text-masked"].generate("", max_new_tokens=4)


def test_a_suffix_makes_a_gap_of_max_tokens(client: Any, offline: dict[str, Model]) -> None:
    body = {"model": "pairs-masked", "prompt": "the cat", "suffix": " mat", "max_tokens": 5, "seed": 4}
    found = client.post("/v1/completions", json=body).json()["choices"][0]
    truth = offline["pairs-masked"].infill("[[5]] mat", prompt="the cat", seed=4)
    assert found["text"] + " mat" == truth.text
    assert found["finish_reason"] == "stop"


def test_frames_of_the_canvas(client: Any) -> None:
    body = {
        "model": "pairs-masked",
        "prompt": "the cat",
        "max_tokens": 12,
        "seed": 1,
        "stream": True,
        "diffusing": True,
    }
    chunks = events(client.post("/v1/completions", json=body))
    frames = [chunk["diffusion"] for chunk in chunks]
    assert [frame["step"] for frame in frames] == sorted(frame["step"] for frame in frames)
    sealed: dict[int, str] = {}
    for frame in frames:
        places = [piece["position"] for piece in frame["canvas"]]
        assert places == sorted(set(places))
        for piece in frame["canvas"]:
            assert piece["status"] in ("given", "free", "draft", "sealed")
            assert piece["confidence"] is None or 0 <= piece["confidence"] <= 1
            if frame["rows"] == 1 and piece["status"] == "sealed" and piece["tokens"] == 1:
                assert sealed.setdefault(piece["position"], piece["text"]) == piece["text"], "sealed text never changes"
    assert not [piece for piece in frames[-1]["canvas"] if piece["status"] in ("free", "draft")]
    assert "".join(piece["text"] for piece in frames[-1]["canvas"]) == "".join(c["choices"][0]["text"] for c in chunks)


def test_a_response_format_is_satisfied(client: Any) -> None:
    body = {**ROUTES["/v1/completions"], "response_format": {"type": "regex", "pattern": "[ab]{2,6}"}}
    answer = client.post("/v1/completions", json=body)
    assert re.fullmatch("[ab]{2,6}", answer.json()["choices"][0]["text"])
    body["response_format"] = {"type": "text"}
    assert client.post("/v1/completions", json=body).status_code == 200
