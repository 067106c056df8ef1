"""Tasks side by side in the processes of Ray, on the cores of this machine or on a cluster.

A task holds as many cores as it has threads, and its GPU and memory. A task that measures times holds *all* cores of
its node: every other task needs at least one core, so Ray runs none of them there at the same time. All such tasks run
on one node, the one of the calling process where it has what they need, so that their times can be compared.

If a worker dies, its task is done again, as Ray does it; a training run goes on from its last checkpoint.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.executors.base import Executor, Log, Outcome, Resources, State, Task, attempt
from redraft.interop.ray_session import Node, RaySession, connect, ray_package

RETRIES = 3  # of a task whose worker died
_WAIT = 0.5  # seconds between two looks at the lines of the workers


@dataclass
class Ray(Executor):
    """Runs tasks as tasks of Ray.

    Args:
        address: see ``interop.ray_session.connect``. cpus: cores of a Ray that is started here; None: all.
    """

    separate = True

    address: str | None = None
    cpus: int | None = None
    _session: RaySession | None = None
    _lines: Any = None  # an actor that holds the lines of the workers
    _sent: dict[int, Any] = field(default_factory=dict)  # states in the object store of Ray, by id

    @contextmanager
    def opened(self, out: Path, inputs: Sequence[Path] = ()) -> Iterator[None]:
        """Start or join Ray, and check that all nodes see the same files.

        Raises:
            UserError: Ray can't be used, or a path is not on a file system that all nodes share.
        """
        with connect(self.address, self.cpus) as session:
            session.check(out, inputs=inputs)
            self._session = session
            self._lines = ray_package().remote(num_cpus=0, max_restarts=-1)(_Lines).remote()
            try:
                yield
            finally:
                self._session = self._lines = None
                self._sent.clear()

    def run(self, tasks: Sequence[Task], state: State, log: Log) -> Iterator[Outcome]:
        """Hand all tasks to Ray, and yield outcomes as they come.

        Raises:
            UserError: no node has the GPU that a task needs.
        """
        if not tasks:
            return
        ray = ray_package()
        assert self._session is not None, "run is called within opened()"
        place = _Placement(self._session.nodes, ray.get_runtime_context().get_node_id())
        if id(state) not in self._sent:
            self._sent = {id(state): ray.put(state)}
        shared = [self._sent[id(state)]]  # in a list, so that a process fetches it once and not for every task
        perform = ray.remote(max_retries=RETRIES, retry_exceptions=False)(_perform)
        sent: dict[str, Any] = {}
        for task in tasks:
            needed = [sent[name] for name in task.needs if name in sent]
            options = {"name": task.label, **place.options(task)}
            sent[task.id] = perform.options(**options).remote(shared, self._lines, task, place.threads(task), *needed)
        names = {reference: name for name, reference in sent.items()}
        failed: set[str] = set()
        try:
            while names:
                done, _ = ray.wait(list(names), num_returns=1, timeout=_WAIT)
                _show(ray, self._lines, log)
                for reference in done:
                    name = names.pop(reference)
                    task = next(task for task in tasks if task.id == name)
                    found = _outcome(ray, reference, task, failed)
                    if found.value is None:
                        failed.add(name)
                    yield found
            _show(ray, self._lines, log)
        finally:
            for reference in names:  # the run was given up
                ray.cancel(reference, force=True)


@dataclass(frozen=True)
class _Placement:
    """Where tasks may run, in the options of Ray."""

    nodes: Sequence[Node]
    here: str  # id of the node of this process

    def options(self, task: Task) -> dict[str, Any]:
        """The options of one task."""
        needs, able = task.resources, self._able(task.resources)
        if not task.alone:
            # More memory than any node has would be waited for in vain: the plan of the task itself says what fits.
            memory = min(needs.memory, max(node.memory for node in able))
            return {"num_cpus": self.threads(task), "num_gpus": needs.gpus, **({"memory": memory} if memory else {})}
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = next((node for node in able if node.id == self.here), able[0])
        where = NodeAffinitySchedulingStrategy(node.id, soft=False)
        return {"num_cpus": node.cpus, "num_gpus": needs.gpus, "scheduling_strategy": where}

    def threads(self, task: Task) -> int:
        """Threads of a task. Beside a GPU it gets the share of the cores that belongs to that GPU."""
        able = self._able(task.resources)
        if task.resources.gpus:
            most = max(task.resources.gpus * node.cpus // node.gpus for node in able)
        else:
            most = max(node.cpus for node in able)
        return max(1, min(task.resources.threads, most))

    def _able(self, needs: Resources) -> list[Node]:
        able = [node for node in self.nodes if node.gpus >= needs.gpus]
        if not able:
            raise UserError("No node of the Ray cluster has a GPU.", "Use --device cpu, or start Ray with --num-gpus.")
        return able


def _outcome(ray: Any, reference: Any, task: Task, failed: set[str]) -> Outcome:
    """The outcome of a finished task. A bug in it is raised here."""
    try:
        found: Outcome = ray.get(reference)
        return found
    except ray.exceptions.RayTaskError as error:
        if failed.intersection(task.needs):  # what it needs was lost
            return Outcome(task.id)
        raise error.as_instanceof_cause() from None
    except ray.exceptions.RayError as error:  # WorkerCrashedError, OutOfMemoryError, NodeDiedError ...
        if failed.intersection(task.needs):
            return Outcome(task.id)
        why = str(error).strip().splitlines() or [type(error).__name__]
        return Outcome(task.id, why=f"its worker was lost {RETRIES + 1} times: {why[0].rstrip('.')}.")


def _show(ray: Any, lines: Any, log: Log) -> None:
    """Log what workers wrote."""
    with suppress(ray.exceptions.RayError):
        for line in ray.get(lines.take.remote()):
            log(line)


# ---- in the processes of Ray


class _Lines:
    """The lines that workers write, until they are shown."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        found, self._lines = self._lines, []
        return found


def _perform(shared: Sequence[Any], lines: Any, task: Task, threads: int, *needed: Outcome) -> Outcome:
    """Do a task in a worker, if what it needs succeeded."""
    if any(outcome.value is None for outcome in needed):
        return Outcome(task.id)
    import torch

    torch.set_num_threads(threads)
    state = _fetch(shared[0])
    state.log = partial(_send, lines)
    state.log(f"{task.label}: begins on {socket.gethostname()}, process {os.getpid()}")
    return attempt(task, state)


def _send(lines: Any, line: str) -> None:
    lines.add.remote(line)


@lru_cache(maxsize=1)
def _fetch(reference: Any) -> Any:
    """The state of a run, which a worker keeps with all that it has loaded."""
    return ray_package().get(reference)
