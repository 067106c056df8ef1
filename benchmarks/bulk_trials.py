"""``redraft generate --data`` over many rows: killed again and again, and on Ray with a worker killed.

    python -m benchmarks.bulk_trials [--rows 100000] [--kills 10] [--model MODEL] [--no-ray] [--work FOLDER]

One run without interruption is the reference. The same command is then killed with ``kill -9`` at random moments until
``--kills`` is reached, and finishes; and runs on Ray, where one worker is killed. Both must leave the same files as the
reference, byte for byte: every good row once and in order. One row in 997 is broken. Without --model, the model is a
tiny untrained one that writes two tokens, so that reading, writing and scheduling weigh as much as they ever can.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redraft.data.tokenizer import Tokenizer
from redraft.model import Model
from redraft.presets import preset

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "to", "house", "where", "bird", "sang", "all", "day"]
_BROKEN = 997


def write_data(path: Path, rows: int) -> None:
    """Prompts of one to eight words."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            words = [WORDS[(number * step + step) % len(WORDS)] for step in range(1, 2 + number * 7 % 8)]
            row = json.dumps({"id": number, "question": " ".join(words), "more": {"x": [number, None]}})
            file.write(f"{row if number % _BROKEN != 5 else '{broken'}\n")


def write_model(folder: Path) -> None:
    """A tiny untrained model of plain text."""
    tokenizer = Tokenizer.train([" ".join(WORDS)] * 3, 300)
    shape = preset("toy", tokenizer.vocab_size, dim=32, layers=1, heads=2, max_length=64)
    Model.fresh({"name": "masked"}, tokenizer, shape, paired=False, seed=1).save(folder)


class Command:
    """The command, in processes of its own."""

    def __init__(self, model: str, data: Path, more: list[str]) -> None:
        self.words = [sys.executable, "-m", "redraft", "generate", "--model", model, "--data", str(data), "--json"]
        self.words += ["--input", "question", *more]

    def start(self, out: Path, *more: str) -> subprocess.Popen[str]:
        """One process."""
        return subprocess.Popen(
            [*self.words, "--out", str(out), *more], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def finish(self, out: Path, *more: str) -> dict[str, Any]:
        """Its result."""
        with self.start(out, *more) as process:
            return self.result(process)

    @staticmethod
    def result(process: subprocess.Popen[str]) -> dict[str, Any]:
        """The result of a process."""
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"the command failed: {said}")
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found


def shards(out: Path) -> dict[str, bytes]:
    """The files of results."""
    return {file.name: file.read_bytes() for file in sorted((out / "rows").iterdir())}


def check(out: Path, rows: int) -> None:
    """Check that every good row is there once and in order, with its columns."""
    expected = (number for number in range(rows) if number % _BROKEN != 5)
    for content in shards(out).values():
        for line in content.splitlines():
            row, number = json.loads(line), next(expected)
            assert row["id"] == number and row["more"] == {"x": [number, None]} and "generated" in row, (row, number)
    assert next(expected, None) is None
    bad = (out / "bad-rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["line"] for line in bad] == list(range(6, rows + 1, _BROKEN))


def killed(command: Command, out: Path, kills: int, most: float) -> tuple[int, dict[str, Any]]:
    """Kill the command at random moments, then let it finish: the number of kills, and the result."""
    moments, done = random.Random(0), 0
    while done < kills:
        process = command.start(out)
        try:
            process.wait(moments.uniform(0.0, most))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            done += 1
        process.communicate()
        if (out / "result.json").exists():
            break
    return done, command.finish(out)


def on_ray(command: Command, out: Path, shard: int) -> tuple[int, dict[str, Any]]:
    """Run on Ray; when some shards are complete, kill one worker. The worker's process id, and the result."""
    process, victim, journal = command.start(out, "--ray", "local"), 0, out / "journal.jsonl"
    while process.poll() is None and not victim:
        time.sleep(0.2)
        if journal.exists() and journal.read_bytes().count(b"\n") >= shard:
            victim = next((pid for pid in below(process.pid) if b"RayWorker" in title(pid)), 0)
            if victim:
                os.kill(victim, signal.SIGKILL)
    return victim, command.result(process)


def title(pid: int) -> bytes:
    """The command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def below(pid: int) -> Iterator[int]:
    """The processes that a process started, directly or not."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    for child in parents:
        above = parents[child]
        while above > 1 and above != pid:
            above = parents.get(above, 0)
        if above == pid:
            yield child


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--shard-rows", type=int, default=1000)
    parser.add_argument("--model")
    parser.add_argument("--new-tokens", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = args.work or Path(place)
        folder.mkdir(exist_ok=True, parents=True)
        if args.model is None:
            write_model(folder / "model")
        write_data(folder / "data.jsonl", args.rows)
        settings = {"--max-new-tokens": args.new_tokens, "--steps": args.steps, "--shard-rows": args.shard_rows}
        more = [str(word) for pair in settings.items() for word in pair]
        command = Command(args.model or str(folder / "model"), folder / "data.jsonl", [*more, "--batch-size", "128"])
        begun = time.monotonic()
        whole = command.finish(folder / "plain")
        check(folder / "plain", args.rows)
        expected = shards(folder / "plain")
        print(
            f"plain: {whole['written']:,} rows, {whole['bad']} bad, {whole['rows_per_second']:.0f} rows/s", flush=True
        )
        wall = time.monotonic() - begun
        kills, result = killed(command, folder / "killed", args.kills, min(2 * wall / max(args.kills, 1) + 4, wall))
        assert shards(folder / "killed") == expected
        check(folder / "killed", args.rows)
        print(
            f"killed {kills} times: the same {len(expected)} files; last run began at row {result['resumed']:,}",
            flush=True,
        )
        if not args.no_ray:
            victim, result = on_ray(command, folder / "ray", max(1, len(expected) // 4))
            assert shards(folder / "ray") == expected
            check(folder / "ray", args.rows)
            what = f"worker {victim} killed" if victim else "no worker was killed: too few rows"
            print(f"Ray, {what}: the same files, {result['rows_per_second']:.0f} rows/s", flush=True)


if __name__ == "__main__":
    main()
