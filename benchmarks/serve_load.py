"""A server under load: a second process sends requests, checks every answer, and measures latencies.

    python benchmarks/serve_load.py --model translate-en-de-masked --clients 1,8,32 --seconds 60
    python benchmarks/serve_load.py --model translate-en-de-masked --clients 32 --batch 1     without batching

Each client sends a request, reads its stream to the end, and sends the next. Every answer is compared with what offline
generation gave for that prompt and seed before the server started. ``lost`` counts requests without an answer or with
an error, ``cut`` streams without an end, ``other`` answers with another text. ``first text`` is the time to the first
final text. ``MB over time`` is the server's resident memory at five times during a measurement.
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


def start(model: str, batch: int, device: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server in its own process and wait until it answers: the process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "redraft", "serve", "--model", model, "--port", str(port), "--batch", str(batch)]
    command += ["--device", device, "--dtype", "float32"]  # in bfloat16 the texts may differ
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(1200):
        if server.poll() is not None:
            sys.exit("The server did not start.")
        try:
            if httpx2.get(f"{address}/healthz", timeout=2).status_code == 200:
                return server, address
        except httpx2.HTTPError:
            time.sleep(0.1)
    sys.exit("The server did not answer.")


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def client(
    http: httpx2.AsyncClient,
    body: dict,
    asked: list[str],
    texts: list[str],
    begin: int,
    end: float,
    seen: list[tuple[float, float, int, str]],
) -> None:
    number = begin
    while time.monotonic() < end:
        which = number % len(asked)
        number += 7
        at, first, text, ended, tokens = time.monotonic(), 0.0, "", "cut", 0
        try:
            async with http.stream("POST", "/v1/completions", json={**body, "prompt": asked[which]}) as answer:
                if answer.is_error:
                    ended = "lost"
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        ended = "whole"
                    elif line.startswith("data: "):
                        chunk = json.loads(line[6:])
                        for choice in chunk.get("choices", []):
                            text += choice["text"]
                            first = first or (time.monotonic() if choice["text"] else 0.0)
                        if chunk.get("usage"):
                            tokens = chunk["usage"]["completion_tokens"]
        except httpx2.HTTPError:
            ended = "lost"
        now = time.monotonic()
        seen.append(
            ((first or now) - at, now - at, tokens, "other" if ended == "whole" and text != texts[which] else ended)
        )


async def watch(pid: int, seconds: float, sizes: list[float]) -> None:
    for moment in range(5):
        sizes.append(resident(pid))
        if moment < 4:
            await asyncio.sleep(seconds / 4)


async def load(
    address: str, body: dict, asked: list[str], texts: list[str], clients: int, seconds: float, pid: int
) -> tuple[list, list[float]]:
    seen: list[tuple[float, float, int, str]] = []
    sizes: list[float] = []
    limits = httpx2.Limits(max_connections=clients + 4)
    async with httpx2.AsyncClient(base_url=address, timeout=300, limits=limits) as http:
        end = time.monotonic() + seconds
        work = (client(http, body, asked, texts, n * 31, end, seen) for n in range(clients))
        await asyncio.gather(watch(pid, seconds, sizes), *work)
    return seen, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="translate-en-de-masked")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--candidates", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    import redraft

    model, asked = redraft.load(given.model, "cpu"), prompts(given.prompts)
    own: dict = {} if model.spec.network.shift else {"steps": given.steps, "candidates": given.candidates}
    texts = [model.generate(prompt, max_new_tokens=48, seed=1, **own)[0].text for prompt in asked]
    server, address = start(given.model, given.batch, given.device)
    body = {
        "model": Path(given.model).name,
        "max_tokens": 48,
        "seed": 1,
        "stream": True,
        "redraft": own,
        "stream_options": {"include_usage": True},
    }
    asyncio.run(load(address, body, asked, texts, 4, 3.0, server.pid))  # warm
    print(f"{given.model}, batch {given.batch}, {own or 'greedy'}, load {os.getloadavg()[0]:.1f}")
    print(
        "| clients | requests/s | tokens/s | first text p50 / p95 / p99 | whole answer p50 / p95 / p99 | "
        "lost, cut, other | MB over time |"
    )
    print("|---:|---:|---:|---|---|---:|---|")
    for clients in map(int, given.clients.split(",")):
        begin = time.monotonic()
        seen, sizes = asyncio.run(load(address, body, asked, texts, clients, given.seconds, server.pid))
        wall = time.monotonic() - begin
        first, whole = (np.percentile([s[i] for s in seen], [50, 95, 99]) * 1000 for i in (0, 1))
        wrong = ", ".join(str(sum(s[3] == kind for s in seen)) for kind in ("lost", "cut", "other"))
        span = " ms | ".join(" / ".join(f"{value:.0f}" for value in part) for part in (first, whole))
        print(
            f"| {clients} | {len(seen) / wall:.1f} | {sum(s[2] for s in seen) / wall:.0f} | {span} ms | {wrong} "
            f"of {len(seen)} | {', '.join(f'{size:.0f}' for size in sizes)} |",
            flush=True,
        )
    server.terminate()
    server.wait(60)


if __name__ == "__main__":
    main()
