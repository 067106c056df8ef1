"""Runs claims: computes the cells that are missing, and concludes. A finished cell is not computed again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from redraft import __version__
from redraft.compare.format import clock
from redraft.errors import UserError
from redraft.evaluation.machine import hardware
from redraft.executors.base import Executor, Log, Outcome, Task
from redraft.executors.local import Local
from redraft.files import folder_of_its_own
from redraft.study.analyses.base import Analysis
from redraft.study.cells.base import Bench, Cell, ModelCell, ordered, perform
from redraft.study.experiment import Experiment, Found, analysis_of
from redraft.study.finding import StudyRecord, opened
from redraft.study.store import Store

_ROUNDS = 20  # most times that an analysis may ask for more cells


@dataclass
class Running:
    """One claim under way."""

    experiment: Experiment
    analysis: Analysis
    found: Found = field(default_factory=Found)
    cells: list[Cell] = field(default_factory=list)

    @classmethod
    def of(cls, experiment: Experiment) -> Running:
        """A claim with its analysis.

        Raises:
            UserError: a wrong decision rule in the recipe.
        """
        return cls(experiment, analysis_of(experiment.claim))

    def ask(self) -> list[Cell]:
        """The cells that the analysis wants and that are not known."""
        self.cells = ordered([*self.cells, *self.analysis.cells(self.experiment, self.found)])
        known = self.found
        return [cell for cell in self.cells if not known.has(cell) and cell.id not in known.why]


@dataclass
class Progress:
    """How far the cells are, and how long the rest may take: each kind of cell by its own pace so far."""

    log: Log
    todo: list[Cell]
    claims: dict[str, str]  # names of the claims that use a cell, by its id
    done: int = 0
    _pace: dict[str, list[float]] = field(default_factory=dict)  # kind -> seconds, weight

    def note(self, cell: Cell, outcome: Outcome) -> None:
        """Say that a cell ended."""
        self.done += 1
        claim = self.claims[cell.id]
        if outcome.value is None:
            self.log(f"[{self.done}/{len(self.todo)}] {claim}: {cell.label}: {outcome.why or 'what it needs failed'}")
            return
        seconds, weight = self._pace.setdefault(cell.name, [0.0, 0.0])
        self._pace[cell.name] = [seconds + outcome.seconds, weight + cell.weight]
        left = self._left()
        about = f"; about {clock(left)} left" if left and left >= 1 else ""
        self.log(f"[{self.done}/{len(self.todo)}] {claim}: {cell.label}: {clock(outcome.seconds)}{about}")

    def _left(self) -> float | None:
        """Seconds; None as long as neither a kind that is left nor training has been timed."""
        rest, found = self.todo[self.done :], 0.0
        for cell in rest:
            took, of = self._pace.get(cell.name) or self._pace.get("train") or (0.0, 0.0)
            if not of:
                return None
            found += cell.weight * took / of
        return found


@dataclass
class Runner:
    """Claims, the folder they share, and where their cells are computed."""

    bench: Bench
    store: Store
    executor: Executor
    log: Log
    more: str  # what the command that repeats a claim has at its end

    def run(self, claims: Sequence[Running]) -> list[StudyRecord]:
        """Compute what is missing, and conclude each claim. With several processes the cells of all claims run side by
        side; otherwise the first claim is finished before the next begins.
        """
        groups = [claims] if self.executor.separate else [[one] for one in claims]
        records = []
        for group in groups:
            able = [one for one in group if not self._unable(one)]
            for _ in range(_ROUNDS):
                if not self._round(able):
                    break
            records += [self._conclude(one) for one in group]
        return records

    def _unable(self, one: Running) -> str:
        """What the claim needs and this machine has not."""
        needs = one.experiment.claim.needs
        return needs if needs and needs != self.bench.device.type else ""

    def _round(self, claims: Sequence[Running]) -> bool:
        """Compute the cells that the claims ask for now. False: there were none."""
        asked: dict[str, Cell] = {}
        users: dict[str, str] = {}
        for one in claims:
            try:
                for cell in one.ask():
                    asked[cell.id] = cell
                    users[cell.id] = ", ".join(filter(None, [users.get(cell.id), one.experiment.claim.id]))
            except UserError as error:  # a cell that the next ones depend on has failed: the conclusion says so
                self.log(f"{one.experiment.claim.id}: {error}")
        if not asked:
            return False
        absent = self._absent(list(asked.values()))
        for cell in absent:
            users.setdefault(cell.id, "")
        self._compute(absent, users, claims)
        for one in claims:
            for cell in one.cells:
                if not one.found.has(cell) and (value := self.store.get(cell)) is not None:
                    one.found.values[cell.id] = value
        return True

    def _absent(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those that must be computed: without a value, or without the files that others of them read."""
        absent: dict[str, Cell] = {}

        def add(cell: Cell, files: bool) -> None:
            if cell.id in absent or not (self.store.get(cell) is None or (files and not cell.intact(self.bench.out))):
                return
            for other in cell.needs:
                add(other, True)
            absent[cell.id] = cell

        for cell in ordered(cells):
            add(cell, False)
        return list(absent.values())

    def _compute(self, cells: Sequence[Cell], users: dict[str, str], claims: Sequence[Running]) -> None:
        by_id = {cell.id: cell for cell in cells}
        progress = Progress(self.log, list(cells), users)
        tasks = [
            Task(
                cell.id,
                cell.label,
                partial(perform, cell=cell),
                tuple(other.id for other in ordered(cell.needs) if other.id in by_id),
                cell.resources(self.bench),
                cell.alone,
            )
            for cell in cells
        ]
        for outcome in self.executor.run(tasks, self.bench, self.log):
            cell = by_id[outcome.id]
            if outcome.value is not None:
                self.store.put(cell, outcome.value["value"], outcome.value["record"])
            else:
                for one in claims:
                    one.found.why[cell.id] = outcome.why or "what it needs failed"
            progress.note(cell, outcome)

    def _conclude(self, one: Running) -> StudyRecord:
        claim = one.experiment.claim
        if missing := self._unable(one):
            where = {"cuda": "a CUDA device"}.get(missing, missing)
            finding = opened(f"This needs {where}, and this machine has none.")
        else:
            try:
                finding = one.analysis.conclude(one.experiment, one.found)
            except UserError as error:
                finding = opened(str(error))
        made = [self.store.record(cell) for cell in one.cells]
        record = StudyRecord(
            id=claim.id,
            claim=claim.claim,
            source=claim.source,
            compares=claim.compares,
            rule=one.analysis.rule(),
            budget=claim.budget,
            seeds=claim.seeds,
            finding=finding,
            setup=self._setup(one),
            command=f"redraft study run {claim.id} --budget {claim.budget} --seeds {claim.seeds}{self.more}",
            made=time.strftime("%Y-%m-%d", time.gmtime()),
            seconds=sum(each.get("seconds", 0.0) for each in made),
            cells=sum(map(bool, made)),
        )
        self.store.conclude(record, one.cells)
        self.log(f"{claim.id}: {finding.verdict}. {finding.text}")
        return record

    def _setup(self, one: Running) -> dict[str, str]:
        """Data, models, training and machine in words."""
        claim, found = one.experiment.claim, {}
        if claim.tasks:
            found["data"] = "; ".join(f"{n}: {t.source or ' + '.join(t.mix)}" for n, t in claim.tasks.items())
        made = [cell for cell in one.cells if isinstance(cell, ModelCell) and one.found.has(cell)]
        values = [one.found.values[cell.id] for cell in made]
        if values:
            found["parameters"] = _range([value["parameters"] for value in values])
        if tokens := [value["tokens"] for value in values if "tokens" in value]:
            found["training tokens of a model"] = _range(tokens)
        if names := dict.fromkeys(value["checkpoint"] for value in values if "checkpoint" in value):
            found["checkpoints"] = ", ".join(names)
        machine = hardware(self.bench.device)
        found["machine"] = f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads"
        found["versions"] = f"redraft {__version__}, torch {machine['torch']}, Python {machine['python']}"
        return found


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def run(
    experiments: Sequence[Experiment], bench: Bench, more: str = "", executor: Executor | None = None
) -> list[StudyRecord]:
    """Run claims in ``bench.out``, or what is left of them.

    The folder gets ``study.sqlite`` and keeps ``data/`` and ``models/``. A cell that can't be computed leaves its claim
    open, with the reason; other claims go on.

    Args:
        more: options at the end of the command that repeats a claim, such as those of the user's data.
    Raises:
        UserError: a wrong recipe, data that can't be found, or another process uses the folder.
    """
    out, executor = Path(bench.out), executor or Local()
    claims = [Running.of(one) for one in experiments]
    for one in claims:
        one.ask()  # what is wrong with a recipe or its data is said before anything is written
    with folder_of_its_own(out, f"Another process is running a study in '{out}'."), executor.opened(out):
        return Runner(bench, Store(out), executor, bench.log, more).run(claims)
