"""Runs several trainings, one after the other: in this process, or in each of several that torchrun could have started.

``python -m tests.distributed.worker JOBS.json`` is one of them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import torch

from redraft.errors import UserError
from redraft.objectives.shared import vocabulary
from redraft.train import setup
from redraft.train.logging import Event, Watcher
from redraft.train.loop import train
from redraft.train.recipe import Recipe

ROOT = Path(__file__).parents[2]
TOY = ROOT / "recipes" / "toy"


@dataclass(frozen=True)
class Job:
    """A training run."""

    recipe: str  # name under recipes/toy
    out: str
    overrides: list[str]
    stop_at: int = 0  # the update after which Ctrl-C is pressed; 0: never
    parts: bool = False  # logits of few targets at a time, as with a large vocabulary

    def run(self) -> str:
        """Train. Returns how it ended: ``done``, ``stopped``, or the error of a user."""

        def watch(event: Event) -> None:
            if event.kind == "update" and event.step == self.stop_at:
                signal.raise_signal(signal.SIGINT)

        sizes = (1 << 11, 1 << 10) if self.parts else (vocabulary.WHOLE, vocabulary.PART)
        try:
            with (
                patch.multiple(vocabulary, WHOLE=sizes[0], PART=sizes[1]),
                patch.object(setup, "VALIDATION_TOKENS", 1),  # a batch for each row, of which ranks have unequal shares
            ):
                self._train(watch)
        except KeyboardInterrupt:
            return "stopped"
        except UserError as error:
            return str(error)
        return "done"

    def _train(self, watch: Watcher) -> None:
        train(Recipe.load(TOY / f"{self.recipe}.toml", self.overrides), self.out, device="cpu", on_event=watch)


class Group:
    """Processes that run the same jobs together."""

    def __init__(self, jobs: Sequence[Job], folder: Path, processes: int = 2) -> None:
        """
        Args:
            folder: for the list of jobs, and for how they ended.
        """
        self.folder, self.jobs = folder, jobs
        folder.mkdir(parents=True)
        (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        common |= {"LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        command = [sys.executable, "-m", "tests.distributed.worker", str(folder)]
        self._processes = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=(folder / f"{rank}.err").open("w"),
            )
            for rank in range(processes)
        ]

    def ended(self, seconds: float = 900.0) -> list[list[str]]:
        """How each job ended, in each process. Waits for them."""
        try:
            for process in self._processes:
                process.wait(seconds)
        finally:
            for process in self._processes:
                process.kill()
        for rank, process in enumerate(self._processes):
            assert process.returncode == 0, (self.folder / f"{rank}.err").read_text()
        ends = [json.loads((self.folder / f"{rank}.json").read_text()) for rank in range(len(self._processes))]
        return [list(each) for each in zip(*ends, strict=True)]


def main(folder: Path) -> None:
    """Run the jobs of a folder in this process of a group."""
    import faulthandler

    import torch.distributed as dist

    from redraft.train import throughput

    faulthandler.dump_traceback_later(900, exit=True)  # where it hangs, if it does
    torch.set_num_threads(1)
    throughput.runtime.peak_matmul = lambda *_, **__: 1e12  # no time for measurements of the machine
    dist.init_process_group("gloo")  # once for all jobs
    jobs = [Job(**values) for values in json.loads((folder / "jobs.json").read_text())]
    ends = [job.run() for job in jobs]
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(ends))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
