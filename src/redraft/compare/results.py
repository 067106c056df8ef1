"""From measurements to results: choices on validation rows, values and tests on test rows, one JSON object.

Pure arithmetic on finished cells: nothing here runs a model, so results can be worked out again at any time, with
another margin, metric or price, from what was measured once. ``docs/results-schema.md`` describes the object.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from redraft import __version__, models
from redraft.compare import control, rival, stats, verdict
from redraft.compare.material import Item, score
from redraft.compare.plan import Plan
from redraft.compare.study import Setting, Study
from redraft.metrics import Array, Metric
from redraft.metrics.bits_per_byte import BitsPerByte
from redraft.metrics.cost import Cost
from redraft.metrics.flops import Flops
from redraft.metrics.speed import Speed, ratio_interval
from redraft.tasks import Choice
from redraft.train.recipe import TrainTable

SCHEMA = "redraft.compare/1"
BUCKETS = (0, 10, 20, 40, 80, 160)  # reference tokens
FEWEST_IN_BUCKET = 10
SAMPLES = 8


@dataclass
class Record:
    """Everything a study measured."""

    study: Study
    plan: Plan
    choice: Choice
    validation: list[Item]
    test: list[Item]
    cells: list[dict[str, Any]]
    missing: list[dict[str, str]]
    data: dict[str, Any]
    machine: dict[str, Any]
    command: str = ""
    resumed: int = 0
    _scores: dict[tuple[str, str, str], Array] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> list[Metric]:
        return self.choice.task.metrics()

    @property
    def primary(self) -> Metric:
        return self.metrics[0]

    @property
    def margin(self) -> float:
        return self.study.margin or self.choice.task.margin

    @property
    def settings(self) -> dict[str, Setting]:
        return {s.id: s for s in self.plan.settings}

    def of(self, kind: str, **wanted: Any) -> list[dict[str, Any]]:
        """Cells of a kind whose fields have the wanted values."""
        return [c for c in self.cells if c["kind"] == kind and all(c.get(k) == v for k, v in wanted.items())]

    def statistics(self, part: str, setting: str, metric: Metric) -> Array | None:
        """Sufficient statistics [seeds, rows, k] of a setting's texts; None where it wrote none."""
        key = (part, setting, metric.name)
        if key not in self._scores:
            texts = [c["texts"] for c in self.of("texts", part=part, id=setting)]
            if not texts:
                return None
            items = self.test if part == "test" else self.validation
            self._scores[key] = np.stack([score(metric, t, items).stats for t in texts])
        return self._scores[key]


# ---- choosing, on validation rows only


def picks(record: Record) -> dict[str, tuple[str, str]]:
    """For each family the settings that are reported on: its best and its fast one, chosen on validation rows.

    Best: the highest first metric. Fast: the shortest median latency at the smallest batch among the settings whose
    value is within the margin of the best. The two may be the same. Families without any text are left out.
    """
    metric, found = record.primary, {}
    latency = _latencies(record)
    for family in record.study.families:
        values = {}
        for name, setting in record.settings.items():
            measured = record.statistics("validation", name, metric)
            if setting.family == family and measured is not None:
                values[name] = (metric.better or 1) * stats.point(measured, metric.combine)
        if not values:
            continue
        best = max(values, key=values.__getitem__)
        close = [name for name, value in values.items() if value >= values[best] - record.margin]
        found[family] = best, min(close, key=lambda name: latency.get(name, float("inf")))
    return found


def _latencies(record: Record) -> dict[str, float]:
    """Median seconds of each setting at the smallest batch that was timed."""
    races = sorted(record.of("race"), key=lambda cell: cell["batch"])
    return {e["id"]: float(np.median(e["seconds"])) for e in races[0]["entries"]} if races else {}


# ---- the results


