"""The Hugging Face hub by its usual conventions, against a server of this machine that speaks its protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from redraft import adapters
from redraft.data.tokenizer import Tokenizer
from redraft.model import Model
from redraft.models.parts.lora import Lora
from redraft.presets import preset
from tests.cli.door import environment

SHA = "0123456789abcdef0123456789abcdef01234567"  # of the one commit that every repository has


class Hub(ThreadingHTTPServer):
    """Repositories in memory: created, committed to and read, as huggingface_hub asks for it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.strip("/").split("/")
        self.server.asked.append(f"{self.command} {self.path}")
        if path[:2] == ["api", "models"]:
            files = self.server.repositories.get("/".join(path[2:4]))
            if files is None:
                return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            if path[4:5] == ["tree"]:
                listed = [{"type": "file", "path": n, "oid": _etag(b), "size": len(b)} for n, b in files.items()]
                return self.answer(listed)
            return self.answer({"id": "/".join(path[2:4]), "sha": SHA, "siblings": [{"rfilename": n} for n in files]})
        files = self.server.repositories.get("/".join(path[:2]), {})
        content = files.get("/".join(path[4:]))
        if content is None:
            return self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": SHA}
        return self.answer(content, 200, headers)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path.strip("/").split("/")
        self.server.asked.append(f"POST {self.path}")
        if path == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repositories.setdefault(name, {})
            return self.answer({"url": f"{self.server.address}/{name}", "id": name})
        if path == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        if path[4:5] == ["preupload"]:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if path[4:5] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories["/".join(path[2:4])][line["value"]["path"]] = content
            return self.answer({"commitUrl": f"{self.server.address}/commit/{SHA}", "commitOid": SHA})
        return self.answer({"error": "unknown"}, 404)

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def models(folder: Path) -> tuple[Path, Path]:
    """A model and an adapter for it."""
    tokenizer = Tokenizer.bytes()
    made = Model.fresh({"name": "autoregressive"}, tokenizer, preset("toy", tokenizer.vocab_size, dim=32), False)
    made.save(folder / "base")
    adapters.attach(made, Lora(2), "me/base")
    made.save(folder / "adapter")
    return folder / "base", folder / "adapter"


def run(*lines: list[object], **more: str) -> list[dict[str, Any]]:
    """Command lines one after another in a process of their own, which reads the variables anew; their JSON."""
    code = "import json, sys; from redraft.cli._main import main\nfor line in json.loads(sys.argv[1]): main(line)"
    words = json.dumps([[str(word) for word in line] for line in lines])
    found = subprocess.run(
        [sys.executable, "-c", code, words], capture_output=True, text=True, env=environment(**more), timeout=300
    )
    return [json.loads(line) for line in found.stdout.splitlines()]


def test_pushed_pulled_and_read_from_the_cache_when_offline(hub: Hub, tmp_path: Path) -> None:
    base, adapter = models(tmp_path)
    own = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_x",
    }
    kept = run(["convert", base, tmp_path / "kept", "--json"], **own)
    assert kept[0]["pushed_to"] is None and not hub.asked, "nothing leaves the machine unless told to"

    hub.repositories["me/adapter"] = {path.name: path.read_bytes() for path in adapter.iterdir()}
    writing = ["--prompt", "the", "--max-new-tokens", 4, "--temperature", 0, "--json"]
    pushed, whole, adapted, missing = run(
        ["convert", base, tmp_path / "again", "--push-to-hub", "me/base", "--json"],
        ["generate", "--model", "me/base", *writing],
        ["generate", "--model", "me/adapter", *writing],
        ["generate", "--model", "me/nothing", *writing],
        **own,
    )
    assert pushed["pushed_to"] == "me/base"
    assert hub.repositories["me/base"]["model.safetensors"] == (tmp_path / "again" / "model.safetensors").read_bytes()
    assert {"config.json", "tokenizer.json", "README.md"} <= hub.repositories["me/base"].keys()
    assert whole["new_tokens"] == adapted["new_tokens"] == 4 and whole["text"] == adapted["text"]
    assert "me/nothing" in missing["error"]["what"]
    assert any((tmp_path / "cache").rglob("model.safetensors")), "HF_HOME is where things are kept"

    hub.asked.clear()
    cached, unknown = run(
        ["generate", "--model", "me/adapter", *writing],
        ["generate", "--model", "me/other", *writing],
        **own,
        HF_HUB_OFFLINE="1",
    )
    assert cached["text"] == whole["text"] and "me/other" in unknown["error"]["what"]
    assert not hub.asked
