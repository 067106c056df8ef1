"""``OUT/study.json``: what is fixed before the first piece of a study is measured.

With this file and the finished cells the report can be made again, without the data, the models or any computation.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.compare.measurements import DataSummary, Machine, Measurements, Start
from redraft.compare.plan import Plan
from redraft.compare.record import load_typed, to_plain
from redraft.compare.study import Study
from redraft.errors import UserError
from redraft.evaluation.items import Item
from redraft.files import keep_aside, write_atomically
from redraft.registry import find, names
from redraft.tasks import Choice, FittedTask, Task
from redraft.tasks.mixture import Mixture

FILE = "study.json"
# Settings in which two studies of the same rows may differ without being different ones.
_SAME_STUDY = frozenset({"data", "data_root", "out", "device", "minutes", "price_per_hour"})


@dataclass(frozen=True)
class TaskName:
    """A task by its name, so that it can be built again; a mixture by the names of its parts."""

    name: str
    reason: str
    parts: dict[str, str]  # task of the mixture -> kind of task
    options: dict[str, dict[str, Any]] = dataclasses.field(
        default_factory=dict
    )  # of the metrics of each part, or of ""

    @classmethod
    def of(cls, choice: Choice) -> TaskName:
        """The name of a task that was chosen."""
        task = choice.task
        whole = dict(task.parts) if isinstance(task, Mixture) else {"": task}
        options = {name: dict(part.options) for name, part in whole.items() if isinstance(part, FittedTask)}
        parts = {name: _kind(part) for name, part in whole.items() if name}
        return cls(choice.name, choice.reason, parts, options)

    def choice(self) -> Choice:
        """The task itself."""
        if self.parts:
            parts = tuple((name, self._task(name, kind)) for name, kind in self.parts.items())
            return Choice(self.name, Mixture(parts), self.reason)
        return Choice(self.name, self._task("", self.name), self.reason)

    def _task(self, part: str, kind: str) -> Task:
        return FittedTask(find("tasks", kind)(), self.options.get(part, {}))


def _settings(study: Study) -> dict[str, Any]:
    """What makes a study another one."""
    return {key: value for key, value in dataclasses.asdict(study).items() if key not in _SAME_STUDY}


def _kind(task: Task) -> str:
    task = task.task if isinstance(task, FittedTask) else task
    return next(name for name in names("tasks") if find("tasks", name) is type(task))


@dataclass(frozen=True)
class ModelKey:
    """Everything that one trained model depends on: the key of its cells."""

    family: str
    seed: int
    dropout: float | None  # the rate that is tried; None: the plan's
    key: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A study that is set up and planned."""

    schema_version: int
    command: str
    study: Study
    plan: Plan
    task: TaskName
    data: DataSummary
    machine: Machine
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    models: tuple[ModelKey, ...]
    likelihood_rows: str  # hash of the test rows that are scored
    starts: tuple[Start, ...] = ()  # checkpoints, one for each family; empty: trained from scratch
    failures: dict[str, str] = dataclasses.field(default_factory=dict)  # piece -> why it could not be measured

    @classmethod
    def load(cls, folder: Path) -> Prepared:
        """Read it from the folder of a study.

        Raises:
            UserError: there is no study, or one of another version.
        """
        path = folder / FILE
        if not path.is_file():
            raise UserError(
                f"'{folder}' is not the folder of a study: it has no {FILE}.",
                "Name the folder that redraft compare got with --out.",
            )
        loaded: Prepared = load_typed(cls, path)
        return loaded

    def save(self, folder: Path) -> None:
        """Write it into the folder of a study."""
        write_atomically(folder / FILE, json.dumps(to_plain(self), ensure_ascii=False, allow_nan=False) + "\n")

    def keep_older(self, folder: Path, reports: Sequence[str]) -> Path | None:
        """Where the report of another study in this folder was moved to; None if there is none.

        It is another one if its rows or settings differ, apart from paths, device, time limit and prices. Pieces
        that both have in common stay where they are, and are not measured again.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            older = Prepared.load(folder)
            same = older.data.hash == self.data.hash and _settings(older.study) == _settings(self.study)
        except UserError:  # damaged, or of another version
            same = False
        return None if same else keep_aside(folder, (FILE, *reports))

    def key(self, family: str, seed: int, dropout: float | None = None) -> dict[str, Any]:
        """The key of one model."""
        return next(m.key for m in self.models if (m.family, m.seed, m.dropout) == (family, seed, dropout))

    def measurements(self) -> Measurements:
        """The place for what is measured."""
        return Measurements(
            study=self.study,
            plan=self.plan,
            choice=self.task.choice(),
            data=self.data,
            validation=self.validation,
            test=self.test,
            machine=self.machine,
            command=self.command,
            starts=self.starts,
        )

    def length(self, family: str) -> int:
        """The longest row in a family's tokens."""
        return next((start.length for start in self.starts if start.family == family), self.plan.length)

    def new_tokens(self, family: str) -> int:
        """The limit of an output in a family's tokens."""
        return next((start.new_tokens for start in self.starts if start.family == family), self.plan.new_tokens)