def summarise(record: Record) -> dict[str, Any]:
    """The content of ``results.json``."""
    chosen = picks(record)
    baseline, quick = chosen.get(record.study.baseline, ("", ""))
    settings = [_setting(record, s, chosen) for s in record.plan.settings]
    settings = [s for s in settings if s["quality"] or s["validation"]]
    _adjust(settings, record.primary.name)
    likelihood = _likelihood(record)
    bottom = _floors(record)
    void = verdict.voids(record.study.baseline, _passed(record, settings, baseline, bottom, likelihood))
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "redraft": __version__,
        "command": record.command,
        "complete": not record.missing,
        "missing": record.missing,
        "study": asdict(record.study),
        "plan": {**asdict(record.plan), "settings": [s.id for s in record.plan.settings]},
        "machine": record.machine,
        "data": {**record.data, "test_items": len(record.test), "validation_items": len(record.validation)},
        "task": {
            "name": record.choice.name,
            "summary": record.choice.task.summary,
            "reason": record.choice.reason,
            "margin": record.margin,
            "primary": record.primary.name,
            "metrics": [{"name": m.name, "label": m.label, "better": m.better} for m in record.metrics],
        },
        "baseline": {"family": record.study.baseline, "setting": baseline, "speed_setting": quick},
        "training": _training(record),
        "likelihood": likelihood,
        "floors": bottom,
        "settings": settings,
        "buckets": _buckets(record, chosen),
        "references": _references(record),
        "samples": _samples(record, chosen),
        "rival": rival.summary(record, chosen),
        "control": control.summary(record, chosen),
    }
    found["verdict"] = _verdict(record, found, chosen, void)
    found["caveats"] = _caveats(record, found)
    return _plain(found)


