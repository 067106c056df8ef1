"""Plans against measurements: memory of training within 10 %, time of an update within 20 %, alone and on two ranks.

    python benchmarks/plan_check.py [--sizes 3m,25m,125m] [--kinds full,lora] [--updates 8] [--ranks 2] [--tiny]

Each case is a command as people run it: ``redraft train`` (all weights), or ``redraft finetune`` (adapters of rank 8 on
a model of the same shape), in a process of its own. The measured peak is the largest resident memory of the process,
Python included; the measured time of an update is the median of those that the run reports, without the first. The
plan of the memory is that of the same command with ``--dry-run``; that of the time is ``redraft plan``, which measures
the machine first: nothing else should run. Two ranks need ``redraft train --nproc``, and are skipped without it.
Prints a table, and one JSON object last; the exit code is 1 if a plan is further off than its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY, TIME = 0.10, 0.20  # largest errors
LENGTH, VOCABULARY, RANK = 256, 8192, 8
BATCHES = {"toy": 1024, "1m": 2048, "3m": 4096, "7m": 4096, "25m": 4096, "125m": 4096, "350m": 2048}


@dataclass(frozen=True)
class Case:
    """One training run."""

    size: str
    kind: str  # full | lora
    ranks: int = 1
    parallel: str = ""  # ddp | fsdp

    @property
    def label(self) -> str:
        """Its name."""
        return f"{self.size} {self.kind}" + (f", {self.ranks} ranks, {self.parallel}" if self.ranks > 1 else "")


def redraft(*words: object, threads: int) -> tuple[str, int]:
    """Run a command; what it printed, and the largest resident bytes of its processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "redraft", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    out, err = process.stdout, process.stderr
    assert out is not None and err is not None
    with tempfile.TemporaryFile("w+") as kept:  # so that neither pipe can fill up
        waiting = subprocess.Popen(["cat"], stdin=err, stdout=kept)
        printed = out.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        waiting.wait()
        kept.seek(0)
        if process.returncode:
            raise SystemExit(f"failed: {' '.join(command)}\n{kept.read()}")
    return printed, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def text(folder: Path) -> Path:
    """Training text: documents of about 800 tokens, of which some are for validation."""
    file = folder / "text.txt"
    lines = [f"{n} is a number, its square is {n * n}, and its cube is {n**3}." for n in range(48_000)]
    documents = ("\n".join(lines[begin : begin + 24]) for begin in range(0, len(lines), 24))
    file.write_text("\n\n".join(documents), encoding="utf-8")
    return file


def command(case: Case, folder: Path, updates: int, threads: int) -> list[object]:
    """The words of a training run, without ``--out``."""
    batch = BATCHES[case.size]
    changes = [f"train.tokens={updates * batch * case.ranks}", f"train.batch_tokens={batch}", "train.log_every=1"]
    changes += [
        f"train.threads={threads}",
        f"train.accumulate={case.ranks}",
        "train.validation_rows=32",
        f"data.length={LENGTH}",
        "train.lr=1e-4",
    ]
    if case.kind == "lora":
        words: list[object] = ["finetune", "--from", folder / f"{case.size}-base", "--lora-rank", RANK]
    else:
        words = ["train", "--family", "masked", "--preset", case.size]
        changes.append(f"tokenizer.vocab_size={VOCABULARY}")
    words += ["--data", folder / "text.txt"]
    words += [part for change in changes for part in ("--set", change)]
    return words + (["--nproc", case.ranks, "--set", f"train.parallel={case.parallel}"] if case.ranks > 1 else [])


def measured(case: Case, folder: Path, updates: int, threads: int) -> dict[str, float]:
    """Peak memory, and seconds of an update."""
    out = folder / case.label.replace(" ", "-").replace(",", "")
    _, peak = redraft(*command(case, folder, updates, threads), "--out", out, threads=threads)
    events = [json.loads(line) for line in (out / "train" / "metrics.jsonl").read_text().splitlines()]
    speeds = [event["tokens_per_second"] for event in events if event.get("kind") == "update"][1:]
    return {"peak": peak, "seconds": case.ranks * BATCHES[case.size] / statistics.median(speeds)}


def planned(case: Case, folder: Path, threads: int) -> dict[str, float]:
    """The peak and the seconds that are planned."""
    words = command(Case(case.size, case.kind), folder, 1, threads)
    if case.ranks == 1:
        memory, _ = redraft(*words, "--out", folder / "plan", "--dry-run", "--json", threads=threads)
        peak = json.loads(memory)["memory"]["total"]
    question: list[object] = ["--length", LENGTH, "--batch-tokens", BATCHES[case.size], "--device", "cpu"]
    question += ["--gpus", case.ranks, *(["--parallel", case.parallel] if case.parallel else [])]
    if case.kind == "lora":
        question = [folder / f"{case.size}-base", *question, "--lora-rank", RANK]
    else:
        question = ["--preset", case.size, "--vocab-size", VOCABULARY, "--family", "masked", *question]
    found = json.loads(redraft("plan", *question, "--json", threads=threads)[0])
    if case.ranks > 1:
        peak = found["training"]["memory"]["total"]
    return {"peak": peak, "seconds": found["training"]["update"]["seconds"]}


def check(case: Case, folder: Path, updates: int, threads: int) -> dict[str, Any]:
    """A row of the table."""
    plan, real = planned(case, folder, threads), measured(case, folder, updates, threads)
    errors = {name: plan[name] / real[name] - 1 for name in real}
    print(
        f"{case.label:28} peak {plan['peak'] / 1e9:6.3f} of {real['peak'] / 1e9:6.3f} GB ({errors['peak']:+.1%})   "
        f"update {plan['seconds']:7.3f} of {real['seconds']:7.3f} s ({errors['seconds']:+.1%})",
        flush=True,
    )
    return {"case": case.label, "planned": plan, "measured": real, "errors": errors}


def has_ranks(threads: int) -> bool:
    """Can ``redraft train`` start several processes?"""
    return "--nproc" in redraft("train", "--help", threads=threads)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="3m,25m,125m")
    parser.add_argument("--kinds", default="full,lora")
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="one small size")
    options = parser.parse_args()
    sizes = ["1m"] if options.tiny else options.sizes.split(",")
    cases = [Case(size, kind) for kind in options.kinds.split(",") for size in sizes]
    each = max(1, options.threads // options.ranks)
    if options.ranks > 1 and has_ranks(1):
        cases += [Case(size, "full", options.ranks, kind) for kind in ("ddp", "fsdp") for size in sizes]
    elif options.ranks > 1:
        print(f"{options.ranks} ranks: skipped, because redraft train has no option --nproc")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text(folder)
        for size in sizes if "lora" in options.kinds else ():
            words = command(Case(size, "full"), folder, 1, options.threads)
            redraft(*words, "--out", folder / f"{size}-base", threads=options.threads)
        rows = [check(case, folder, options.updates, options.threads if case.ranks == 1 else each) for case in cases]
    print(json.dumps({"machine": platform.machine(), "cores": os.cpu_count(), "rows": rows}))
    far = [r["case"] for r in rows if abs(r["errors"]["peak"]) > MEMORY or abs(r["errors"]["seconds"]) > TIME]
    if far:
        raise SystemExit(f"too far off: {', '.join(far)}")


if __name__ == "__main__":
    main()
