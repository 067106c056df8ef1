"""Behaviour of a server in case of failures: killed clients and servers, malformed requests, and a fuzzer.

    python benchmarks/serve_failures.py --model translate-en-de-masked

1. Clients are killed (SIGKILL) during their streams: their slots must be free again, and other clients unaffected.
2. The server is killed (SIGKILL) under load: every client must get an error at once, and the port must be free.
3. The server is stopped (SIGTERM) under load: it must finish the pending requests.
4. A thousand malformed bodies: each must get a 4xx status with a reason.
5. Schemathesis with the OpenAPI document, if it is installed: no 5xx status.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
from serve_load import start

ASK = """
import httpx2, json, sys
with httpx2.stream("POST", sys.argv[1] + "/v1/completions", json=json.loads(sys.argv[2]), timeout=300) as answer:
    print(answer.status_code, flush=True)
    for line in answer.iter_lines():
        print("line", flush=True)
"""
TEMPLATES = [
    ("/v1/completions", {"model": "M", "prompt": "Hello there", "max_tokens": 8, "seed": 1}),
    ("/v1/chat/completions", {"model": "M", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}),
    ("/v1/infill", {"model": "M", "text": "Ich [[2]] nach Hause", "prompt": "I go home"}),
]
NONSENSE = [-1, 1e308, 10**30, "", "x" * 3000, [], {}, [[]], [None], {"a": 1}, True, "\ud800", "../../etc/passwd", 2.5]


def busy(address: str) -> dict[str, float]:
    """Numbers of waiting, active and cancelled sequences."""
    shown = httpx2.get(f"{address}/metrics", timeout=30).text
    return {
        n: float(re.search(rf"^redraft_{n}{{[^}}]*}} (\S+)", shown, re.M)[1])  # type: ignore[index]
        for n in ("waiting", "active", "cancelled_total")
    }


def long(model: str) -> dict:
    """A request of many steps."""
    return {
        "model": model,
        "prompt": "I think that we should go home now. " * 3,
        "max_tokens": 400,
        "n": 8,
        "temperature": 1.0,
        "stream": True,
        "redraft": {"sampler": "first_hitting", "length": "fixed", "candidates": 1},
    }


def killed_clients(address: str, model: str) -> str:
    command = [sys.executable, "-c", ASK, address, json.dumps({**long(model), "diffusing": True})]
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    for one in clients:
        assert one.stdout is not None
        one.stdout.readline(), one.stdout.readline()
    during = busy(address)
    for one in clients:
        one.kill()
    begin = time.monotonic()
    while busy(address)["active"] + busy(address)["waiting"] > 0 and time.monotonic() - begin < 60:
        time.sleep(0.05)
    freed = time.monotonic() - begin
    answer = httpx2.post(f"{address}/v1/completions", json={**TEMPLATES[0][1], "model": model}, timeout=60)
    gone = busy(address)["cancelled_total"]
    return (
        f"3 clients with 8 sequences each killed during their streams ({during['active']:.0f} active): all slots free "
        f"after {freed:.2f} s, {gone:.0f} sequences cancelled; status of the next request: {answer.status_code}"
    )


async def _one(http: httpx2.AsyncClient, body: dict) -> str:
    try:
        lines = []
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
        return "whole" if "data: [DONE]" in lines else f"status {answer.status_code}" if answer.is_error else "cut"
    except httpx2.HTTPError as error:
        return type(error).__name__


async def _under_load(address: str, body: dict, act: object) -> tuple[dict[str, int], float]:
    async with httpx2.AsyncClient(base_url=address, timeout=120, limits=httpx2.Limits(max_connections=40)) as http:
        tasks = [asyncio.create_task(_one(http, {**body, "seed": n})) for n in range(16)]
        await asyncio.sleep(1.5)
        act()  # type: ignore[operator]
        begin = time.monotonic()
        ends = await asyncio.gather(*tasks)
    return {end: ends.count(end) for end in set(ends)}, time.monotonic() - begin


def killed_server(model: str, name: str) -> str:
    server, address = start(model, 16)
    ends, seconds = asyncio.run(_under_load(address, {**long(name), "n": 1}, server.kill))
    server.wait()
    port = address.rsplit(":", 1)[1]
    begin = time.monotonic()
    again = subprocess.Popen(
        [sys.executable, "-m", "redraft", "serve", "--model", model, "--port", port], stderr=subprocess.DEVNULL
    )
    while True:
        try:
            httpx2.get(f"{address}/healthz", timeout=2)
            break
        except httpx2.HTTPError:
            assert again.poll() is None, "the port is not free"
            time.sleep(0.1)
    ready = time.monotonic() - begin
    again.terminate()
    again.wait(60)
    return (
        f"server killed with 16 streams: clients ended with {ends} within {seconds:.2f} s; a new one on the same port "
        f"answers after {ready:.1f} s (including loading)"
    )


def stopped_server(model: str, name: str) -> str:
    server, address = start(model, 16)
    body = {**long(name), "n": 1, "max_tokens": 120}
    ends, seconds = asyncio.run(_under_load(address, body, lambda: server.send_signal(signal.SIGTERM)))
    code = server.wait(90)
    return f"SIGTERM with 16 streams: {ends}, {seconds:.1f} s; exit code {code}"


def malformed(address: str, model: str, count: int) -> str:
    """Random damage to valid requests: wrong values, unknown fields, truncation, other types, random bytes, nesting."""
    draw, statuses, silent = random.Random(0), {}, 0
    with httpx2.Client(base_url=address, timeout=60, headers={"Content-Type": "application/json"}) as http:
        made = 0
        while made < count:
            route, body = draw.choice(TEMPLATES)
            body = {**body, "model": model}
            kind = draw.randrange(6)
            if kind == 0:  # a wrong value for a field that matters
                body[draw.choice([*body, "temperature", "top_p", "n", "stop", "redraft", "logprobs"])] = {
                    "no": draw.choice(NONSENSE)
                }
                content = json.dumps(body).encode()
            elif kind == 1:  # a field that does not exist
                body["".join(draw.choices("abcdefgh", k=9))] = draw.choice(NONSENSE)
                content = json.dumps(body).encode()
            elif kind == 2:  # cut off
                whole = json.dumps(body).encode()
                content = whole[: draw.randrange(len(whole) - 1)]
            elif kind == 3:  # not an object
                content = json.dumps(draw.choice([n for n in NONSENSE if not isinstance(n, dict)])).encode()
            elif kind == 4:  # bytes
                content = bytes(draw.randrange(128, 256) for _ in range(draw.randrange(1, 200)))
            else:  # nesting
                content = b'{"prompt":' * draw.randrange(50, 3000) + b"1"
            answer = http.post(route, content=content)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            try:
                silent += not answer.json()["error"]["message"]
            except (ValueError, KeyError, TypeError):
                silent += 1
            made += 1
    return f"{count} malformed bodies: statuses {statuses}, without a reason: {silent}"


def fuzzed(address: str, examples: int) -> str:
    if not examples:
        return "No fuzzing."
    program = shutil.which("schemathesis") or str(Path(sys.executable).with_name("schemathesis"))
    if not Path(program).exists():
        return "Schemathesis is not installed."
    command = [
        program,
        "run",
        f"{address}/openapi.json",
        "--checks",
        "not_a_server_error",
        "-n",
        str(examples),
        "--seed",
        "1",
        "--request-timeout",
        "120",
        "--phases",
        "examples,coverage,fuzzing",
        "--no-color",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})
    tail = [line.strip() for line in done.stdout.splitlines() if line.strip()][-14:]
    return f"schemathesis (exit {done.returncode}):\n    " + "\n    ".join(tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="translate-en-de-masked")
    parser.add_argument("--bodies", type=int, default=1000)
    parser.add_argument("--examples", type=int, default=60)
    given = parser.parse_args()
    name = Path(given.model).name
    server, address = start(given.model, 16)
    for work in (
        lambda: killed_clients(address, name),
        lambda: malformed(address, name, given.bodies),
        lambda: fuzzed(address, given.examples),
    ):
        print(work(), flush=True)
    assert httpx2.get(f"{address}/healthz", timeout=30).status_code == 200
    server.terminate()
    server.wait(60)
    print(killed_server(given.model, name), flush=True)
    print(stopped_server(given.model, name), flush=True)


if __name__ == "__main__":
    main()
