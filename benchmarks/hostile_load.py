"""Hostile load on a server: numbers out of range, constraints that explode, and a signal in the middle of it.

    python benchmarks/hostile_load.py [--requests 10000] [--constraints 500] [--seconds 240]

A hostile client sends requests in which every number of every part is in turn 0, -1, 2^31, 2^63, 1e300, infinite, NaN
or a text; then constraints, of which
a tenth are meant to explode, with a deadline. Meanwhile a witness with a key of its own sends ordinary requests. Then
SIGTERM arrives while long requests are under way. The table that is printed says what the issue asks: no status of 5xx,
the witness's delay, deadlines kept within a second, memory, and the time until the process has ended. Each of the two
phases ends after ``--seconds``; the table then says how many requests were sent.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from redraft import registry

MODELS = {"masked": "translate-en-de-masked", "autoregressive": "translate-en-de-autoregressive"}
NUMBERS = ["0", "-1", "2147483648", "9223372036854775808", "1e300", "Infinity", "NaN", '"16"']
FIELDS = ["max_tokens", "temperature", "top_p", "n", "seed", "logprobs"]
TABLE = ["steps", "top_k", "candidates", "deadline"]
HOSTILE, WITNESS = "hostile-key", "witness-key"
PATIENCE, DEADLINE = 6.0, 3.0  # seconds
THREADS = 8


@dataclasses.dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    @classmethod
    def start(cls) -> Server:
        """Start it and wait until it accepts requests."""
        models = [part for name in MODELS.values() for part in ("--model", name)]
        keys = ["--api-key", HOSTILE, "--api-key", WITNESS]
        limits = ["--shutdown-timeout", str(PATIENCE), "--compile-timeout", "20"]
        command = [sys.executable, "-m", "redraft", "serve", *models, *keys, *limits, "--port", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                return cls(process, int(found[1]))
        raise SystemExit("the server did not start")

    def megabytes(self) -> float:
        """Resident memory of the server's own process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1e3  # type: ignore[index]


def ask(port: int, key: str, route: str, content: str, timeout: float = 120.0) -> tuple[int, float]:
    """Status and seconds of a request; status 0 if the connection broke."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", route, content, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, time.monotonic() - began
    except (OSError, http.client.HTTPException):
        return 0, time.monotonic() - began
    finally:
        connection.close()


def with_number(model: str, table: dict[str, Any], number: str) -> str:
    """The text of a request in which ``"NUMBER"`` stands for a number that JSON may not know."""
    body = {"model": model, "prompt": "I am tired.", "max_tokens": 4, **table}
    return json.dumps(body).replace('"NUMBER"', number)


def numbers() -> Iterator[str]:
    """Requests with every numeric option at every number, again and again with other seeds."""
    parts: list[tuple[str, dict[str, Any]]] = []
    for folder, field in (("samplers", "options"), ("caches", "cache_options")):
        for name in registry.names(folder):
            for option in dataclasses.fields(registry.find(folder, name)):
                if option.type in ("int", "float"):
                    key = "sampler" if folder == "samplers" else "cache"
                    model = "autoregressive" if name == "autoregressive" else "masked"
                    parts.append((model, {"redraft": {key: name, field: {option.name: "NUMBER"}}}))
    parts += [(model, {field: "NUMBER"}) for model in MODELS for field in FIELDS]
    parts += [(model, {"redraft": {field: "NUMBER"}}) for model in MODELS for field in TABLE]
    for seed in itertools.count():
        for (model, table), number in itertools.product(parts, NUMBERS):
            yield with_number(MODELS[model], {"seed": seed, **table}, number)


def constraints(count: int) -> list[str]:
    """Requests with generated regular expressions and schemas, of which a tenth are meant to explode."""
    random_ = random.Random(0)
    found = []
    for number in range(count):
        make = exploding if number % 10 == 0 else honest
        body = {"prompt": "I am tired.", "max_tokens": 24, "redraft": {"deadline": DEADLINE}}
        found.append(json.dumps({"model": MODELS["autoregressive"], **body, "response_format": make(random_)}))
    return found


def honest(random_: random.Random) -> dict[str, Any]:
    """A constraint of the kind that people write."""
    if random_.random() < 0.5:
        word = "".join(random_.choice("abcdefgh") for _ in range(random_.randint(1, 6)))
        low = random_.randint(1, 9)
        forms = [rf"\d{{{low}}}", f"({word}|ja|nein)", f"[A-Z][a-z]{{1,{low}}}( [a-z]+)?", f"(?i){word}[^{word}]*"]
        return {"type": "regex", "pattern": random_.choice(forms)}
    leaves: list[dict[str, Any]] = [
        {"type": "integer", "minimum": random_.randint(-9, 9)},
        {"type": "string", "maxLength": random_.randint(1, 30)},
        {"enum": ["ja", "nein", random_.randint(0, 99)]},
        {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    ]
    names = [f"field{at}" for at in range(random_.randint(1, 8))]
    properties = {name: random_.choice(leaves) for name in names}
    schema = {"type": "object", "properties": properties, "required": names[::2], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def exploding(random_: random.Random) -> dict[str, Any]:
    """A small constraint with a large automaton."""
    size = random_.randint(10, 40)
    patterns = [
        f"(a?){{{size * 500}}}", f"((a{{1,{size}}}){{1,100}}){{1,{size}}}", f"a{{{size * 2000}}}", f".*a.{{{size}}}",
        f"(((a?){{{size}}}){{{size}}}){{{size}}}", rf"(\w+\s?){{1,{size * 20}}}", "(" * 200 + "a" + ")" * 200,
    ]  # fmt: skip
    twice: dict[str, Any] = {
        str(at): {
            "type": "object",
            "properties": {"a": {"$ref": f"#/$defs/{at + 1}"}, "b": {"$ref": f"#/$defs/{at + 1}"}},
        }
        for at in range(size)
    }
    schema: Any = {"$ref": "#/$defs/0", "$defs": {**twice, str(size): {"type": "null"}}}
    if random_.random() < 0.3:
        schema = {"type": "integer"}
        for _ in range(10):  # its text doubles at each level, too
            schema = {"type": "object", "properties": dict.fromkeys("ab", schema)}
    if random_.random() < 0.3:
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"type": "regex", "pattern": random_.choice(patterns)}


class Witness:
    """An ordinary client. It records how long its requests take."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        content = json.dumps({"model": MODELS["autoregressive"], "prompt": "The weather is fine.", "max_tokens": 12})
        while not self._ended.wait(0.1):
            status, seconds = ask(self.port, WITNESS, "/v1/completions", content)
            self.statuses[status] += 1
            self.seconds.append(seconds)


