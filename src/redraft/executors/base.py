"""Tasks, what they need, and the interface of everything that runs them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from redraft.errors import UserError
from redraft.registry import Registered

Log = Callable[[str], None]
NO_TIME = "there was no time left"


@dataclass
class State:
    """What all tasks of a run share. An executor with several processes gives each a copy, with its own ``log``."""

    log: Log


@dataclass(frozen=True)
class Resources:
    """What a task occupies while it runs."""

    threads: int = 1  # of torch, each on a core of its own
    gpus: int = 0
    memory: int = 0  # bytes; 0: not known


@dataclass(frozen=True)
class Task:
    """A piece of work that can be done in any process: it has no other input than its state and what it needs.

    ``work`` is a function of a module with its arguments (``functools.partial``), so that it can be sent.
    """

    id: str
    label: str
    work: Callable[[Any], dict[str, Any]]  # of the state
    needs: tuple[str, ...] = ()  # ids of tasks that must have succeeded before
    resources: Resources = Resources()
    alone: bool = False  # no other task may use the machine meanwhile, because times are measured
    until: float = float("inf")  # time.time() after which it is not begun any more


@dataclass(frozen=True)
class Outcome:
    """How a task ended."""

    id: str
    value: dict[str, Any] | None = None  # plain values; None: it failed, or was not begun
    why: str = ""  # it has no value; empty: because a task that it needs has none
    seconds: float = 0.0


class Executor(Registered, ABC):
    """Runs tasks. What they compute does not depend on the executor, only where and when they run does."""

    separate: ClassVar[bool] = False  # tasks run in other processes, which are told how much memory each needs

    @abstractmethod
    def opened(self, out: Path, inputs: Sequence[Path] = ()) -> AbstractContextManager[None]:
        """A block in which tasks can be run.

        Args:
            out: the folder that the tasks write to. inputs: files and folders that they read. All exist.
        Raises:
            UserError: tasks can't be run, or wouldn't see a folder.
        """

    @abstractmethod
    def run(self, tasks: Sequence[Task], state: State, log: Log) -> Iterator[Outcome]:
        """Run tasks, and yield each outcome when it is known. A task comes after those that it needs.

        A ``UserError`` of a task is its outcome. Other exceptions are bugs and end the run.

        Raises:
            UserError: no machine has what a task needs.
        """


def attempt(task: Task, state: State) -> Outcome:
    """Do the work of a task in this process, unless it is too late."""
    if time.time() > task.until:
        return Outcome(task.id, why=NO_TIME)
    begin = time.monotonic()
    try:
        value = task.work(state)
    except UserError as error:
        return Outcome(task.id, why=str(error))
    return Outcome(task.id, value, seconds=time.monotonic() - begin)
