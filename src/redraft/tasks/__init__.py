"""Tasks: one file = one task, with its metrics. Verdicts are about the first metric."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from redraft.errors import UserError, suggest
from redraft.metrics import Metric, nfc, with_options
from redraft.metrics.final_answer import final_answer
from redraft.metrics.shared import scripts
from redraft.registry import find, names

_LANGUAGE_ROWS = 2000  # rows from whose targets the language is seen


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
    """Statistics of the data from which the task is inferred. Words are counted as by ``metrics.shared.scripts``."""

    rows: int
    paired: bool
    prompt_words: float  # mean
    target_words: float  # mean
    most_target_words: float
    distinct_targets: int
    shared: float  # mean share of a target's different words (letters and digits only) that are in its prompt too
    concluded: float = (
        0.0  # share of targets that end in a number which is not all they are: see ``metrics.final_answer``
    )


class Task(Protocol):
    """A task: its metrics, and the data it is meant for."""

    @property
    def summary(self) -> str:
        """What it is, and how it is scored."""
        ...

    @property
    def margin(self) -> float:
        """Default margin of the equivalence test, in units of the first metric."""
        ...

    def metrics(self) -> list[Metric]:
        """Its metrics; the first one is the primary metric."""
        ...

    def match(self, data: DataProfile) -> tuple[float, str]:
        """How well such data match the task, from 0 to 1, and the reason in a few words."""
        ...


@dataclass(frozen=True)
class FittedTask:
    """A task whose metrics have options: those that the user gave, and those that the language of the data asks for."""

    task: Task
    options: Mapping[str, Any]  # as in ``metrics.with_options``

    @property
    def summary(self) -> str:
        """That of the task."""
        return self.task.summary

    @property
    def margin(self) -> float:
        """That of the task."""
        return self.task.margin

    def metrics(self) -> list[Metric]:
        """The metrics of the task, with the options."""
        return with_options(self.task.metrics(), self.options)

    def match(self, data: DataProfile) -> tuple[float, str]:
        """As the task."""
        return self.task.match(data)


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
    words = [(scripts.count(e.prompt or ""), scripts.count(e.target)) for e in examples]
    shared = []
    for e in examples:
        ours, given = (set(scripts.words(text.lower())) for text in (e.target, e.prompt or ""))
        shared.append(len(ours & given) / len(ours) if ours else 0.0)
    return DataProfile(
        rows=len(examples),
        paired=any(e.prompt is not None for e in examples),
        prompt_words=statistics.fmean(p for p, _ in words),
        target_words=statistics.fmean(t for _, t in words),
        most_target_words=max(t for _, t in words),
        distinct_targets=len({nfc(e.target.strip()) for e in examples}),
        shared=statistics.fmean(shared),
        concluded=statistics.fmean(_concludes(e.target) for e in examples),
    )


def _concludes(target: str) -> bool:
    number = final_answer(target).removeprefix("-").replace(".", "", 1).isdigit()
    return number and ("####" in target or len(target.strip().splitlines()) > 1)


def infer_task(
    examples: Sequence[Pair], name: str | None = None, metric_options: Mapping[str, Any] | None = None
) -> Choice:
    """The task of these examples: the named one, or else the one that matches best; for a mixture, one for each part.

    The part of a mixture called ``translation`` or ``translation-de``, for example, is a translation task. Its metrics
    are those for the language of the targets.

    Args:
        metric_options: fields of metrics, ``{"bleu.tokenize": "zh"}``; in a mixture, of each part that has the metric.
    Raises:
        UserError: there is no task of that name, a task is named for a mixture, a metric option is wrong, or a metric
            needs something that is not installed.
    """
    if len({example.task for example in examples}) > 1:
        parts = infer_parts(examples, name, metric_options)
        reason = ", ".join(f"{task} as {part.name}" for task, part in parts.items())
        several = find("tasks", "mixture")(tuple((task, part.task) for task, part in parts.items()))
        return Choice("mixture", several, f"rows of {len(parts)} tasks: {reason}")
    return fitted(_infer(examples, name), examples, metric_options or {})


def infer_parts(
    examples: Sequence[Pair], name: str | None = None, metric_options: Mapping[str, Any] | None = None
) -> dict[str, Choice]:
    """The task of each part of a mixture; for other data one task, without a name. Arguments as ``infer_task``.

    Raises:
        UserError: as ``infer_task``.
    """
    given = metric_options or {}
    together: dict[str, list[Pair]] = {}
    for example in examples:
        together.setdefault(example.task, []).append(example)
    if len(together) < 2:
        return {"": infer_task(examples, name, given)}
    if name is not None:
        raise UserError(f"The data hold {len(together)} tasks, not '{name}' alone.", "Leave out --task.")
    parts = {task: fitted(_infer(rows, None), rows, given, strict=False) for task, rows in together.items()}
    known = {metric.name for part in parts.values() for metric in part.task.metrics()}
    for key in given:
        if key.partition(".")[0] not in known:
            what = f"Metric option '{key}': no task of the mixture has a metric of this name."
            raise UserError(what, suggest(key.partition(".")[0], known))
    return parts


def fitted(choice: Choice, examples: Sequence[Pair], given: Mapping[str, Any], strict: bool = True) -> Choice:
    """The choice with the options of its metrics: the given ones, and those for the language of the targets.

    Args:
        strict: raise an error for an option of a metric that the task doesn't have.
    """
    plain = choice.task.metrics()
    known = {metric.name for metric in plain}
    own = {key: value for key, value in given.items() if strict or key.partition(".")[0] in known}
    options = dict(own)
    targets = [example.target for example in examples[:_LANGUAGE_ROWS]]
    for metric in with_options(plain, own):
        fitted = metric.fitted(targets)
        options |= {f"{metric.name}.{key}": value for key, value in vars(fitted).items() if value != vars(metric)[key]}
        fitted.ready()
    return Choice(choice.name, FittedTask(choice.task, options), choice.reason)


def _infer(examples: Sequence[Pair], name: str | None) -> Choice:
    if name is not None:
        if name.partition(":")[0] in names("tasks.benchmarks"):
            what = f"'{name}' is a benchmark: it has data and prompts of its own."
            raise UserError(what, f"Run: redraft evaluate --task {name}. Here, name a kind of task, such as qa.")
        return Choice(name, find("tasks", name)(), "named by the user")
    together = {example.task for example in examples}
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
