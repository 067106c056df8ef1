"""What survives under Ray: a study whose worker is killed, and a server whose replica is killed.

    python benchmarks/ray_trials.py study [--tokens 60000] [--kills 1]
    python benchmarks/ray_trials.py serve [--clients 64] [--seconds 120]
    python benchmarks/ray_trials.py update [--clients 8] [--seconds 30]

One JSON object; exit code 1 if something did not hold. Ray uses all cores of this machine, one worker each.

- study: a study without Ray, and the same one with Ray, of which the worker of a training is killed (SIGKILL) in the
  middle. All texts, likelihoods and curves, and everything else in results.json that no time enters, must be the same.
- serve: two replicas, and clients that send one request after the other. Half-way one replica is killed. Only requests
  under way at that moment may fail, each with an error and none by waiting; all texts must be those of one process.
- update: two replicas are replaced by others with another configuration under load. No request may fail.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Fields of results.json that times, memory or the machine enter. "chosen" and what follows from it name the fast
# setting of each family, which the measured times decide.
MEASURED = {
    *("created", "command", "machine", "timed_on", "seconds", "tokens_per_second", "peak_memory", "memory_growth"),
    *("speed", "speed_setting", "chosen", "verdict", "caveats", "buckets", "samples", "out"),
}
HANG = 60.0  # seconds after which a request that got no answer counts as a hang
DETECTED = 10.0  # seconds after a kill in which requests that were handed to the dead replica may fail


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}  # fmt: skip


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "redraft", *words]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


# ---- a study


def run_study(out: Path, args: argparse.Namespace, *more: str, kills: int = 0) -> dict[str, Any]:
    """Run a study and kill the worker of the masked training, ``kills`` times, in the middle of its updates."""
    data = str(ROOT / "recipes" / "toy" / "data" / "tatoeba.en-de")
    words = ["compare", "--data", data, "--preset", "toy", "--budget-tokens", str(args.tokens), "--steps", "2,4"]
    words += ["--validation-rows", "40", "--test-rows", "40", "--batch-sizes", "1,8", "--timed-calls", "3"]
    words += ["--set", "dtype=float32"]  # else each study measures which type is faster, and may find another
    words += ["--set", "save_every_tokens=8192", "--set", f"validate_every={args.tokens // 4}"]
    begun, killed, begins = time.monotonic(), list[str](), Counter[str]()
    process, victim = start(*words, "--out", str(out), *more), 0
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.match(r"(.*): begins on .*, process (\d+)", line):
            begins[found[1]] += 1
            victim = int(found[2]) if found[1].startswith("training masked") else victim
        if "masked, seed 0:" in line and "bits per byte" in line and len(killed) < kills:
            os.kill(victim, signal.SIGKILL)
            killed.append(line.strip())
    if process.wait():
        raise SystemExit(f"the study failed: {''.join(lines[-20:])}")
    again = {name: count - 1 for name, count in begins.items() if count > 1}
    return {"seconds": round(time.monotonic() - begun, 1), "killed_after": killed, "done_again": again}


def without_times(value: Any) -> Any:
    """A part of results.json without the fields that times enter."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in MEASURED}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def cells(out: Path) -> dict[str, Any]:
    """Texts, likelihoods and curves of a study by the names of their cells, which are hashes of what they depend on."""
    kept = {"texts": "texts", "likelihood": "nats", "train": "curve", "baselines": "texts"}
    found = {path.name: json.loads(path.read_text()) for path in (out / "cells").glob("*.json")}
    return {name: one["value"][kept[k]] for name, one in found.items() if (k := one["key"]["kind"]) in kept}


def study(args: argparse.Namespace) -> dict[str, Any]:
    """A study without Ray and one with it, of which a worker is killed."""
    with tempfile.TemporaryDirectory() as name:
        alone, spread = Path(name) / "alone", Path(name) / "ray"
        facts = {"alone": run_study(alone, args), "ray": run_study(spread, args, "--ray", kills=args.kills)}
        mine, other = (json.loads((out / "results.json").read_text()) for out in (alone, spread))
        differ = [key for key in mine if without_times({key: mine[key]}) != without_times({key: other[key]})]
        first, second = cells(alone), cells(spread)
    same = first == second and not differ
    found = {
        "cores": os.cpu_count(),
        **facts,
        "cells": len(first),
        "same_cells": first == second,
        "fields_that_differ": differ,
    }
    return {**found, "timed_on": other["timed_on"], "ok": same and len(facts["ray"]["killed_after"]) == args.kills}