def _setting(record: Record, setting: Setting, chosen: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """One row of the big table.

    Quality is compared with the baseline family's best setting, speed with its fast one: a family must not look quick
    because its rival was given a slow way of decoding that hardly gains anything.
    """
    baseline, quick = chosen.get(record.study.baseline, ("", ""))
    best, fast = chosen.get(setting.family, ("", ""))
    cells = record.of("texts", part="test", id=setting.id)
    validation = record.statistics("validation", setting.id, record.primary)
    row: dict[str, Any] = {
        "id": setting.id,
        "label": setting.label,
        "family": setting.family,
        "sampler": setting.sampler,
        "options": setting.options,
        "steps": setting.steps,
        "candidates": setting.candidates,
        "temperature": setting.temperature,
        "top_p": setting.top_p,
        "chosen": [name for name, one in (("best", best), ("fast", fast)) if one == setting.id],
        "seeds": len(cells),
        "validation": None if validation is None else stats.point(validation, record.primary.combine),
        "quality": {},
        "against_baseline": {},
        "work": _work(cells) if cells else None,
        "speed": _speeds(record, setting.id, quick),
        "peak_memory": max((c["peak_memory"] for c in cells), default=None),
        "memory_growth": max((c["peak_memory"] - c["memory_before"] for c in cells), default=None),
    }
    for metric in record.metrics:
        measured = record.statistics("test", setting.id, metric)
        if measured is None:
            continue
        row["quality"][metric.name] = asdict(stats.interval(measured, metric.combine))
        against = record.statistics("test", baseline, metric) if baseline else None
        if against is not None and setting.id != baseline and metric.better:
            margin = record.margin if metric is record.primary else record.choice.task.margin
            row["against_baseline"][metric.name] = _comparison(measured, against, metric, margin)
    return row


def _comparison(ours: Array, theirs: Array, metric: Metric, margin: float) -> dict[str, Any]:
    found = stats.compare(ours, theirs, metric.combine, margin, metric.better)
    return {
        "difference": found.difference.value,
        "low": found.difference.low,
        "high": found.difference.high,
        "margin": margin,
        "p_difference": found.p_difference,
        "p_equivalence": found.p_equivalence,
        "verdict": found.verdict,
        "preliminary": found.preliminary,
    }


def _adjust(settings: list[dict[str, Any]], primary: str) -> None:
    """Holm's adjustment of the first metric's p-values over all settings that were tested."""
    tested = [s["against_baseline"][primary] for s in settings if primary in s["against_baseline"]]
    for entry, p in zip(tested, stats.holm([t["p_difference"] for t in tested]), strict=True):
        entry["p_holm"] = p


def _work(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Passes, tokens and counted operations of a setting on the test items, over all seeds."""
    shape = models.shape(cells[0]["shape"], "shape")
    tokens = sum(sum(c["tokens"]) for c in cells)
    rows = sum(len(c["texts"]) for c in cells)
    work = {
        name: sum(c["work"][name] for c in cells) for name in ("queries", "pairs", "wanted", "encoded", "encoded_pairs")
    }
    operations = Flops(shape).forward(**work, timed_rows=sum(sum(c["nfe"]) for c in cells))
    return {
        "nfe": sum(sum(c["nfe"]) for c in cells) / rows,
        "tokens": tokens / rows,
        "finished": sum(c["finished"] for c in cells) / rows,
        "flops_per_token": operations / tokens if tokens else None,
        "flops_per_text": operations / rows,
    }


def _speeds(record: Record, name: str, rival: str) -> list[dict[str, Any]]:
    """Latency, throughput, cost and speed-up at every batch size."""
    found = []
    for cell in sorted(record.of("race"), key=lambda c: c["batch"]):
        entries = {e["id"]: e for e in cell["entries"]}
        if name not in entries:
            continue
        speed = Speed(cell["batch"], entries[name]["seconds"], entries[name]["tokens"])
        row: dict[str, Any] = {
            "batch": cell["batch"],
            "calls": len(speed.seconds),
            "p50": speed.percentile(50),
            "p95": speed.percentile(95),
            "tokens_per_second": speed.tokens_per_second,
            "requests_per_second": speed.requests_per_second,
            "cost_per_thousand": None,
            "speedup": None,
        }
        if record.study.price_per_hour:
            row["cost_per_thousand"] = Cost(record.study.price_per_hour).per_thousand(speed.requests_per_second)
        if rival in entries and name != rival:
            ratio, low, high = ratio_interval(speed.seconds, entries[rival]["seconds"])
            row["speedup"] = {"ratio": ratio, "low": low, "high": high}
        found.append(row)
    return found


def _training(record: Record) -> list[dict[str, Any]]:
    names = ("family", "seed", "parameters", "steps", "tokens", "passes", "flops", "seconds", "peak_memory", "curve")
    found = []
    for cell in record.of("train"):
        row = {name: cell[name] for name in names}
        row["tokens_per_second"] = cell["tokens"] / cell["seconds"] if cell["seconds"] else None
        row["dropout"] = _table(record, cell).get("dropout", 0.0)
        row["kept"] = cell.get("kept", True)
        row["validation"] = cell["validation"]
        row["model"] = cell["out"]
        found.append(row)
    return found


def _likelihood(record: Record) -> list[dict[str, Any]]:
    """Bits per byte of the test rows: exact, or a bound with its Monte-Carlo error; compared on equal rows."""
    metric, found = BitsPerByte(), []
    kept: dict[str, Array] = {}
    for family in record.study.families:
        cells = record.of("likelihood", family=family)
        if not cells:
            continue
        measured = np.stack([BitsPerByte.of(c["nats"], c["bytes"]) for c in cells])
        kept[family] = measured
        row: dict[str, Any] = {
            "family": family,
            "is_bound": cells[0]["is_bound"],
            "seeds": len(cells),
            "rows": measured.shape[1],
            "error": float(np.sqrt(np.mean(np.square([c["error"] for c in cells])) / len(cells))),
            **asdict(stats.interval(measured, metric.combine)),
            "against_baseline": None,
        }
        first = kept.get(record.study.baseline)
        if first is not None and family != record.study.baseline and first.shape[1:] == measured.shape[1:]:
            row["against_baseline"] = _comparison(measured, first, metric, 0.02 * stats.point(first, metric.combine))
        found.append(row)
    return found


def _floors(record: Record) -> dict[str, Any]:
    cells = record.of("floors")
    if not cells:
        return {"texts": [], "people": None, "ngram": None}
    cell = cells[0]
    rows = [{"name": name, "quality": _scored(record, texts)} for name, texts in cell["texts"].items()]
    people = _scored(record, cell["people"]) if len(cell["people"]) == len(record.test) else None
    return {
        "texts": rows,
        "people": people,
        "ngram": {"order": cell["order"], "bits_per_byte": cell["bits_per_byte"]},
    }


def _scored(record: Record, texts: Sequence[str]) -> dict[str, Any]:
    """Values and intervals of texts that no model of the study wrote."""
    scores = {m.name: score(m, texts, record.test).stats for m in record.metrics}
    return {m.name: asdict(stats.interval(scores[m.name], m.combine)) for m in record.metrics}


def _passed(
    record: Record,
    settings: list[dict[str, Any]],
    baseline: str,
    bottom: dict[str, Any],
    likelihood: list[dict[str, Any]],
) -> list[verdict.Floor]:
    """What the baseline has to beat: for pairs the trivial texts, for plain text the n-gram model's likelihood."""
    metric, found = record.primary, []
    ours = next((s["quality"].get(metric.name) for s in settings if s["id"] == baseline), None)
    if ours:
        for row in bottom["texts"]:
            value = row["quality"][metric.name]["value"]
            found.append(verdict.Floor(row["name"], metric.label, value, ours["value"], metric.better))
    exact = next((e for e in likelihood if e["family"] == record.study.baseline), None)
    if not record.data["paired"] and bottom["ngram"] and exact:
        name = f"a {bottom['ngram']['order']}-gram model of bytes"
        found.append(verdict.Floor(name, "bits per byte", bottom["ngram"]["bits_per_byte"], exact["value"], -1))
    return found


def _references(record: Record) -> dict[str, float]:
    """Properties of people's own text, for metrics that have no better or worse."""
    own = [item.references[0] for item in record.test]
    return {m.name: score(m, own, record.test).value for m in record.metrics if not m.better}


def _buckets(record: Record, chosen: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """The first metric by tokens of the reference, for every chosen setting."""
    metric = record.primary
    lengths = np.array([item.tokens for item in record.test])
    found = []
    for low, high in zip(BUCKETS, (*BUCKETS[1:], 1 << 30), strict=True):
        inside = (lengths > low) & (lengths <= high)
        if inside.sum() < FEWEST_IN_BUCKET:
            continue
        values = {}
        for name in dict.fromkeys(name for pair in chosen.values() for name in pair):
            measured = record.statistics("test", name, metric)
            if measured is not None:
                values[name] = asdict(stats.interval(measured[:, inside], metric.combine, resamples=500))
        found.append({"above": low, "to": min(high, int(lengths.max())), "rows": int(inside.sum()), "values": values})
    return found


def _samples(record: Record, chosen: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Items spread evenly over the lengths of the references, with what each chosen setting wrote: not hand-picked."""
    texts = {}
    for name in dict.fromkeys(name for pair in chosen.values() for name in pair):
        cells = record.of("texts", part="test", id=name)
        if cells:
            texts[name] = cells[0]["texts"]
    order = sorted(range(len(record.test)), key=lambda i: (record.test[i].tokens, i))
    count = min(SAMPLES, len(order))
    shown = [order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)]
    return [
        {
            "prompt": record.test[i].prompt,
            "references": list(record.test[i].references),
            "texts": {name: written[i] for name, written in texts.items()},
        }
        for i in shown
    ]


# ---- words


def _verdict(
    record: Record, found: dict[str, Any], chosen: dict[str, tuple[str, str]], void: list[str]
) -> dict[str, Any]:
    """A line for every chosen setting of every family but the baseline, and a headline."""
    rows = {s["id"]: s for s in found["settings"]}
    first, quick = (rows.get(found["baseline"][name]) for name in ("setting", "speed_setting"))
    lines: list[dict[str, Any]] = []
    for family, (best, fast) in chosen.items():
        if family == record.study.baseline or first is None or quick is None:
            continue
        for role, name in (("best", best), ("fast", fast)):
            if role == "best" or name != best:
                line = _line(record, rows[name], first, quick, "both" if best == fast else role)
                lines += [line] if line else []
    # the fast setting is the one a person would deploy, unless only the best one holds the quality
    rank, sizes = {"same": 0, "better": 0, "undecided": 1, "worse": 2}, len(record.of("race"))
    lines.sort(key=lambda s: (rank[s["quality"]], bool(sizes) and len(s["rivals"]) == sizes, s["role"] != "fast"))
    if void:
        lines = []  # not one word about the families
    return {
        "void": void,
        "headline": verdict.headline(void, [line["text"] for line in lines], len(record.missing)),
        "advice": lines[0]["advice"] if lines else "",
        "lines": lines,
        "preliminary": record.study.seeds < 2,
    }


def _line(
    record: Record, row: dict[str, Any], first: dict[str, Any], quick: dict[str, Any], role: str
) -> dict[str, Any] | None:
    metric = record.primary
    tested = row["against_baseline"].get(metric.name)
    if tested is None:
        return None
    label = metric.label.removesuffix(" %")
    quality = verdict.Quality(
        label, tested["verdict"], tested["difference"], tested["low"], tested["high"], tested["margin"]
    )
    ratios = [
        verdict.Ratio(s["batch"], s["speedup"]["ratio"], s["speedup"]["low"], s["speedup"]["high"])
        for s in row["speed"]
        if s["speedup"]
    ]
    mine, theirs = ((r["work"] or {}).get("flops_per_token") for r in (row, quick))
    compute = mine / theirs if mine and theirs else None
    against = first["label"] if first is quick else f"{first['label']}; speed and compute against {quick['label']}"
    gained = {ratio.batch for ratio in ratios if ratio.word == "faster"}  # where there is something to take away
    found = _rivals(record, row["id"], quick["id"]) if gained else []
    entries = [entry for entry in found if entry["batch"] in gained]
    rivals = [
        verdict.Rival(
            record.settings[e["setting"]].label,
            e["quality"] == "better",
            verdict.Ratio(e["batch"], e["ratio"], e["low"], e["high"]),
        )
        for e in entries
    ]
    return {
        "setting": row["id"],
        "role": role,
        "quality": tested["verdict"],
        "compute": compute,
        "rivals": entries,
        "text": verdict.sentence(row["label"], quality, ratios, against, compute, rivals),
        "advice": verdict.advice(row["family"], first["family"], quality, ratios, rivals),
    }


def _rivals(record: Record, name: str, quick: str) -> list[dict[str, Any]]:
    """At each batch size a setting of the baseline family that scores no lower on the test rows than the setting
    ``name``, which is not measurably faster than it: one that does so at most batch sizes, of several the quickest.

    ``quick`` is left out: every line says how fast a setting is against it.
    """
    metric = record.primary
    ours = record.statistics("test", name, metric)
    timed = {
        cell["batch"]: {entry["id"]: entry["seconds"] for entry in cell["entries"]}
        for cell in sorted(record.of("race"), key=lambda cell: cell["batch"])
    }
    if ours is None or not metric.better:
        return []
    found: dict[str, list[dict[str, Any]]] = {}
    for setting in record.settings.values():
        theirs = record.statistics("test", setting.id, metric)
        if setting.family != record.study.baseline or setting.id == quick or theirs is None:
            continue
        if metric.better * (stats.point(theirs, metric.combine) - stats.point(ours, metric.combine)) < 0:
            continue
        told = stats.compare(theirs, ours, metric.combine, record.margin, metric.better).verdict
        for batch, seconds in timed.items():
            if setting.id in seconds and name in seconds:
                ratio, low, high = ratio_interval(seconds[setting.id], seconds[name])
                if high >= 1:
                    entry = {"batch": batch, "setting": setting.id, "quality": told}
                    found.setdefault(setting.id, []).append({**entry, "ratio": ratio, "low": low, "high": high})
    order = sorted(found.values(), key=lambda mine: (-len(mine), -max(entry["ratio"] for entry in mine)))
    first: dict[int, dict[str, Any]] = {}
    for mine in order:
        for entry in mine:
            first.setdefault(entry["batch"], entry)
    return [first[batch] for batch in sorted(first)]


def _caveats(record: Record, found: dict[str, Any]) -> list[str]:
    """What a careful reader must know before relying on the numbers."""
    study, notes = record.study, list(record.data["notes"])
    if study.seeds < 2:
        notes.insert(0, "Preliminary: one training seed. Another seed could give another verdict; use --seeds 3.")
    if study.seeds > 1 and study.seeds < 5:
        notes.append(f"{study.seeds} seeds tell little of how training runs vary; intervals are widened for it.")
    if record.data["leaks"]:
        notes.append(f"{record.data['leaks']} test rows have an input that is also in the training rows.")
    if any(row["is_bound"] for row in found["likelihood"]):
        notes.append(
            "Bits per byte of diffusion models are upper bounds, those of autoregressive models are exact: a diffusion "
            "model may be better than its number."
        )
    ngram = found["floors"]["ngram"]
    exact = next((e for e in found["likelihood"] if e["family"] == study.baseline), None)
    if record.data["paired"] and ngram and exact and exact["value"] >= ngram["bits_per_byte"]:
        notes.append(
            f"By likelihood {study.baseline} ({exact['value']:.2f} bits per byte) does not beat a "
            f"{ngram['order']}-gram model of the targets alone ({ngram['bits_per_byte']:.2f}): the models are far from "
            "trained out."
        )
    if record.of("train"):
        notes.append(_regularised(record))
    if constrained := control.caveat(found["control"]):
        notes.append(constrained)
    if study.bases:
        notes.append("Fine-tuned from checkpoints: the verdict holds for these starting points.")
    runs = [run for run in found["training"] if run["kept"]]
    still = [r["family"] for r in runs if _still_falling(r["curve"]["validation"])]
    if still:
        names = ", ".join(dict.fromkeys(still))
        notes.append(
            f"Validation loss was still falling when the budget ended ({names}): more training may change this."
        )
    load, cores = record.machine.get("load"), record.machine.get("cores")
    if load and cores and load > 1.5 * cores:
        notes.append(
            f"The machine was busy (load {load:.1f} on {cores} cores): all settings were timed turn by turn and suffer "
            "alike, but absolute times are too long."
        )
    if record.missing:
        notes.append(f"Pieces of the study are missing ({len(record.missing)}); see the list at the end.")
    return notes


def _regularised(record: Record) -> str:
    """Dropout and weight decay, of which families do not want alike much."""
    runs = record.of("train")
    decay = f"weight decay {_table(record, runs[0]).get('weight_decay', TrainTable.weight_decay):g}"
    if not record.study.dropouts:
        dropout = f"dropout {_table(record, runs[0]).get('dropout', 0.0):g}"
        return (
            f"All families were trained with the same {dropout} and {decay}. That choice can favour one of them: on "
            "little data autoregressive models usually want more of it than diffusion models, whose noise regularises "
            "already. --dropout 0.1,0.3 tries several for each."
        )
    tried = ", ".join(f"{rate:g}" for rate in record.study.dropouts)
    kept = {cell["family"]: cell["dropout"] for cell in runs if cell.get("kept", True)}
    chosen = ", ".join(f"{family} {rate:g}" for family, rate in kept.items())
    each, total = record.plan.tokens, sum(cell["tokens"] for cell in runs)
    return (
        f"Each model was trained at dropout {tried} on {each:,} tokens each time, {total:,} in all, and every family's "
        f"best on validation rows was kept: {chosen}. The {decay} was the same for all."
    )


def _table(record: Record, cell: dict[str, Any]) -> dict[str, Any]:
    """[train] of the recipe of a training."""
    table: dict[str, Any] = cell.get("recipe", {}).get("train") or record.plan.train
    return table


def _still_falling(points: list[dict[str, Any]]) -> bool:
    """Did the last eighth of the budget still gain more than one per cent?"""
    values = [p["bits_per_byte"] for p in points]
    return len(values) > 2 and values[-1] == min(values) and values[-2] - values[-1] > 0.01 * values[-1]


def _plain(value: Any) -> Any:
    """Numbers as JSON knows them: no infinities, nothing of numpy's."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
