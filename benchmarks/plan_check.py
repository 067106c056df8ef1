"""Plans against measurements: memory of training within 10 %, time of an update within 20 %, alone and on two ranks.

    python benchmarks/plan_check.py [--sizes 3m,7m,25m] [--lora 135m,600m] [--ranks 2] [--sharded 7m] [--updates 5]
        [--rounds 1]

Each case is a command as people run it, in processes of its own: ``redraft train`` of a new model with the training of
its tokenizer, ``redraft finetune`` of adapters of rank 8 on a checkpoint with random weights (``lora_memory.SHAPES``;
600m is the shape of Qwen3-0.6B), and ``redraft train --nproc 2`` with DDP and with FSDP2. The measured peak is the
largest resident memory of a process, Python included; the measured time of an update is the median of those that the
run reports, without the first. The plan of the memory is that of the same command with ``--dry-run``; that of the time
is ``redraft plan``, which times a few updates: nothing else should run. All cases take about eight minutes on two idle
cores. On a machine whose speed changes, ``--rounds 3`` makes plan and run in turns and compares their medians.

The constants of the plan (``planning.training``, ``planning.machine``) were chosen on runs of 1M parameters, which are
not among the cases. Prints a line for each case and each limit, and one JSON object last; the exit code is 1 if a plan
is further off than its limit. ``--memory`` leaves out the times, which mean nothing on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lora_memory import SHAPES, checkpoint

LIMITS = {"peak": 0.10, "seconds": 0.20}  # largest errors
UNITS = {"peak": (1e9, "GB"), "seconds": (1.0, "s")}
LENGTH, VOCABULARY, RANK = 256, 8192, 8
BATCH, LORA_BATCH = 4096, 1024  # tokens of an update on each rank


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

    @property
    def batch(self) -> int:
        """Tokens of a batch."""
        return LORA_BATCH if self.kind == "lora" else BATCH

    def words(self, folder: Path, updates: int, threads: int) -> list[object]:
        """The command, without ``--out``. Several ranks save a checkpoint half-way, which others do in place."""
        tokens = updates * self.batch * self.ranks
        changes = [f"train.tokens={tokens}", f"train.batch_tokens={self.batch}", "train.log_every=1"]
        changes += [f"train.threads={max(1, threads // self.ranks)}", f"train.accumulate={self.ranks}"]
        changes += ["train.validation_rows=16", "train.validate_every=0", f"data.length={LENGTH}", "train.lr=1e-4"]
        if self.kind == "lora":
            words: list[object] = ["finetune", "--from", folder / self.size, "--lora-rank", RANK]
        else:
            words = ["train", "--family", "masked", "--preset", self.size]
            changes.append(f"tokenizer.vocab_size={VOCABULARY}")
        if self.ranks > 1:
            words += ["--nproc", self.ranks]
            changes += [f"train.parallel={self.parallel}", f"train.save_every_tokens={tokens // 2}"]
        return [*words, "--data", folder / "text.txt", *(part for each in changes for part in ("--set", each))]

    def question(self, folder: Path) -> list[object]:
        """What ``redraft plan`` is asked about the time of an update."""
        words: list[object] = ["--length", LENGTH, "--batch-tokens", self.batch, "--device", "cpu"]
        words += ["--gpus", self.ranks, *(["--parallel", self.parallel] if self.parallel else [])]
        if self.kind == "lora":
            return [folder / self.size, *words, "--lora-rank", RANK]
        return ["--preset", self.size, "--vocab-size", VOCABULARY, "--family", "masked", *words]


def redraft(*words: object, threads: int) -> tuple[str, int]:
    """Run a command; what it printed, and the largest resident bytes of its processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "redraft", *map(str, words)]
    with tempfile.TemporaryFile("w+") as kept:  # so that no pipe can fill up
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=kept, text=True, env=environment)
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            kept.seek(0)
            raise SystemExit(f"failed: {' '.join(command)}\n{kept.read()}")
    return printed, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def text(folder: Path) -> None:
    """Training text: documents of about 800 tokens, of which some are for validation."""
    lines = [f"{n} is a number, its square is {n * n}, and its cube is {n**3}." for n in range(24_000)]
    documents = ("\n".join(lines[begin : begin + 24]) for begin in range(0, len(lines), 24))
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")


