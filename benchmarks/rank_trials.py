"""Trainings in several processes, one of which is killed (SIGKILL) at a random moment. Runs in a temporary folder.

    python benchmarks/rank_trials.py [--trials 10] [--processes 2] [--parallel fsdp] [--seed 0] [--tiny]

In every trial, ``redraft train --nproc N --max-restarts 6`` loses the process of a random rank at a random moment, once
or twice. It must end by itself with the weights and the curve of a run that nothing disturbed, bit for bit, and every
restart must continue from the checkpoint that was the last one when the process was killed, or from a later one.
A last trial continues checkpoints of N processes on half as many, and so on down to one, and on N again: the curve must
be that of the undisturbed run, up to rounding.

One JSON object with the counts; exit code 1 if something did not hold. Ten trials with two processes take about five
minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "toy" / "masked.toml"
TOKENS, TINY_TOKENS = 120_000, 12_000
INTERVALS = 12  # between checkpoints
BATCHES = 4  # of an update: four processes can share them
SMALL = ["tokenizer.kind=bytes", "model.config.dim=32", "data.length=128", "train.batch_tokens=256"]
SMALL += ["train.threads=1", "train.dtype=float32", "train.validation_rows=8"]
SMALL += ["train.log_every=1", "train.validate_every=0", "train.activation_checkpointing=none"]
RESTARTS = 6  # more than kills: a process that is killed while all connect takes one more
CLOCK = {"seconds", "eta_seconds", "tokens_per_second", "share_of_peak"}


def command(out: Path, processes: int, tokens: int, parallel: str, restarts: int = 0) -> list[str]:
    """A training run in ``processes`` processes."""
    several = [f"--nproc={processes}", f"--max-restarts={restarts}"] if processes > 1 else []
    settings = [
        *SMALL,
        f"train.save_every_tokens={tokens // INTERVALS}",
        f"train.accumulate={BATCHES}",
        f"train.parallel={parallel}",
    ]
    every = [word for one in settings for word in ("--set", one)]
    return [
        *(sys.executable, "-m", "redraft", "train", str(RECIPE), "--out", str(out), "--device", "cpu"),
        *("--tokens", str(tokens), *several, *every),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=log.open("ab"), stderr=subprocess.STDOUT)


def curve(out: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` without what the clock decides."""
    lines = map(json.loads, (out / "train" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def newest(out: Path) -> int:
    """The step of the last checkpoint; 0 without one."""
    found = sorted((out / "train").glob("checkpoint-*"))
    return int(found[-1].name.removeprefix("checkpoint-")) if found else 0


def workers(agent: int) -> dict[int, int]:
    """The processes that torchrun has started, by rank."""
    found = {}
    for place in Path("/proc").iterdir():
        try:
            parent = int(place.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent != agent:
                continue
            variables = place.joinpath("environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        ranks = [int(one.removeprefix(b"RANK=")) for one in variables if one.startswith(b"RANK=")]
        if ranks:
            found[ranks[0]] = int(place.name)
    return found


@dataclass
class Trial:
    """What came of a run that lost processes."""

    kills: list[dict[str, int]] = field(default_factory=list)  # rank, step, last checkpoint, and starts so far
    resumed: list[int] = field(default_factory=list)  # steps at which the run went on, by kill
    same: bool = False
    code: int = 0

    @property
    def lost(self) -> list[int]:
        """Updates that were made again, by kill."""
        return [kill["step"] - step for kill, step in zip(self.kills, self.resumed, strict=False)]

    @property
    def holds(self) -> bool:
        """The run ended by itself as if nothing had happened, and went on from the last checkpoint each time."""
        found = len(self.resumed) == len(self.kills)
        kept = all(step >= kill["checkpoint"] for step, kill in zip(self.resumed, self.kills, strict=False))
        return self.code == 0 and self.same and found and kept


def kill_trial(folder: Path, number: int, undisturbed: Path, given: argparse.Namespace, rng: random.Random) -> Trial:
    """One run that loses a process once or twice."""
    out, log, trial = folder / f"trial-{number}", folder / f"trial-{number}.log", Trial()
    process = start(command(out, given.processes, given.tokens, given.parallel, RESTARTS), log)
    last = curve(undisturbed)[-1]["step"]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(newest(out), last)  # a step, and a moment after it
        while process.poll() is None and steps(out) < at:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.2))
        running = workers(process.pid)
        rank = rng.randrange(given.processes)
        if process.poll() is not None or rank not in running or (out / "train" / "result.json").exists():
            break
        done, there = steps(out), newest(out)
        os.kill(running[rank], signal.SIGKILL)
        trial.kills.append({"rank": rank, "step": done, "checkpoint": there, "starts": len(starts(log))})
        wait_for_restart(process, running[rank], rank)
    trial.code = process.wait(600)
    begun = starts(log)
    trial.resumed = [begun[kill["starts"]] for kill in trial.kills if kill["starts"] < len(begun)]
    trial.same = trial.code == 0 and weights(out) == weights(undisturbed) and curve(out) == curve(undisturbed)
    return trial


def starts(log: Path) -> list[int]:
    """The steps at which a run has begun, at each start that came so far."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    begun = [line for line in lines if "new run" in line or "resumed at step" in line]
    return [int(line.rpartition("step ")[2]) if "resumed" in line else 0 for line in begun]


def steps(out: Path) -> int:
    """Updates that have been reported so far."""
    try:
        text = (out / "train" / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return 0
    return text.count('"kind": "update"')


def wait_for_restart(process: subprocess.Popen[bytes], killed: int, rank: int) -> None:
    """Wait until another process has the rank."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if workers(process.pid).get(rank, killed) != killed:
            return
        time.sleep(0.05)


def reshard_trial(folder: Path, undisturbed: Path, given: argparse.Namespace) -> dict[str, Any]:
    """A run that is interrupted and goes on with other numbers of processes. The largest difference of a loss."""
    out, order = folder / "reshard", []
    count = max(given.processes, 4)
    while count:
        order.append(count)
        count //= 2
    order.append(order[0])
    last = curve(undisturbed)[-1]["step"]
    for number, processes in enumerate(order):
        process = start(command(out, processes, given.tokens, given.parallel), folder / "reshard.log")
        while process.poll() is None and number < len(order) - 1 and steps(out) < last * (number + 1) // len(order):
            time.sleep(0.02)
        if number < len(order) - 1:
            process.send_signal(signal.SIGINT)
        process.wait(600)
    pairs = list(zip(curve(out), curve(undisturbed), strict=True))
    worst = max(abs(one["loss"] - other["loss"]) for one, other in pairs if one["kind"] == "update")
    return {"processes": order, "largest_difference": worst, "holds": worst < 1e-3}


def main() -> int:
    """Run all trials and print what held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="fsdp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a tenth of the updates")
    given = parser.parse_args()
    given.tokens = TINY_TOKENS if given.tiny else TOKENS
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = folder / "undisturbed"
        first = start(command(undisturbed, given.processes, given.tokens, given.parallel), folder / "undisturbed.log")
        if first.wait(900):
            print((folder / "undisturbed.log").read_text(encoding="utf-8"), file=sys.stderr)
            return 1
        trials = [kill_trial(folder, number, undisturbed, given, rng) for number in range(given.trials)]
        resharded = reshard_trial(folder, undisturbed, given)
        for number, trial in enumerate(trials):
            if not trial.holds:
                print(f"trial {number}: {trial}", file=sys.stderr)
                print((folder / f"trial-{number}.log").read_text(encoding="utf-8")[-4000:], file=sys.stderr)
        updates = curve(undisturbed)[-1]["step"]
    kills = [kill for trial in trials for kill in trial.kills]
    lost = [count for trial in trials for count in trial.lost]
    result = {
        "processes": given.processes,
        "parallel": given.parallel,
        "updates": updates,
        "updates_between_checkpoints": round(updates / INTERVALS, 1),
        "trials": len(trials),
        "kills": len(kills),
        "kills_of_rank": [sum(kill["rank"] == rank for kill in kills) for rank in range(given.processes)],
        "held": sum(trial.holds for trial in trials),
        "updates_made_again": {"most": max(lost, default=0), "mean": round(sum(lost) / max(len(lost), 1), 1)},
        "resharded": resharded,
    }
    print(json.dumps(result, indent=1))
    return int(result["held"] < len(trials) or not resharded["holds"])


if __name__ == "__main__":
    sys.exit(main())
