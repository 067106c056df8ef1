"""From measurements to the record of a study.

No model is run here, so the results can be computed again at any time. Settings are chosen on validation rows; values
and tests are computed on test rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from redraft import __version__
from redraft.compare import caveats, constraint_study, families, record, service_comparison
from redraft.compare.judge import judge
from redraft.compare.measurements import Measurements
from redraft.compare.record import Record
from redraft.compare.results import (
    BaselineChoice,
    Baselines,
    BaselineTexts,
    Difference,
    LengthBucket,
    Likelihood,
    MetricInfo,
    Ngram,
    Ratio,
    Sample,
    SettingResult,
    Speed,
    TaskInfo,
    Verdict,
    Work,
)
from redraft.compare.select import Selected, select_settings, selected_names
from redraft.evaluation import stats
from redraft.evaluation.cost import Cost
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.scores import score
from redraft.evaluation.stats import Interval
from redraft.evaluation.texts import GenerationRun
from redraft.evaluation.timing import Speed as Timed
from redraft.evaluation.timing import ratio_interval
from redraft.metrics import Array, Metric
from redraft.metrics.bits_per_byte import BitsPerByte

BUCKETS = (0, 10, 20, 40, 80, 160)  # reference tokens
FEWEST_IN_BUCKET = 10
SAMPLES = 8
LIKELIHOOD_MARGIN = 0.02  # of the baseline's bits per byte


def analyse(measured: Measurements) -> Record:
    """The record of a study; of an unfinished one with what is there."""
    selected = select_settings(measured)
    chosen = selected.get(measured.study.baseline, Selected("", ""))
    settings = [_setting(measured, setting, selected, chosen) for setting in measured.plan.settings]
    settings = _with_holm([row for row in settings if row.quality or row.validation is not None], measured.primary.name)
    likelihood, baselines = _likelihood(measured), _baselines(measured)
    baseline = BaselineChoice(measured.study.baseline, chosen.best, chosen.fast)
    constrained = constraint_study.summarise(measured, selected)
    return Record(
        schema_version=record.SCHEMA_VERSION,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        redraft=__version__,
        command=measured.command,
        complete=not measured.missing,
        missing=tuple(measured.missing),
        study=measured.study,
        plan=measured.plan,
        machine=measured.machine,
        data=measured.data,
        task=_task(measured),
        baseline=baseline,
        verdict=judge(measured, selected, baseline, settings, baselines, likelihood),
        caveats=tuple(caveats.caveats(measured, likelihood, baselines, constrained)),
        training=tuple(measured.training),
        likelihood=tuple(likelihood),
        baselines=baselines,
        settings=tuple(settings),
        buckets=tuple(_buckets(measured, selected)),
        references=_references(measured),
        samples=tuple(_samples(measured, selected)),
        service=service_comparison.summarise(measured, selected),
        constraint_study=constrained,
        starts=measured.starts,
        timed_on=measured.places,
        families=families.summarise(measured, selected),
    )


def _task(measured: Measurements) -> TaskInfo:
    choice = measured.choice
    return TaskInfo(
        name=choice.name,
        summary=choice.task.summary,
        reason=choice.reason,
        margin=measured.margin,
        primary=measured.primary.name,
        metrics=tuple(
            MetricInfo(metric.name, metric.label, metric.better, metric.signature) for metric in measured.metrics
        ),
    )


# ---- settings


def _setting(
    measured: Measurements, setting: DecodingConfig, selected: dict[str, Selected], chosen: Selected
) -> SettingResult:
    """One setting.

    Quality is compared with the baseline family's best setting, speed with its fast one. Otherwise a family could look
    fast because the baseline was given a slow way of decoding that gains almost nothing.
    """
    own = selected.get(setting.family, Selected("", ""))
    texts = measured.texts_of("test", setting.id)
    validation = measured.statistics("validation", setting.id, measured.primary)
    quality: dict[str, Interval] = {}
    against: dict[str, Difference] = {}
    for metric in measured.metrics:
        ours = measured.statistics("test", setting.id, metric)
        if ours is None:
            continue
        quality[metric.name] = stats.interval(ours, metric.combine)
        theirs = measured.statistics("test", chosen.best, metric) if chosen.best else None
        if theirs is not None and setting.id != chosen.best and metric.better:
            margin = measured.margin if metric is measured.primary else measured.choice.task.margin
            against[metric.name] = _difference(ours, theirs, metric, margin)
    return SettingResult(
        id=setting.id,
        label=setting.label,
        family=setting.family,
        decoding=setting,
        chosen=own.roles(setting.id),
        seeds=len(texts),
        validation=None if validation is None else stats.point(validation, measured.primary.combine),
        quality=quality,
        against_baseline=against,
        work=_work([one.run for one in texts]) if texts else None,
        speed=tuple(_speeds(measured, setting.id, chosen.fast)),
        peak_memory=max((one.run.peak_memory for one in texts), default=None),
        memory_growth=max((one.run.peak_memory - one.run.memory_before for one in texts), default=None),
    )


def _difference(ours: Array, theirs: Array, metric: Metric, margin: float) -> Difference:
    found = stats.compare(ours, theirs, metric.combine, margin, metric.better)
    return Difference(
        difference=found.difference.value,
        low=found.difference.low,
        high=found.difference.high,
        margin=margin,
        p_difference=found.p_difference,
        p_equivalence=found.p_equivalence,
        p_holm=None,
        verdict=cast(Verdict, found.verdict),
        preliminary=found.preliminary,
    )


def _with_holm(settings: list[SettingResult], primary: str) -> list[SettingResult]:
    """The settings with Holm's adjustment of the primary metric's p-values over all that were tested."""
    tested = [row for row in settings if primary in row.against_baseline]
    adjusted = stats.holm([row.against_baseline[primary].p_difference for row in tested])
    by_id = {row.id: p for row, p in zip(tested, adjusted, strict=True)}
    found = []
    for row in settings:
        if row.id in by_id:
            against = {**row.against_baseline}
            against[primary] = replace(against[primary], p_holm=by_id[row.id])
            row = replace(row, against_baseline=against)
        found.append(row)
    return found


def _work(runs: Sequence[GenerationRun]) -> Work:
    """Forward passes, tokens and counted operations on the test items, over all seeds."""
    tokens = sum(sum(one.tokens) for one in runs)
    rows = sum(len(one.texts) for one in runs)
    passes = sum(sum(one.nfe) for one in runs)
    operations = families.operations(runs)
    return Work(
        nfe=passes / rows,
        tokens=tokens / rows,
        finished=sum(one.finished for one in runs) / rows,
        flops_per_token=operations / tokens if tokens else None,
        flops_per_text=operations / rows,
    )


def _speeds(measured: Measurements, name: str, reference: str) -> list[Speed]:
    """Latency, throughput, cost and speed-up over the reference setting at every batch size."""
    found = []
    for timing in measured.timings_by_batch():
        own, theirs = timing.of(name), timing.of(reference)
        if own is None:
            continue
        timed, price = Timed(timing.batch, list(own.seconds), list(own.tokens)), measured.study.price_per_hour
        cost = Cost(price).per_thousand(timed.requests_per_second) if price else math.inf
        ratio = ratio_interval(own.seconds, theirs.seconds) if theirs is not None and name != reference else None
        found.append(
            Speed(
                batch=timing.batch,
                calls=len(own.seconds),
                p50=timed.percentile(50),
                p95=timed.percentile(95),
                tokens_per_second=timed.tokens_per_second,
                requests_per_second=timed.requests_per_second,
                cost_per_thousand=cost if math.isfinite(cost) else None,
                speedup=None if ratio is None else Ratio(*ratio),
            )
        )
    return found


# ---- likelihood and baselines


def _likelihood(measured: Measurements) -> list[Likelihood]:
    """Bits per byte of the test rows under each family, compared on the same rows."""
    metric, found = BitsPerByte(), []
    first: Array | None = None
    for family in measured.study.families:
        rows = [one for one in measured.likelihoods if one.family == family]
        if not rows:
            continue
        values = np.stack([BitsPerByte.of(one.nats, one.bytes) for one in rows])
        against = None
        if family == measured.study.baseline:
            first = values
        elif first is not None and first.shape[1:] == values.shape[1:]:
            margin = LIKELIHOOD_MARGIN * stats.point(first, metric.combine)
            against = _difference(values, first, metric, margin)
        found.append(
            Likelihood(
                family=family,
                is_bound=rows[0].is_bound,
                seeds=len(rows),
                rows=values.shape[1],
                error=float(np.sqrt(np.mean(np.square([one.error for one in rows])) / len(rows))),
                bits_per_byte=stats.interval(values, metric.combine),
                against_baseline=against,
            )
        )
    return found


def _baselines(measured: Measurements) -> Baselines:
    answers = measured.baselines
    if answers is None:
        return Baselines()
    people = answers.human_texts
    return Baselines(
        texts=tuple(BaselineTexts(name, _scored(measured, texts)) for name, texts in answers.texts.items()),
        human_texts=_scored(measured, people) if len(people) == len(measured.test) else None,
        ngram=Ngram(answers.order, answers.bits_per_byte),
    )


def _scored(measured: Measurements, texts: Sequence[str]) -> dict[str, Interval]:
    """Quality of texts that no model of the study generated."""
    found = {}
    for metric in measured.metrics:
        found[metric.name] = stats.interval(score(metric, texts, measured.test).stats, metric.combine)
    return found


# ---- references, lengths and samples


def _references(measured: Measurements) -> dict[str, float]:
    """Properties of the reference texts, for metrics that have no better or worse."""
    own = [item.references[0] for item in measured.test]
    return {m.name: score(m, own, measured.test).value for m in measured.metrics if not m.better}


def _buckets(measured: Measurements, selected: dict[str, Selected]) -> list[LengthBucket]:
    """The primary metric of the chosen settings by tokens of the reference."""
    metric = measured.primary
    lengths = np.array([item.tokens for item in measured.test])
    found = []
    for low, high in zip(BUCKETS, (*BUCKETS[1:], 1 << 30), strict=True):
        inside = (lengths > low) & (lengths <= high)
        if inside.sum() < FEWEST_IN_BUCKET:
            continue
        values = {}
        for name in selected_names(selected):
            statistics = measured.statistics("test", name, metric)
            if statistics is not None:
                values[name] = stats.interval(statistics[:, inside], metric.combine, resamples=500)
        found.append(LengthBucket(low, min(high, int(lengths.max())), int(inside.sum()), values))
    return found


def _samples(measured: Measurements, selected: dict[str, Selected]) -> list[Sample]:
    """Items spread evenly over the lengths of the references, with the texts of each chosen setting."""
    texts = {name: found[0].texts for name in selected_names(selected) if (found := measured.texts_of("test", name))}
    order = sorted(range(len(measured.test)), key=lambda i: (measured.test[i].tokens, i))
    count = min(SAMPLES, len(order))
    shown = [order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)]
    return [
        Sample(
            prompt=measured.test[i].prompt,
            references=measured.test[i].references,
            texts={name: written[i] for name, written in texts.items()},
        )
        for i in shown
    ]