# ---- a server


@dataclass
class Answer:
    """One request."""

    begin: float
    end: float
    how: str  # same, other, error ..., hang


async def client(
    http: Any, questions: list[tuple[dict[str, Any], str]], first: int, until: float, seen: list[Answer]
) -> None:
    import httpx2

    number = first
    while time.monotonic() < until:
        body, expected = questions[number % len(questions)]
        streams = number % 2 == 1
        number += 7
        begin, text, ended = time.monotonic(), "", not streams
        try:
            async with http.stream("POST", "/v1/completions", json={**body, "stream": streams}) as answer:
                how = "" if answer.status_code == 200 else f"error: status {answer.status_code}"
                if not streams and not how:
                    await answer.aread()
                    text = answer.json()["choices"][0]["text"]
                async for line in answer.aiter_lines() if streams and not how else nothing():
                    ended = ended or line == "data: [DONE]"
                    if line.startswith("data: {"):
                        chunk = json.loads(line[6:])
                        how = f"error: event {chunk['error']['type']}" if "error" in chunk else how
                        text += "".join(choice["text"] for choice in chunk.get("choices", []))
        except httpx2.TimeoutException:
            how = "hang"
        except httpx2.HTTPError as error:
            how = f"error: {type(error).__name__}"
        how = how or ("error: stream without an end" if not ended else "same" if text == expected else "other")
        seen.append(Answer(begin, time.monotonic(), how))


async def nothing() -> Any:
    for line in ():
        yield line


async def load(
    address: str, questions: list, clients: int, seconds: float, half_way: Callable[[], None]
) -> tuple[list[Answer], float]:
    """All answers, and when ``half_way`` was called."""
    import httpx2

    seen: list[Answer] = []
    async with httpx2.AsyncClient(
        base_url=address, timeout=HANG, limits=httpx2.Limits(max_connections=clients)
    ) as http:
        until = time.monotonic() + seconds
        work = [asyncio.create_task(client(http, questions, n * 31, until, seen)) for n in range(clients)]
        await asyncio.sleep(seconds / 2)
        at = time.monotonic()
        half_way()
        await asyncio.gather(*work)
    return seen, at


def asked(model: str, count: int) -> list[tuple[dict[str, Any], str]]:
    """Requests, each with the text that one process generates for it."""
    import gzip

    import redraft

    with gzip.open(ROOT / "examples" / "data" / "tatoeba.en-de.test.jsonl.gz", "rt", encoding="utf-8") as file:
        prompts = [json.loads(line)["english"] for line, _ in zip(file, range(count), strict=False)]
    loaded, found = redraft.load(model, "cpu"), []
    for seed, prompt in enumerate(prompts):
        text = loaded.generate(prompt, max_new_tokens=32, seed=seed, temperature=0.7)[0].text
        body = {"model": model, "prompt": prompt, "max_tokens": 32, "seed": seed, "temperature": 0.7}
        found.append((body, text))
    return found


