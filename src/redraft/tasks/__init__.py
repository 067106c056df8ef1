"""Tasks: one file = one task, with its metrics. Verdicts are about the first metric."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from redraft.errors import UserError
from redraft.metrics import Metric
from redraft.metrics.final_answer import final_answer
from redraft.registry import find, names

_WORD = re.compile(r"[^\W_]+")  # letters and digits: ``"Teko",`` in JSON is Teko


class Pair(Protocol):
    """The fields of an example that tasks look at (``data.examples.Example`` has them)."""

    @property
    def prompt(self) -> str | None: ...
    @property
    def target(self) -> str: ...
    @property
    def task(self) -> str: ...  # its task in a mixture; empty for other data


@dataclass(frozen=True)
class DataProfile:
    """Statistics of the data from which the task is inferred."""

    rows: int
    paired: bool
    prompt_words: float  # mean
    target_words: float  # mean
    most_target_words: int
    distinct_targets: int
    shared: float  # mean share of a target's different words (letters and digits only) that are in its prompt too
    concluded: float = (
        0.0  # share of targets that end in a number which is not all they are: see ``metrics.final_answer``
    )


class Task(Protocol):
    """A task: its metrics, and the data it is meant for."""

    summary: str
    margin: float  # default margin of the equivalence test, in units of the first metric

    def metrics(self) -> list[Metric]:
        """Its metrics; the first one is the primary metric."""
        ...

    def match(self, data: DataProfile) -> tuple[float, str]:
        """How well such data match the task, from 0 to 1, and the reason in a few words."""
        ...


@dataclass(frozen=True)
class Choice:
    """A task and the reason why it was chosen."""

    name: str
    task: Task
    reason: str


def profile_data(examples: Sequence[Pair]) -> DataProfile:
    """Statistics of a set of examples.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("no examples to look at")
    words = [(len((e.prompt or "").split()), len(e.target.split())) for e in examples]
    shared = []
    for e in examples:
        ours, given = (set(_WORD.findall(text.lower())) for text in (e.target, e.prompt or ""))
        shared.append(len(ours & given) / len(ours) if ours else 0.0)
    return DataProfile(
        rows=len(examples),
        paired=any(e.prompt is not None for e in examples),
        prompt_words=statistics.fmean(p for p, _ in words),
        target_words=statistics.fmean(t for _, t in words),
        most_target_words=max(t for _, t in words),
        distinct_targets=len({e.target.strip() for e in examples}),
        shared=statistics.fmean(shared),
        concluded=statistics.fmean(_concludes(e.target) for e in examples),
    )


def _concludes(target: str) -> bool:
    number = final_answer(target).removeprefix("-").replace(".", "", 1).isdigit()
    return number and ("####" in target or len(target.strip().splitlines()) > 1)


def infer_task(examples: Sequence[Pair], name: str | None = None) -> Choice:
    """The task of these examples: the named one, or else the one that matches best; for a mixture, one for each part.

    The part of a mixture called ``translation`` or ``translation-de``, for example, is a translation task.

    Raises:
        UserError: there is no task of that name, or a task is named for a mixture.
    """
    together: dict[str, list[Pair]] = {}
    for example in examples:
        together.setdefault(example.task, []).append(example)
    if len(together) > 1:
        if name is not None:
            raise UserError(f"The data hold {len(together)} tasks, not '{name}' alone.", "Leave out --task.")
        parts = {task: infer_task(rows) for task, rows in together.items()}
        reason = ", ".join(f"{task} as {part.name}" for task, part in parts.items())
        several = find("tasks", "mixture")(tuple((task, part.task) for task, part in parts.items()))
        return Choice("mixture", several, f"rows of {len(parts)} tasks: {reason}")
    if name is not None:
        return Choice(name, find("tasks", name)(), "named by the user")
    if together and (known := _kind(next(iter(together)))):
        return Choice(known, find("tasks", known)(), "its name in the mixture")
    data = profile_data(examples)
    tasks = [(task, find("tasks", task)()) for task in names("tasks")]
    matches = [(task.match(data), known, task) for known, task in tasks]
    (_, reason), known, task = max(matches, key=lambda one: one[0][0])
    return Choice(known, task, reason)


def _kind(task: str) -> str | None:
    """The task that a part of a mixture is named after."""
    known = [name for name in names("tasks") if name != "mixture"]
    return next((name for name in known if task == name or task.startswith(f"{name}-")), None)
