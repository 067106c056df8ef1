"""Tasks: one file = one kind of job, with its metrics. The first metric is the one a verdict is about."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from redraft.errors import UserError
from redraft.metrics import Metric
from redraft.metrics.answer import final_answer
from redraft.registry import find, names

T = TypeVar("T")
_WORD = re.compile(r"[^\W_]+")  # letters and digits: ``"Teko",`` in JSON is Teko


class Pair(Protocol):
    """What a task looks at in an example (``data.examples.Example`` has it)."""

    @property
    def prompt(self) -> str | None: ...
    @property
    def target(self) -> str: ...
    @property
    def task(self) -> str: ...  # which of a mixture; empty where there is one only


@dataclass(frozen=True)
class Shape:
    """What the data look like: enough to guess the job."""

    rows: int
    paired: bool
    prompt_words: float  # mean
    target_words: float  # mean
    most_target_words: int
    distinct_targets: int
    shared: float  # share of a target's different words, by letters and digits alone, that are in its prompt too, mean
    concluded: float = 0.0  # share of targets that end in a number which is not all they are: see ``metrics.answer``


class Task(Protocol):
    """A kind of job."""

    summary: str
    margin: float  # default margin of the equivalence test, in units of the first metric

    def metrics(self) -> list[Metric]: ...
    def claim(self, shape: Shape) -> tuple[float, str]:
        """How sure the task is that such data are its own, 0 to 1, and why in a few words."""
        ...


@dataclass(frozen=True)
class Choice:
    """A task, and why it was chosen."""

    name: str
    task: Task
    reason: str


def vote(texts: Sequence[T], said: Callable[[T], str] = str) -> T:
    """Of several solutions of one problem, the first of those with the most frequent final answer (self-consistency,
    Wang et al. 2022, arXiv:2203.11171). Of answers that are equally frequent, the one given first wins; no answer is
    none.

    Raises:
        ValueError: no texts.
    """
    answers = [final_answer(said(text)) for text in texts]
    counts = Counter(answer for answer in answers if answer)
    return texts[answers.index(counts.most_common(1)[0][0])] if counts else texts[0]


def measure(examples: Sequence[Pair]) -> Shape:
    """The shape of a set of examples.

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError("no examples to look at")
    words = [(len((e.prompt or "").split()), len(e.target.split())) for e in examples]
    shared = []
    for e in examples:
        ours, given = (set(_WORD.findall(text.lower())) for text in (e.target, e.prompt or ""))
        shared.append(len(ours & given) / len(ours) if ours else 0.0)
    return Shape(
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


def choose(examples: Sequence[Pair], name: str | None = None) -> Choice:
    """The task for these examples: the one named, else the one surest of them; of a mixture one for each of its tasks.

    A task of a mixture called ``translation`` or ``translation-de``, for example, is one of translation.

    Raises:
        UserError: there is no task of that name, or one is named for several.
    """
    together: dict[str, list[Pair]] = {}
    for example in examples:
        together.setdefault(example.task, []).append(example)
    if len(together) > 1:
        if name is not None:
            raise UserError(f"these data are of {len(together)} tasks, not of '{name}' alone.", "Leave --task out.")
        parts = {task: choose(rows) for task, rows in together.items()}
        reason = ", ".join(f"{task} as {part.name}" for task, part in parts.items())
        several = find("tasks", "mixture")(tuple((task, part.task) for task, part in parts.items()))
        return Choice("mixture", several, f"rows of {len(parts)} tasks: {reason}")
    if name is not None:
        return Choice(name, find("tasks", name)(), "named by the user")
    if together and (known := _kind(next(iter(together)))):
        return Choice(known, find("tasks", known)(), "its name in the mixture")
    shape = measure(examples)
    tasks = [(task, find("tasks", task)()) for task in names("tasks")]
    claims = [(task.claim(shape), known, task) for known, task in tasks]
    (_, reason), known, task = max(claims, key=lambda c: c[0][0])
    return Choice(known, task, reason)


def _kind(task: str) -> str | None:
    """The file of this folder that a task of a mixture is named after."""
    known = [name for name in names("tasks") if name != "mixture"]
    return next((name for name in known if task == name or task.startswith(f"{name}-")), None)