def replicas() -> list[int]:
    """Process ids of the replicas on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::ServeReplica:redraft"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def summary(seen: list[Answer], at: float) -> dict[str, Any]:
    """Counts of how requests ended; the errors by when the request began, against the kill."""
    wrong = [one for one in seen if one.how != "same"]
    at_kill = [one for one in wrong if one.begin <= at <= one.end]
    soon = [one for one in wrong if at < one.begin <= at + DETECTED]
    halves = {"before": [one for one in seen if one.end < at], "after": [one for one in seen if one.end >= at]}
    rate = {
        half: sum(one.how == "same" and (one.end < at) == before for one in seen)
        for half, before in (("before", True), ("after", False))
    }
    return {
        "requests": len(seen),
        "same_text": sum(one.how == "same" for one in seen),
        "under_way_at_the_kill": sum(one.begin <= at <= one.end for one in seen),
        "errors_of_these": dict(Counter(one.how for one in at_kill)),
        "errors_begun_soon_after": dict(Counter(one.how for one in soon)),
        "other_errors": dict(Counter(one.how for one in wrong if one not in at_kill and one not in soon)),
        "longest_wait_for_an_error": round(
            max((one.end - max(at, one.begin) for one in at_kill + soon), default=0.0), 2
        ),
        "answered": rate,
        "p50_p99_seconds": {half: _quantiles([one.end - one.begin for one in ends]) for half, ends in halves.items()},
        "most_overtaken": max((_overtaken(one, seen) for one in seen), default=0),
    }


def _quantiles(seconds: list[float]) -> list[float]:
    """Median and 99th percentile. Clients that send one request after the other wait clients / rate (Little's law)."""
    ordered = sorted(seconds)
    return [round(ordered[int(len(ordered) * q)], 2) for q in (0.5, 0.99)] if ordered else []


def _overtaken(one: Answer, seen: list[Answer]) -> int:
    """How many requests began after this one and ended before it: in a fair queue, at most about one per client."""
    return sum(one.begin < other.begin and other.end < one.end for other in seen)


def serve(args: argparse.Namespace) -> dict[str, Any]:
    """Kill a replica under load."""
    questions = asked(args.model, args.prompts)
    server = start("serve", "--model", args.model, "--port", "0", "--batch", "16", "--replicas", "2", "--ray-serve")
    assert server.stderr is not None
    line = next((line for line in server.stderr if line.startswith("Serving")), "")
    if not line:
        raise SystemExit("the server did not start")
    threading.Thread(target=server.stderr.read, daemon=True).start()
    address, pids = line.split(" at ")[1].split()[0], replicas()
    seen, at = asyncio.run(
        load(address, questions, args.clients, args.seconds, lambda: os.kill(pids[0], signal.SIGKILL))
    )
    healed = until(lambda: len(set(replicas()) - {pids[0]}) == 2, 60)
    begun = time.monotonic()
    server.send_signal(signal.SIGTERM)
    code = server.wait(90)
    found = summary(seen, at)
    held = not found["other_errors"] and not any(
        "hang" in one or "other" in one for one in (*found["errors_of_these"], *found["errors_begun_soon_after"])
    )
    ok = held and not found["errors_begun_soon_after"] and healed and code == 0 and found["same_text"] > 0
    return {
        "clients": args.clients,
        "seconds": args.seconds,
        **found,
        "replaced": healed,
        "exit_code": code,
        "seconds_of_shutdown": round(time.monotonic() - begun, 1),
        "ok": ok,
    }


def until(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.5)
    return False


def update(args: argparse.Namespace) -> dict[str, Any]:
    """Replace the replicas under load."""
    from ray import serve as ray_serve

    from redraft.interop.ray_session import connect
    from redraft.serve import ray_serve as ours
    from redraft.serve.config import Replication, ServerConfig
    from redraft.serve.server import listen

    questions, two = asked(args.model, args.prompts), Replication(replicas=2)
    config = ServerConfig((args.model,), port=0, batch=16, device="cpu")
    with listen(config) as free:
        port = free.getsockname()[1]
    before = ServerConfig((args.model,), port=port, batch=16, device="cpu")
    after = ServerConfig((args.model,), port=port, batch=8, device="cpu")
    with connect() as session:
        ours.deploy(before, two, session)
        old, took = set(replicas()), list[float]()

        def replace() -> None:
            begun = time.monotonic()
            ours.deploy(after, two, session)
            took.append(round(time.monotonic() - begun, 1))

        thread = threading.Thread(target=replace)
        seen, at = asyncio.run(load(f"http://127.0.0.1:{port}", questions, args.clients, args.seconds, thread.start))
        thread.join()
        new = until(lambda: len(set(replicas())) == 2 and not old & set(replicas()), 60)
        ray_serve.shutdown()
    found = summary(seen, at)
    return {**found, "seconds_of_update": took, "all_replaced": new, "ok": new and found["same_text"] == len(seen)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trials = {"study": study, "serve": serve, "update": update}
    parser.add_argument("what", choices=trials)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--model", default="translate-en-de-masked")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--prompts", type=int, default=60)
    args = parser.parse_args()
    found = trials[args.what](args)
    print(json.dumps({"what": args.what, **found}, indent=1))
    return int(not found["ok"])


if __name__ == "__main__":
    sys.exit(main())