def measured(case: Case, folder: Path, updates: int, threads: int) -> dict[str, float]:
    """Peak memory, and seconds of an update."""
    out = folder / case.label.replace(" ", "-").replace(",", "")
    shutil.rmtree(out, ignore_errors=True)
    each = max(1, threads // case.ranks)
    _, peak = redraft(*case.words(folder, updates, threads), "--out", out, threads=each)
    events = [json.loads(line) for line in (out / "train" / "metrics.jsonl").read_text().splitlines()]
    speeds = [event["tokens_per_second"] for event in events if event.get("kind") == "update"][1:]
    return {"peak": peak, "seconds": case.ranks * case.batch / statistics.median(speeds)}


def planned(case: Case, folder: Path, threads: int, times: bool) -> dict[str, float]:
    """The peak and the seconds that are planned."""
    each = max(1, threads // case.ranks)
    dry, _ = redraft(*case.words(folder, 1, threads), "--out", folder / "plan", "--dry-run", "--json", threads=each)
    found: dict[str, float] = {"peak": json.loads(dry.strip().splitlines()[-1])["memory"]["total"]}
    if times:
        answer, _ = redraft("plan", *case.question(folder), "--json", threads=threads)
        found["seconds"] = json.loads(answer)["training"]["update"]["seconds"]
    return found


def middle(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each quantity."""
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def check(case: Case, folder: Path, updates: int, threads: int, times: bool, rounds: int) -> dict[str, Any]:
    """Plan and measure one case in turns, and print a line for each limit."""
    turns = [(planned(case, folder, threads, times), measured(case, folder, updates, threads)) for _ in range(rounds)]
    plan, real = (middle(kind) for kind in zip(*turns, strict=True))
    errors = {name: plan[name] / real[name] - 1 for name in plan}
    for name, error in errors.items():
        scale, unit = UNITS[name]
        verdict = "pass" if abs(error) <= LIMITS[name] else "FAIL"
        of = f"{plan[name] / scale:7.3f} of {real[name] / scale:7.3f} {unit:2}"
        print(f"{verdict}  {case.label:22} {name:8} {of} {error:+7.1%}, limit {LIMITS[name]:.0%}", flush=True)
    return {"case": case.label, "planned": plan, "measured": real, "errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="3m,7m,25m", help="presets that are trained from nothing")
    parser.add_argument("--lora", default="135m,600m", help="shapes under adapters")
    parser.add_argument("--sharded", default="7m", help="presets on several ranks")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="of plan and run in turns; their medians count")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--memory", action="store_true", help="no times")
    options = parser.parse_args()
    cases = [Case(size, "full") for size in filter(None, options.sizes.split(","))]
    cases += [Case(size, "lora") for size in filter(None, options.lora.split(","))]
    sharded = [size for size in options.sharded.split(",") if size and options.ranks > 1]
    cases += [Case(size, "full", options.ranks, kind) for kind in ("ddp", "fsdp") for size in sharded]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text(folder)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a command's peak begins at what this process takes
            for size in {case.size for case in cases if case.kind == "lora"}:
                pool.submit(checkpoint, folder / size, SHAPES[size]).result()
        rows = [
            check(case, folder, options.updates, options.threads, not options.memory, options.rounds) for case in cases
        ]
    print(json.dumps({"machine": platform.machine(), "cores": os.cpu_count(), "rows": rows}))
    far = [f"{r['case']} ({name})" for r in rows for name, error in r["errors"].items() if abs(error) > LIMITS[name]]
    if far:
        raise SystemExit(f"too far off: {', '.join(far)}")


if __name__ == "__main__":
    main()
