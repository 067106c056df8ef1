"""A server under load: a second process asks, checks every answer, and counts.

    python benchmarks/serve_load.py --model translate-en-de-masked --clients 1,8,32 --seconds 60
    python benchmarks/serve_load.py --model translate-en-de-masked --clients 32 --batch 1     the same without batching

Each client sends a request, reads its stream to the end, and sends the next. Every answer is compared with what offline
generation wrote for that prompt and seed before the server started: an answer that differs, is cut short or never comes
is counted as wrong. First text: until the first final text arrived. Memory is the server's resident size.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import numpy as np

ROOT = Path(__file__).parents[1]


def prompts(count: int) -> list[str]:
    with gzip.open(ROOT / "examples" / "data" / "tatoeba.en-de.test.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["english"] for line, _ in zip(file, range(count), strict=False)]


def start(model: str, batch: int) -> tuple[subprocess.Popen[bytes], str]:
    """A server in a process of its own, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "redraft", "serve", "--model", model, "--port", str(port), "--batch", str(batch)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(1200):
        if server.poll() is not None:
            sys.exit("the server did not start")
        try:
            if httpx2.get(f"{address}/healthz", timeout=2).status_code == 200:
                return server, address
        except httpx2.HTTPError:
            time.sleep(0.1)
    sys.exit("the server did not answer")


def resident(pid: int) -> float:
    """Megabytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def client(
    http: httpx2.AsyncClient,
    body: dict,
    asked: list[str],
    texts: list[str],
    begin: int,
    end: float,
    seen: list[tuple[float, float, int, bool]],
) -> None:
    number = begin
    while time.monotonic() < end:
        which = number % len(asked)
        number += 7
        at, first, text, done, tokens = time.monotonic(), 0.0, "", False, 0
        try:
            async with http.stream("POST", "/v1/completions", json={**body, "prompt": asked[which]}) as answer:
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        done = True
                    elif line.startswith("data: "):
                        chunk = json.loads(line[6:])
                        for choice in chunk.get("choices", []):
                            text += choice["text"]
                            first = first or (time.monotonic() if choice["text"] else 0.0)
                        if chunk.get("usage"):
                            tokens = chunk["usage"]["completion_tokens"]
        except httpx2.HTTPError:
            done = False
        now = time.monotonic()
        seen.append(((first or now) - at, now - at, tokens, done and text == texts[which]))


async def load(address: str, body: dict, asked: list[str], texts: list[str], clients: int, seconds: float) -> list:
    seen: list[tuple[float, float, int, bool]] = []
    limits = httpx2.Limits(max_connections=clients + 4)
    async with httpx2.AsyncClient(base_url=address, timeout=300, limits=limits) as http:
        end = time.monotonic() + seconds
        await asyncio.gather(*(client(http, body, asked, texts, n * 31, end, seen) for n in range(clients)))
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="translate-en-de-masked")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=60)
    given = parser.parse_args()
    import redraft

    model, asked = redraft.load(given.model, "cpu"), prompts(given.prompts)
    own: dict = {} if model.spec.shift else {"steps": given.steps, "candidates": given.candidates}
    texts = [model.generate(prompt, max_new_tokens=48, seed=1, **own)[0].text for prompt in asked]
    server, address = start(given.model, given.batch)
    body = {
        "model": Path(given.model).name,
        "max_tokens": 48,
        "seed": 1,
        "stream": True,
        "redraft": own,
        "stream_options": {"include_usage": True},
    }
    asyncio.run(load(address, body, asked, texts, 4, 3.0))  # warm
    print(f"{given.model}, batch {given.batch}, {own or 'greedy'}, load {os.getloadavg()[0]:.1f}")
    print("| clients | requests/s | tokens/s | first text p50 / p95 / p99 | whole p50 / p95 / p99 | wrong | MB |")
    print("|---:|---:|---:|---|---|---:|---|")
    for clients in map(int, given.clients.split(",")):
        before, begin = resident(server.pid), time.monotonic()
        seen = asyncio.run(load(address, body, asked, texts, clients, given.seconds))
        wall = time.monotonic() - begin
        first, whole = (np.percentile([s[i] for s in seen], [50, 95, 99]) * 1000 for i in (0, 1))
        wrong = sum(not s[3] for s in seen)
        span = " ms | ".join(" / ".join(f"{value:.0f}" for value in part) for part in (first, whole))
        print(
            f"| {clients} | {len(seen) / wall:.1f} | {sum(s[2] for s in seen) / wall:.0f} | {span} ms | {wrong} of "
            f"{len(seen)} | {before:.0f}, {resident(server.pid):.0f} |",
            flush=True,
        )
    server.terminate()
    server.wait(60)


if __name__ == "__main__":
    main()
