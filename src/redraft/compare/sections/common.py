"""Pieces that several sections of a study's report share."""

from __future__ import annotations

from typing import Literal

from redraft.compare.format import signed
from redraft.compare.measurements import TrainingRun
from redraft.compare.record import Record
from redraft.compare.report import Cell, Tone
from redraft.compare.report.charts import COLOURS
from redraft.compare.results import Difference, SettingResult, ShortDifference
from redraft.evaluation.stats import Interval

TONES: dict[str, Tone] = {"same": "good", "better": "good", "worse": "bad", "undecided": "warn"}
INCONCLUSIVE = "inconclusive"


def by_family(record: Record) -> list[SettingResult]:
    """The settings in the order of the families."""
    order = {family: i for i, family in enumerate(record.study.families)}
    return sorted(record.settings, key=lambda row: order[row.family])


def colour(record: Record, family: str) -> int:
    """The colour of a family."""
    return record.study.families.index(family) % COLOURS


def label_of(record: Record, name: str) -> str:
    """The label of a setting."""
    row = record.setting(name)
    return row.label if row is not None else "the baseline"


def family_label(record: Record, run: TrainingRun) -> str:
    """The family of a training run, with its dropout rate if several were tried."""
    if not record.study.dropouts:
        return run.family
    return f"{run.family}, dropout {run.dropout:g}" + ("" if run.kept else " (not kept)")


def setting_cell(record: Record, row: SettingResult) -> Cell:
    """A setting as the first cell of a row."""
    tags = ["baseline"] if row.id == record.baseline.setting else row.chosen
    return Cell(row.label, colour=colour(record, row.family), tags=tags)


def row_kind(record: Record, name: str) -> Literal["", "baseline"]:
    """How a setting's row is drawn."""
    return "baseline" if name == record.baseline.setting else ""


def interval_cell(value: Interval | None) -> Cell:
    """A value with its interval."""
    return Cell(f"{value.value:.1f}", f"{value.low:.1f} to {value.high:.1f}") if value is not None else Cell()


def difference_cell(tested: Difference | ShortDifference | None) -> Cell:
    """A difference with its interval."""
    if tested is None:
        return Cell()
    return Cell(signed(tested.difference), f"{signed(tested.low)} to {signed(tested.high)}")


def verdict_word(record: Record, tested: Difference) -> str:
    """The verdict of one test; in an inconclusive study no test has one."""
    return INCONCLUSIVE if record.verdict.inconclusive else tested.verdict


def verdict_cell(word: str) -> Cell:
    """A verdict as a badge."""
    return Cell(word, tone=TONES.get(word, "neutral"))
