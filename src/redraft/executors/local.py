"""One task after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from redraft.executors.base import Executor, Log, Outcome, State, Task, attempt


class Local(Executor):
    """Runs tasks in the order in which they are given."""

    def opened(self, out: Path, inputs: Sequence[Path] = ()) -> AbstractContextManager[None]:
        """Nothing has to be prepared."""
        return nullcontext()

    def run(self, tasks: Sequence[Task], state: State, log: Log) -> Iterator[Outcome]:
        """Run tasks one after the other."""
        failed: set[str] = set()
        for task in tasks:
            found = Outcome(task.id) if failed.intersection(task.needs) else attempt(task, state)
            if found.value is None:
                failed.add(task.id)
            yield found
