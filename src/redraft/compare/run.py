"""Runs a study: set up, plan, train, measure, analyse, report. A finished piece is not computed again."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from redraft import runtime
from redraft.compare import time_budget
from redraft.compare.analysis import analyse
from redraft.compare.constraint_study import share_satisfied
from redraft.compare.data import Dataset, load_dataset
from redraft.compare.grid import core
from redraft.compare.job import Job
from redraft.compare.measurements import Machine
from redraft.compare.plan import Plan
from redraft.compare.planning import Planner
from redraft.compare.prepared import ModelKey, Prepared, TaskName
from redraft.compare.record import SCHEMA_VERSION, Record
from redraft.compare.report import render_html, render_markdown
from redraft.compare.sections import study_report
from redraft.compare.select import select_settings, selected_names
from redraft.compare.setup import Setup
from redraft.compare.study import Study
from redraft.compare.workbench import Workbench, likelihood_rows
from redraft.config import to_mapping
from redraft.errors import UserError
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.machine import describe_machine
from redraft.evaluation.result_cache import ResultCache, digest
from redraft.executors.base import Executor, Log
from redraft.executors.local import Local
from redraft.files import check_writable, folder_of_its_own, write_atomically
from redraft.planning.training import MemoryPlan

FILES = ("report.html", "report.md", "results.json")


def run(study: Study, log: Log, command: str = "", executor: Executor | None = None) -> Record:
    """Run a study, or what is left of it, and write its report.

    The study's folder gets ``results.json``, ``report.md`` and ``report.html``, and keeps ``cells/``, ``models/`` and
    ``data/``. If a piece fails (a family that diverges, a setting that a sampler rejects), the report says so and
    holds the rest.

    Args:
        executor: where the pieces are computed; None: in this process. Data are read and the plan is made here.
    Raises:
        UserError: the data or the study can't be used at all, or another process uses its folder.
    """
    out, executor = Path(study.out), executor or Local()
    with (
        folder_of_its_own(out, f"Another process is running a study in '{out}'."),
        executor.opened(out, _inputs(study)),
    ):
        job = begin(study, log, command, executor)
        measure(job)
        job.measured.machine = replace(job.prepared.machine, load=_load())
        replace(job.prepared, machine=job.measured.machine, failures=job.failures).save(job.out)
        found = analyse(job.measured)
        write_report(found, job.out)
    return found


def render(folder: Path) -> Record:
    """Make the report of a study again from its finished pieces. Nothing is computed; what is missing is listed.

    Raises:
        UserError: the folder holds no study, or no finished piece, or can't be written.
    """
    prepared = Prepared.load(folder)
    if not any((folder / "cells").glob("*.json")):
        raise UserError(f"'{folder}' has no finished pieces.", "Run redraft compare with this --out first.")
    for name in FILES:
        check_writable(folder / name)
    job = Job(
        prepared=prepared,
        bench=None,
        executor=Local(),
        cache=ResultCache(folder),
        out=folder,
        log=lambda line: None,
        measured=prepared.measurements(),
        failures=dict(prepared.failures),
    )
    measure(job)
    found = analyse(job.measured)
    write_report(found, folder)
    return found


def begin(study: Study, log: Log, command: str = "", executor: Executor | None = None) -> Job:
    """Read the data, train the tokenizer, plan, and write down what is fixed from now on.

    Raises:
        UserError: the data or the study can't be used.
    """
    begun, out, cache = time.monotonic(), Path(study.out), ResultCache(Path(study.out))
    device, executor = runtime.device(study.device), executor or Local()
    if executor.separate and (device.index is not None or device.type not in ("cpu", "cuda")):
        raise UserError(f"--device {study.device} can't be shared out by --ray.", "Write --device cuda, or cpu.")
    raw, planner, plan = _planned(study, cache, log, begun, device)
    setup = planner.setup
    study = setup.study
    for line in _memory_lines(planner.memory(plan)):
        log(line)
    rows = likelihood_rows(setup.dataset, plan.test_rows)
    prepared = Prepared(
        schema_version=SCHEMA_VERSION,
        command=command,
        study=study,
        plan=plan,
        task=TaskName.of(raw.choice),
        data=setup.summary(plan),
        machine=Machine(**describe_machine(device)),
        validation=tuple(setup.validation[: plan.validation_rows]),
        test=tuple(setup.test[: plan.test_rows]),
        models=tuple(
            ModelKey(family, study.seed + number, dropout, setup.key(plan, family, study.seed + number, dropout))
            for number in range(study.seeds)
            for family in study.families
            for dropout in study.dropouts or (None,)
        ),
        likelihood_rows=digest([(e.prompt, e.target) for e in rows]),
        starts=setup.starts(),
    )
    if (kept := prepared.keep_older(out, FILES)) is not None:
        log(f"the report of another study in this folder is kept in {kept}")
    prepared.save(out)
    if study.constraint:
        share = share_satisfied(study.constraint, prepared.test, raw.paired)
        log(f"constraint: {share:.0f} % of the test references satisfy it")
    for line in plan.lines(study):
        log(line)
    left = time_budget.deadline(time_budget.limited(study, setup.large), begun) - time.monotonic()
    bench = Workbench(log, prepared, setup, time.time() + left, planner.dtype(plan.train))
    return Job(prepared, bench, executor, cache, out, log, prepared.measurements())


def dry_run(study: Study, log: Log) -> dict[str, Any]:
    """Plan a study and stop: its data, families, tokens, minutes and memory. No study is begun.

    The study's folder keeps the tokenizer, the rows, and the speeds that were measured, if the budget is in minutes.

    Raises:
        UserError: the data or the study can't be used, or the memory doesn't suffice.
    """
    begun, out = time.monotonic(), Path(study.out)
    with folder_of_its_own(out, f"Another process is running a study in '{out}'."):
        raw, planner, plan = _planned(study, ResultCache(out), log, begun, runtime.device(study.device))
        memory = planner.memory(plan)
        minutes = plan.total_seconds / 60 or planner.minutes(plan, memory)
    setup = planner.setup
    dataset = setup.dataset
    parts = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    rows = ", ".join(f"{len(each):,} {name}" for name, each in parts.items())
    log(f"data     {study.data}: {rows} rows; the longest has {plan.length:,} tokens")
    for line in (*plan.lines(setup.study), *_memory_lines(memory)):
        log(line)
    if not plan.seconds:
        log(f"minutes  about {minutes:.1f} of training, by the speed of this machine; decoding is not planned")
    return {
        "task": raw.choice.name,
        "data": {"source": study.data, "rows": {name: len(each) for name, each in parts.items()}},
        "families": list(setup.study.families),
        "plan": to_mapping(plan),
        "minutes": minutes,
        "memory": {family: one.to_json() for family, one in memory.items()},
    }


def _planned(
    study: Study, cache: ResultCache, log: Log, begun: float, device: torch.device
) -> tuple[Dataset, Planner, Plan]:
    """Read the data, train the tokenizer, and plan."""
    log(f"reading {study.data}")
    raw = load_dataset(study)
    log(f"task     {raw.choice.name}: {raw.choice.reason}")
    planner = Planner(Setup.prepare(study, raw, device), cache, log, begun)
    return raw, planner, planner.plan()


def _memory_lines(memory: Mapping[str, MemoryPlan]) -> list[str]:
    return [plan.line(family) for family, plan in memory.items()]


def measure(job: Job) -> None:
    """All pieces of a study in order. What a verdict needs comes first; optional settings come last."""
    study, plan = job.prepared.study, job.prepared.plan
    training = job.trainings()
    if study.dropouts:
        job.run(training)
        job.select_dropouts()
        training = []
    needed = core(plan.settings, study.baseline)
    job.run([*training, *job.likelihoods(), *job.baselines(), *job.texts("validation", needed)])
    job.run(job.texts("validation", [one for one in plan.settings if one not in needed], optional=True))
    job.run(job.timings())
    chosen, others = _split_settings(job)
    job.run(job.texts("test", chosen))
    if study.constraint:
        job.run(job.texts("test", chosen, constrained=True))
        job.run(job.constrained_timings(chosen))
    job.run(job.texts("test", others, optional=True))
    job.run(job.service())


def _inputs(study: Study) -> list[Path]:
    """The checkpoints that the pieces of a study read, those except those that redraft brings."""
    return [Path(base) for base in study.bases.values() if Path(base).exists()]


def _split_settings(job: Job) -> tuple[list[DecodingConfig], list[DecodingConfig]]:
    """The settings selected on validation rows, which must be tested, and others that generated texts."""
    settings = job.prepared.plan.settings
    selected = set(selected_names(select_settings(job.measured)))
    done = {one.setting for one in job.measured.texts}
    return (
        [setting for setting in settings if setting.id in selected],
        [setting for setting in settings if setting.id not in selected and setting.id in done],
    )


def write_report(found: Record, out: Path) -> None:
    """Write results.json, report.md and report.html."""
    found.save(out / "results.json")
    report = study_report(found)
    write_atomically(out / "report.md", render_markdown(report))
    write_atomically(out / "report.html", render_html(report))


def _load() -> float | None:
    """The load average of the last minute, where the system has one."""
    with contextlib.suppress(AttributeError, OSError):
        return os.getloadavg()[0]
    return None


def command_line() -> str:
    """The command that started this process, for the report."""
    return " ".join(["redraft", *sys.argv[1:]])
