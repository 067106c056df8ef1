"""From the hub and to it: huggingface_hub itself, against a small hub in this process. Nothing leaves the machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import tokenizers
import torch

from redraft.loading import load
from tests.laws.test_formats import CONFIGS, write

pytest.importorskip("huggingface_hub")
SOURCE = Path(__file__).parents[2] / "src"


@dataclass
class Hub:
    """Repositories of models, and what was asked of them."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Status, body (bytes, or what becomes JSON) and headers."""
        self.asked.append(f"{method} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "repos"] and token != "Bearer hf_right":
            return 401, {"error": "Invalid credentials"}, {}
        if parts[:2] == ["api", "repos"]:
            made = json.loads(body)
            name = f"{made['organization']}/{made['name']}"
            self.repositories.setdefault(name, {})
            return 200, {"url": f"{self.url}/{name}"}, {}
        if parts == ["api", "validate-yaml"]:
            return 200, {"errors": [], "warnings": []}, {}  # of the head of a model card
        begin = {"api": 2, "datasets": 1}.get(parts[0], 0)  # /api/models/NAME, /datasets/NAME or /NAME
        name, rest = "/".join(parts[begin : begin + 2]), parts[begin + 2 :]
        if name == "org/gated":
            return 403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"}
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        return self._of(name, rest, body)

    def _of(self, name: str, rest: list[str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        files = self.repositories[name]
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        listed = [{"type": "file", "path": f, "size": len(v), "oid": _sha(v)} for f, v in files.items()]
        if not rest or rest[0] == "revision":
            return 200, {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}, {}
        if rest[0] == "tree":
            return 200, listed if len(rest) == 2 else [], {}
        if rest[0] == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", []) if body[:1] != b"{" else json.loads(body)["paths"]
            return 200, [entry for entry in listed if entry["path"] in wanted], {}
        if rest[0] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            return 200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}, {}
        if rest[0] == "commit":
            for change in map(json.loads, body.splitlines()):
                if change["key"] == "file":
                    files[change["value"]["path"]] = base64.b64decode(change["value"]["content"])
            return 200, {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"}, {}
        if "/".join(rest[2:]) not in files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        content = files["/".join(rest[2:])]  # resolve/COMMIT/FILE
        return 200, content, {"ETag": f'"{_sha(content)}"', "X-Repo-Commit": commit}


def _sha(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def _serve(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    sent += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            path = unquote(urlsplit(self.path).path)
            code, body, headers = found.answer(self.command, path, self.headers.get("Authorization"), sent)
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = _serve

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    found.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def run(script: str, home: Path, endpoint: str, **more: str) -> dict[str, Any]:
    """What a script of its own process leaves in ``found``; its variables are read when huggingface_hub is imported."""
    before = """
import contextlib, io, json, os, sys
import redraft, torch
from redraft.cli._main import main
found = {}
ids = torch.arange(20)[None] + 3

def refused(*arguments):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main([str(argument) for argument in arguments])
    return [code, said.getvalue()]

"""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    env = {**kept, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HOME": str(home), "HF_ENDPOINT": endpoint}
    done = subprocess.run(
        [sys.executable, "-c", before + script + "\nprint(json.dumps(found))"],
        env={**env, **more},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_from_the_hub_and_to_it(hub: Hub, tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", CONFIGS["qwen2"][1])
    hub.repositories = {"org/tiny": {path.name: path.read_bytes() for path in folder.iterdir()}, "org/no-model": {}}
    hub.repositories["org/tiny"]["notes.pdf"] = b"not wanted"
    target = tmp_path / "out"
    found = run(
        f"""
found["tiny"] = redraft.load("org/tiny", "cpu").logits(ids).tolist()
for name in ("org/none", "org/gated", "org/no-model"):
    found[name] = refused("generate", "--model", name, "--prompt", "1")
convert = ["convert", "org/tiny", {str(target)!r}]
found["no token"] = refused(*convert, "--push-to-hub", "org/new")
found["no name"] = refused(*convert, "--push-to-hub", "org/a--b")
os.environ["HF_TOKEN"] = "hf_wrong"
found["wrong token"] = refused(*convert, "--push-to-hub", "org/new")
found["unasked"] = refused("convert", "org/tiny", {str(target) + "2"!r})
os.environ["HF_TOKEN"] = "hf_right"
found["pushed"] = refused("convert", "org/tiny", {str(target) + "3"!r}, "--push-to-hub", "org/new")
found["new"] = redraft.load("org/new", "cpu").logits(ids).tolist()
""",
        tmp_path / "home",
        hub.url,
    )
    assert found["tiny"] == load(folder, "cpu").logits(torch.arange(20)[None] + 3).tolist() == found["new"]
    for name, says in (
        ("org/none", "neither a folder nor a model on the hub"),
        ("org/gated", "accepted its terms"),
        ("org/no-model", "no config.json"),
        ("no token", "HF_TOKEN"),
        ("no name", "not the name of a repository"),
        ("wrong token", "rejected the upload of 'org/new'"),
    ):
        code, said = found[name]
        assert code == 2 and says in said and "Traceback" not in said, said
    assert found["unasked"][0] == found["pushed"][0] == 0, found["pushed"]
    assert not any("notes.pdf" in asked for asked in hub.asked)
    written = {path.name: path.read_bytes() for path in (tmp_path / "out3").iterdir()}
    assert hub.repositories["org/new"] == written
    changed = [asked for asked in hub.asked if asked.startswith("POST")]
    assert changed.count("POST /api/repos/create") == 2 and len(changed) == 5, "nothing else was sent"


def test_what_was_fetched_is_there_offline(hub: Hub, tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", CONFIGS["llama"][2])  # of SmolLM2, here with the other files of a chat model
    words = {"user": 0, "<|im_start|>": 1, "<|im_end|>": 2, "hello": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "user"))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<|im_start|>{{ m.role }}<|im_end|>{% endfor %}"
    described = {"chat_template": template, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    ends = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    hub.repositories = {"org/tiny": {path.name: path.read_bytes() for path in folder.iterdir()}}
    ask = 'found["tiny"] = redraft.load("org/tiny", "cpu").logits(ids).tolist()\n'
    ask += 'found["compiler"] = "torch._dynamo" in sys.modules\n'
    ask += """
from redraft.data import chat
tokenizer = redraft.load("org/tiny", "cpu").tokenizer
found["ends"] = [tokenizer.eos_id, *tokenizer.stop_ids]
said = [{"role": "user", "content": ""}]
found["chat"] = chat.prompt(said, tokenizer, False, chat.template_of(redraft.loading.resolve("org/tiny")))
"""
    first = run(ask, tmp_path / "home", hub.url)
    seen = len(hub.asked)
    offline = """
found["none"] = refused("generate", "--model", "org/none", "--prompt", "1")
found["push"] = refused("convert", "org/tiny", "nowhere", "--push-to-hub", "org/new")
"""
    second = run(ask + offline, tmp_path / "home", hub.url, HF_HUB_OFFLINE="1", HF_TOKEN="hf_right")
    assert len(hub.asked) == seen, "offline means offline"
    assert first["tiny"] == second["tiny"]
    assert first["ends"] == [2, 3] and first["chat"] == [[1, 0, 2], []]
    assert not first["compiler"], "which loading needs not, and importing it takes seconds"
    for name in ("none", "push"):
        assert second[name][0] == 2 and "HF_HUB_OFFLINE" in second[name][1], second[name]
    cut_off = 'found["tiny"] = refused("generate", "--model", "org/tiny", "--prompt", "1")'
    code, said = run(cut_off, tmp_path / "another", "http://127.0.0.1:9")["tiny"]
    assert code == 2 and "can't be reached" in said, said


def test_data_come_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    rows = [{"question": f"what is {n}?", "answer": f"it is {n}"} for n in range(3)]
    hub.repositories = {"org/data": {"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}}
    script = """
from redraft.registry import find
source = find("data.sources", "hub")()
found["splits"] = source.splits("hub:org/data")
found["rows"] = [row.values for row in source.read("hub:org/data#train")]
found["streamed"] = [row.values for row in source.read("stream:org/data#train")]
found["rest"] = [[row.line, row.values] for row in source.read_from("stream:org/data#train", 2)]
try:
    source.splits("hub:org/none")
except redraft.UserError as error:
    found["none"] = str(error)
"""
    found = run(script, tmp_path / "home", hub.url)
    assert found["splits"] == {"train": "hub:org/data#train"} and found["rows"] == rows == found["streamed"]
    assert found["rest"] == [[3, rows[2]]]
    assert "'hub:org/none' can't be opened" in found["none"]
