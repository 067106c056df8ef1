"""What survives: kills, a full disk, and damaged files of a model folder. Everything runs in a temporary folder.

    python benchmarks/damage_trials.py model [--edits 300] [--seed 0] [--model translate-en-de-masked]
    python benchmarks/damage_trials.py train [--kills 6]
    python benchmarks/damage_trials.py compare [--kills 3]
    python benchmarks/damage_trials.py disk

One JSON object with the counts; exit code 1 if something did not hold.

- model: each trial damages one file of a copy of the folder (a value of a JSON file, a cut, a flipped byte, an empty
  file, a folder in its place), then loads the model and generates two tokens in a process with 4 GB of memory and 20
  seconds. It must work or be refused in words (a ``UserError``), never end in a traceback, a hang or a crash.
- train: ``redraft train`` is killed (SIGKILL) at random moments and run again until it ends: the weights must be those
  of an undisturbed run, byte for byte.
- compare: likewise with a study: its texts, likelihoods and verdict must be those of an undisturbed one.
- disk: a training on whose disk no file may grow beyond a limit (RLIMIT_FSIZE) must end with exit code 2 and keep its
  checkpoints; without the limit it must continue to the same weights.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VALUES: tuple[Any, ...] = (
    *(0, -1, 3, 10**5, 10**9, 2**31, 2**63, 10**400, 0.5, 1e300, float("inf"), float("nan")),
    *("", "text", "../x", None, True, [], [0], {}, {"name": "masked"}),
)
MEMORY, SECONDS = 4 << 30, 20
RECIPE = ROOT / "recipes" / "toy" / "masked.toml"
SMALL = ["tokenizer.kind=bytes", "model.config.dim=32", "data.length=128", "train.batch_tokens=512"]
SMALL += ["train.save_every_tokens=1500", "train.threads=1", "train.dtype=float32", "train.validation_rows=8"]


# ---- a model folder


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in nested JSON, tables included, the longest lists by their first entries."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, one in list(inner)[:40]:
        yield from leaves(one, (*path, key))


def edit_json(file: Path, rng: random.Random) -> str:
    """Change or delete one value of a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    paths = list(leaves(content))
    if not paths:
        return edit_bytes(file, rng)
    path, place = rng.choice(paths), content
    for key in path[:-1]:
        place = place[key]
    if rng.random() < 0.15:
        del place[path[-1]]
        done = "deleted"
    else:
        place[path[-1]] = copy.deepcopy(rng.choice(VALUES))
        done = f"= {str(place[path[-1]])[:20]!r}"
    with contextlib.suppress(ValueError):
        sys.set_int_max_str_digits(0)
    file.write_text(json.dumps(content), encoding="utf-8")
    return f"{'.'.join(map(str, path))} {done}"


def edit_bytes(file: Path, rng: random.Random) -> str:
    """Damage a file without looking at what it holds."""
    data = bytearray(file.read_bytes())
    kind = rng.choice(("cut", "flip in the header", "flip", "empty", "folder", "deleted", "nested", "grown"))
    if kind == "cut":
        data = data[: rng.randrange(len(data) or 1)]
    elif kind.startswith("flip") and data:
        at = rng.randrange(min(len(data), 3000) if "header" in kind else len(data))
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "grown":
        data += bytes(rng.randrange(256) for _ in range(100))
    elif kind == "nested":
        data = bytearray(b"[" * 100000)
    if kind in ("folder", "deleted"):
        file.unlink()
        if kind == "folder":
            file.mkdir()
    else:
        file.write_bytes(b"" if kind == "empty" else data)
    return kind


def load_and_generate(folder: Path) -> None:
    """What a trial must survive."""
    import redraft

    prompt = "I am tired." if (folder / "tokenizer_config.json").exists() else [1, 2]  # the latter without a tokenizer
    redraft.load(folder).generate([prompt], max_new_tokens=2)


def outcome(work: Callable[[], None], log: Path) -> str:
    """Run ``work`` in a process of its own: works, refused, traceback, hang, memory or crash."""
    child = os.fork()
    if child == 0:
        from redraft.errors import UserError

        code = 1
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                work()
                code = 0
            except UserError as error:
                file.write(str(error))
                code = 2
            except MemoryError:
                code = 3
            except BaseException:
                traceback.print_exc(file=file)
        os._exit(code)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return {0: "works", 1: "traceback", 2: "refused", 3: "memory"}.get(code, "crash")
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang"


