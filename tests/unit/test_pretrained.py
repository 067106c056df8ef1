"""The packaged model smollm2-135m, where it is installed: its numbers are those that transformers compute from it.

Recorded with transformers 5.23 (``AutoModelForCausalLM.from_pretrained(..., gguf_file=...)``, float32).
"""

from __future__ import annotations

import io
import json

import pytest
import torch

from redraft.data import chat
from redraft.loading import load, resolve
from redraft.model import Model
from redraft.shipped import PACKAGED

pytest.importorskip("gguf")
NAME = "smollm2-135m"
pytestmark = pytest.mark.skipif(PACKAGED[NAME].path is None, reason="not installed: make pretrained")

IDS = {
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
}
NATS = {  # a token, from the second on
    "The quick brown fox jumps over the lazy dog, and then it runs away into the forest.": 3.61905,
    "The sun rises in the east and sets in the west, and the days are longer in summer than in winter.": 2.21579,
}
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


@pytest.fixture(scope="module")
def model() -> Model:
    return load(NAME, "cpu")


def test_token_ids_and_likelihood(model: Model) -> None:
    for text, ids in IDS.items():
        assert model.tokenizer.encode(text) == ids and model.tokenizer.decode(ids) == text
    for text, expected in NATS.items():
        tokens = torch.tensor([model.tokenizer.encode(text)])
        nats = torch.nn.functional.cross_entropy(model.logits(tokens)[0, :-1], tokens[0, 1:])
        assert float(nats) == pytest.approx(expected, abs=1e-4)


def test_it_answers_as_a_chat_model(model: Model) -> None:
    template = chat.template_of(resolve(NAME))
    ids, stops = chat.prompt([{"role": "user", "content": QUESTION}], model.tokenizer, False, template)
    assert model.tokenizer.decode(ids).startswith("system\nYou are a helpful AI assistant named SmolLM")
    [answer] = model.generate([ids], max_new_tokens=20)
    assert (answer.text, answer.finish, stops) == (ANSWER, "stop", ())


def test_the_command_line_and_the_server_know_it(
    model: Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    testclient = pytest.importorskip("fastapi.testclient")
    from redraft.cli._main import main
    from redraft.serve.app import create_app
    from redraft.serve.config import ServerConfig

    monkeypatch.setattr("redraft.loading.load", lambda *_, **__: model)  # it was loaded by its name above
    monkeypatch.setattr("redraft.serve.model_pool.load", lambda *_, **__: model)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n"))
    assert main(["chat", "--model", NAME, "--max-new-tokens", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["turns"][0]["text"] == ANSWER
    asked = {"model": NAME, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 20}
    app = create_app(ServerConfig(models=(NAME,), device="cpu"))
    with testclient.TestClient(app, base_url="http://localhost") as client:
        reply = client.post("/v1/chat/completions", json=asked).json()
    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert main(["models", "--checkpoints", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    assert next(row for row in rows if row["name"] == NAME)["origin"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
