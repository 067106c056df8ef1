"""Control: what a constraint costs each family, and what its texts are worth without one.

Quality is likeness to references, so a constraint can be judged by it only where the references satisfy it themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from redraft.compare import stats
from redraft.compare.material import Item, score
from redraft.compare.study import Setting
from redraft.constraints import satisfied
from redraft.metrics import Array, divide
from redraft.metrics.speed import Speed, ratio_interval

if TYPE_CHECKING:
    from redraft.compare.results import Record

FEW, MOST = 5.0, 95.0  # per cent of references that satisfy a constraint: below, quality says nothing, or too little


@dataclass(frozen=True)
class Controlled:
    """A setting whose texts must satisfy a constraint."""

    setting: Setting
    constraint: Mapping[str, str]

    @property
    def id(self) -> str:
        return f"{self.setting.id}/constrained"

    def generation(self) -> dict[str, Any]:
        """Keyword arguments for ``Model.settings``."""
        return {**self.setting.generation(), "constraint": dict(self.constraint)}


def summary(record: Record, chosen: Mapping[str, tuple[str, str]]) -> dict[str, Any] | None:
    """The part of ``results.json`` about the study's constraint: the chosen settings with it and without."""
    if not record.study.constraint:
        return None
    baseline = chosen.get(record.study.baseline, ("", ""))[0]
    rows = []
    for name in dict.fromkeys(name for pair in chosen.values() for name in pair):
        free, bound = record.of("texts", part="test", id=name), record.of("control", id=name)
        seeds = {cell["seed"] for cell in free} & {cell["seed"] for cell in bound}
        free, bound = ([cell for cell in part if cell["seed"] in seeds] for part in (free, bound))
        if seeds:
            rows.append(_row(record, record.settings[name], free, bound, baseline))
    share = held(record.study.constraint, record.test, record.data["paired"])
    return {"constraint": dict(record.study.constraint), "references": share, "void": share < FEW, "settings": rows}


def held(constraint: Mapping[str, str], items: Sequence[Item], paired: bool) -> float:
    """Per cent of items whose first reference satisfies a constraint.

    Args:
        paired: the items' counts of tokens hold one for end-of-text, which a length doesn't count.
    """
    tokens = [item.tokens - paired for item in items]
    return 100.0 * float(np.mean(satisfied(constraint, [item.references[0] for item in items], tokens)))


def caveat(control: Mapping[str, Any] | None) -> str | None:
    """What the references say against judging a constraint by quality; None where they satisfy it."""
    if not control or control["references"] >= MOST:
        return None
    share = control["references"]
    if control["void"]:
        many = "None" if not share else f"Only {share:.1f} %"
        return (
            f"{many} of the test references satisfy the constraint, so quality under it means nothing: comparisons "
            "under Control are void, but for valid texts and times. Is the constraint written as the targets are?"
        )
    return (
        f"Only {share:.0f} % of the test references satisfy the constraint. Texts that do are marked down where their "
        "references don't: quality under it is that of an easier or a harder job, not its price."
    )


def _row(
    record: Record, setting: Setting, free: list[dict[str, Any]], bound: list[dict[str, Any]], baseline: str
) -> dict[str, Any]:
    metric, both = record.primary, {"without": free, "with": bound}
    measured = {name: _statistics(record, cells) for name, cells in both.items()}
    rivals = record.of("control", id=baseline) if setting.id != baseline else []
    row: dict[str, Any] = {
        "setting": setting.id,
        "label": setting.label,
        "family": setting.family,
        "seeds": len(bound),
        "valid": {name: asdict(stats.interval(_valid(record, cells), _share)) for name, cells in both.items()},
        "quality": {name: asdict(stats.interval(values, metric.combine)) for name, values in measured.items()},
        "nfe": {name: float(np.mean([n for cell in cells for n in cell["nfe"]])) for name, cells in both.items()},
        "cost": None,
        "against_baseline": None,
        "speed": _speed(record, setting.id),
    }
    if metric.better:
        row["cost"] = _difference(record, measured["with"], measured["without"])
        if rivals:
            row["against_baseline"] = _difference(record, measured["with"], _statistics(record, rivals))
    return row


def _statistics(record: Record, cells: Sequence[dict[str, Any]]) -> Array:
    """[seeds, rows, k] of the first metric."""
    return np.stack([score(record.primary, cell["texts"], record.test).stats for cell in cells])


def _valid(record: Record, cells: Sequence[dict[str, Any]]) -> Array:
    """[seeds, rows, 2]: whether each text satisfies the constraint, and 1."""
    held = [satisfied(record.study.constraint, cell["texts"], cell["tokens"]) for cell in cells]
    return np.stack([np.stack([np.asarray(one, dtype=float), np.ones(len(one))], 1) for one in held])


def _share(total: Array) -> Array:
    return 100.0 * divide(total[..., 0], total[..., 1])


def _difference(record: Record, ours: Array, theirs: Array) -> dict[str, Any]:
    """Of the first metric; positive where ours are better."""
    metric = record.primary
    found = stats.compare(ours, theirs, metric.combine, record.margin, metric.better)
    around = found.difference
    return {"difference": around.value, "low": around.low, "high": around.high, "verdict": found.verdict}


def _speed(record: Record, name: str) -> list[dict[str, Any]]:
    """Latency with the constraint at each batch size, and how many times that is the latency without."""
    found = []
    for cell in sorted(record.of("control_race"), key=lambda cell: cell["batch"]):
        entries = {entry["id"]: entry for entry in cell["entries"]}
        free, bound = entries.get(name), entries.get(Controlled(record.settings[name], {}).id)
        if free and bound:
            speed = Speed(cell["batch"], bound["seconds"], bound["tokens"])
            ratio, low, high = ratio_interval(free["seconds"], bound["seconds"])
            times = {"ratio": ratio, "low": low, "high": high}
            p50, p95 = speed.percentile(50), speed.percentile(95)
            found.append({"batch": cell["batch"], "p50": p50, "p95": p95, "times": times})
    return found