def crowd(port: int, contents: Iterator[str], until: float, each: Callable[[int, float], None]) -> None:
    """Send requests from several threads until they, or the time, are used up."""
    lock = threading.Lock()

    def run() -> None:
        while time.monotonic() < until:
            with lock:
                content = next(contents, None)
            if content is None:
                return
            each(*ask(port, HOSTILE, "/v1/completions", content))

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def quantiles(seconds: Sequence[float]) -> str:
    """Median, 95th percentile and largest value, in milliseconds."""
    ordered = sorted(seconds) or [float("nan")]
    return " / ".join(f"{1e3 * ordered[int(share * (len(ordered) - 1))]:.0f}" for share in (0.5, 0.95, 1.0))


def phase(server: Server, name: str, contents: Iterator[str], seconds: float) -> list[tuple[str, str]]:
    """One phase of the load: rows of the table."""
    statuses: Counter[int] = Counter()
    late: list[float] = []

    def each(status: int, took: float) -> None:
        statuses[status] += 1
        if status == 408:
            late.append(took - DEADLINE)

    began = time.monotonic()
    with Witness(server.port) as witness:
        crowd(server.port, contents, began + seconds, each)
    bad = sum(count for status, count in statuses.items() if status >= 500 or status == 0)
    rows = [
        (f"{name}: requests, seconds", f"{sum(statuses.values())}, {time.monotonic() - began:.0f}"),
        (f"{name}: statuses", ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))),
        (f"{name}: 5xx or broken", str(bad)),
        (f"{name}: witness p50 / p95 / max ms", quantiles(witness.seconds)),
        (f"{name}: witness statuses", str(dict(witness.statuses))),
        (f"{name}: server MB", f"{server.megabytes():.0f}"),
    ]
    if name.startswith("constraints"):
        rows.append((f"{name}: latest 408 after its deadline, s", f"{max(late, default=0.0):.2f}"))
    return rows


def shutdown(server: Server) -> list[tuple[str, str]]:
    """SIGTERM while long requests are under way."""
    body = {"model": MODELS["masked"], "prompt": "I am tired.", "max_tokens": 64}
    holes = {"model": MODELS["masked"], "text": "a " + "[[?]] b " * 16, "prompt": "x", "n": 4}
    explode = {"response_format": {"type": "regex", "pattern": "((a{1,100}){1,100}){1,4}"}}
    long = [
        ("/v1/completions", {**body, "n": 32, "redraft": {"sampler": "ancestral", "options": {"steps": 65536}}}),
        ("/v1/completions", {**body, **explode}),
        ("/v1/infill", holes),
        ("/v1/completions", {**body, "n": 32, "redraft": {"sampler": "remdm", "options": {"steps": 4096}}}),
    ]
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda r=route, b=one: statuses.append(ask(server.port, HOSTILE, r, json.dumps(b))[0]))
        for route, one in long
    ]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    began = time.monotonic()
    os.kill(server.process.pid, signal.SIGTERM)
    server.process.wait(120)
    took = time.monotonic() - began
    for thread in threads:
        thread.join()
    return [
        (f"SIGTERM: seconds until the end (patience {PATIENCE:g})", f"{took:.2f}"),
        ("SIGTERM: statuses of the requests under way", ", ".join(map(str, sorted(statuses)))),
    ]


def main() -> None:
    """Run all phases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--constraints", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=240.0, help="of each of the two phases, at most")
    given = parser.parse_args()
    odd = list(itertools.islice(numbers(), given.requests))  # before the server starts: this imports all parts
    server = Server.start()
    try:
        with Witness(server.port) as alone:
            time.sleep(5)
        show([("witness alone, p50 / p95 / max ms", quantiles(alone.seconds))])
        show(phase(server, "warm-up", iter(odd[: given.requests // 10]), given.seconds / 4))
        show(phase(server, "numbers", iter(odd), given.seconds))
        show(phase(server, "constraints", iter(constraints(given.constraints)), given.seconds))
        show(phase(server, "constraints again", iter(constraints(given.constraints)), given.seconds / 2))
        show(shutdown(server))
    finally:
        server.process.kill()


def show(rows: Sequence[tuple[str, str]]) -> None:
    """Print rows of the table."""
    for name, value in rows:
        print(f"{name:50}  {value}", flush=True)


if __name__ == "__main__":
    main()