def model_trials(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Damage copies of a model folder, one file at a time."""
    import torch

    import redraft
    from redraft.loading import resolve

    torch.set_num_threads(1)
    source, rng, log = resolve(args.model), random.Random(args.seed), place / "log"
    load_and_generate(source)  # imports everything before the first fork
    assert redraft
    counts: Counter[str] = Counter()
    bad: list[str] = []
    names = sorted(file.name for file in source.iterdir() if file.is_file() and file.suffix != ".md")
    for number in range(args.edits):
        folder = place / f"model-{number}"
        shutil.copytree(source, folder)
        file = folder / rng.choice(names)
        edit = edit_json if file.suffix == ".json" and rng.random() < 0.8 else edit_bytes
        done = edit(file, rng)
        found = outcome(lambda folder=folder: load_and_generate(folder), log)  # type: ignore[misc]
        counts[found] += 1
        if found not in ("works", "refused"):
            last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
            bad.append(f"{found}: {file.name}: {done}: {last[:160]}")
            print(bad[-1], file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    return {"edits": args.edits, **counts, "bad": bad, "ok": not bad}


# ---- kills and a full disk


def start(command: list[str], limit: int = 0) -> subprocess.Popen[bytes]:
    """Run the command line of this checkout; ``limit``: bytes beyond which no file grows."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

    def limited() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "redraft", *command],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=limited,
    )


def finish(command: list[str], limit: int = 0) -> tuple[int, str]:
    """Exit code and messages of a command that nothing disturbs."""
    process = start(command, limit)
    _, messages = process.communicate()
    return process.returncode, messages.decode(errors="replace")


def killed_until_done(command: list[str], kills: int, seconds: float, rng: random.Random) -> int:
    """Kill a command at random moments within ``seconds``, ``kills`` times, then let it end. Returns the kills."""
    done = 0
    for _ in range(kills):
        process = start(command)
        try:
            process.communicate(timeout=rng.uniform(0.1, 0.6) * seconds)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            done += 1
    code, messages = finish(command)
    if code:
        raise SystemExit(f"the last start failed ({code}): {messages[-500:]}")
    return done


def train_command(out: Path, tokens: int) -> list[str]:
    sets = [part for one in SMALL for part in ("--set", one)]
    return ["train", str(RECIPE), "--tokens", str(tokens), *sets, "--out", str(out)]


def train_trials(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Kill a training."""
    rng, begun = random.Random(args.seed), time.monotonic()
    finish(train_command(place / "whole", 60_000))
    whole = time.monotonic() - begun
    done = killed_until_done(train_command(place / "killed", 60_000), args.kills, whole, rng)
    same = (place / "killed" / "model.safetensors").read_bytes() == (place / "whole" / "model.safetensors").read_bytes()
    return {"kills": done, "seconds_undisturbed": round(whole, 1), "same_weights": same, "ok": same and done > 0}


def disk_trials(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Train where no file may become large."""
    finish(train_command(place / "whole", 12_000))
    out = place / "full"
    code, messages = finish(train_command(out, 12_000), limit=100_000)
    refused = code == 2 and "no space left" in messages and "Traceback" not in messages
    again, _ = finish(train_command(out, 12_000))
    same = (out / "model.safetensors").read_bytes() == (place / "whole" / "model.safetensors").read_bytes()
    return {"exit_code": code, "refused_in_words": refused, "same_weights": same, "ok": refused and same and not again}


def study_facts(out: Path) -> Any:
    """What a study must find again: everything but times, memory and the machine."""
    record = json.loads((out / "results.json").read_text())
    texts = sorted(
        json.dumps(cell["value"]["texts"])
        for file in (out / "cells").glob("*.json")
        if "texts" in (cell := json.loads(file.read_text()))["value"] and cell["key"].get("kind") == "texts"
    )
    likelihood = [(one["family"], one.get("bits_per_byte")) for one in record["likelihood"]]
    return texts, likelihood, [(one["family"], one["steps"], one["tokens"]) for one in record["training"]]


def compare_trials(args: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Kill a study."""
    data = str(ROOT / "recipes" / "toy" / "data" / "tatoeba.en-de")

    def command(out: Path) -> list[str]:
        rest = ["--preset", "toy", "--budget-tokens", "20000", "--validation-rows", "24", "--test-rows", "24"]
        return ["compare", "--data", data, *rest, "--steps", "4", "--batch-sizes", "1", "--out", str(out)]

    begun, rng = time.monotonic(), random.Random(args.seed)
    code, messages = finish(command(place / "whole"))
    if code:
        raise SystemExit(f"the undisturbed study failed ({code}): {messages[-500:]}")
    whole = time.monotonic() - begun
    done = killed_until_done(command(place / "killed"), args.kills, whole, rng)
    same = study_facts(place / "killed") == study_facts(place / "whole")
    return {"kills": done, "seconds_undisturbed": round(whole, 1), "same_results": same, "ok": same and done > 0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trials = {"model": model_trials, "train": train_trials, "compare": compare_trials, "disk": disk_trials}
    parser.add_argument("what", choices=trials)
    parser.add_argument("--model", default="translate-en-de-masked")
    parser.add_argument("--edits", type=int, default=300)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = trials[args.what](args, Path(place))
    print(json.dumps({"what": args.what, **found}, indent=1))
    return int(not found["ok"])


if __name__ == "__main__":
    sys.exit(main())
