"""Operation of the server: keys, limits, origins, metrics, unloading, concurrent clients, public checkpoints."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from redraft.errors import UserError
from redraft.model import Model
from tests.serve.conftest import ROUTES, server_config


def app_with(folders: dict[str, Path], **changes: Any) -> Any:
    from fastapi.testclient import TestClient

    from redraft.serve.app import create_app

    few = {"text-masked": folders["text-masked"]}
    return TestClient(create_app(server_config(few, **changes)), base_url="http://localhost")


def test_api_keys_protect_everything_but_the_page_and_health(folders: dict[str, Path]) -> None:
    with app_with(folders, api_keys=("first-secret", "second-secret")) as client:
        assert client.get("/healthz").status_code == client.get("/").status_code == 200
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert client.get(path, headers={"Authorization": "Basic first-secret"}).status_code == 401
            for key in ("first-secret", "second-secret"):
                assert client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_large_bodies_are_rejected_with_and_without_a_declared_length(folders: dict[str, Path]) -> None:
    with app_with(folders, max_body=1000) as client:
        large = json.dumps({**ROUTES["/v1/completions"], "prompt": "x" * 2000}).encode()
        headers = {"Content-Type": "application/json"}
        assert client.post("/v1/completions", content=large, headers=headers).status_code == 413
        chunks = (large[i : i + 100] for i in range(0, len(large), 100))
        assert client.post("/v1/completions", content=chunks, headers=headers).status_code == 413


def test_a_loopback_server_accepts_local_host_names_only(folders: dict[str, Path]) -> None:
    with app_with(folders) as client:
        assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 421
        assert client.get("/healthz", headers={"Host": "localhost:8000"}).status_code == 200
        assert client.get("/healthz", headers={"Host": "[::1]:8000"}).status_code == 200


def test_other_origins_need_a_permission(folders: dict[str, Path]) -> None:
    asking = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    with app_with(folders) as client:
        assert "access-control-allow-origin" not in client.options("/v1/completions", headers=asking).headers
    with app_with(folders, cors=("https://page.example",)) as client:
        allowed = client.options("/v1/completions", headers=asking).headers
        assert allowed["access-control-allow-origin"] == "https://page.example"


def test_a_form_of_another_page_is_rejected(client: Any) -> None:
    """A body that a browser sends across origins without a preflight is not read as JSON."""
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


def test_metrics_and_log_count_requests_without_their_texts(
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


def test_models_are_unloaded_and_loaded_again(folders: dict[str, Path]) -> None:
    with app_with(folders) as client:
        pool = client.app.state.service.pool
        first = client.post("/v1/completions", json={**ROUTES["/v1/completions"], "seed": 1}).json()
        gone = client.portal.call(pool.unload_idle, 0.0)
        assert gone == ["text-masked"] and not client.get("/v1/models").json()["data"][0]["loaded"]
        again = client.post("/v1/completions", json={**ROUTES["/v1/completions"], "seed": 1}).json()
        assert again["choices"][0]["text"] == first["choices"][0]["text"]


def test_concurrent_clients_get_their_own_answers(address: str, offline: dict[str, Model]) -> None:
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


def test_public_checkpoints_are_served_with_token_ids_under_any_name(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import redraft

    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**shape, vocab_size=50, max_position_embeddings=64, eos_token_id=[2, 3])
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "checkpoint")
    models = (f"mine={tmp_path / 'checkpoint'}", f"{tmp_path / 'checkpoint'}")
    offline = redraft.load(tmp_path / "checkpoint", "cpu")
    from fastapi.testclient import TestClient

    from redraft.serve.app import create_app
    from redraft.serve.config import ServerConfig

    with TestClient(create_app(ServerConfig(models, device="cpu")), base_url="http://localhost") as opened:
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
    with pytest.raises(UserError, match="Two models have the name"):
        create_app(ServerConfig((models[1], models[1])))


def test_the_openapi_document_has_every_route(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(ROUTES) | {"/healthz", "/metrics", "/v1/models", "/v1/models/{name}"} == set(paths)
