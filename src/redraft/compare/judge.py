"""The verdict of a study: one line for each chosen setting of the families that are compared with the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from redraft.compare.measurements import Measurements, same_tokens
from redraft.compare.results import (
    Alternative,
    BaselineChoice,
    Baselines,
    Likelihood,
    Outcome,
    Ratio,
    Role,
    SettingResult,
    Verdict,
    VerdictLine,
)
from redraft.compare.select import Selected
from redraft.compare.verdict import (
    BaselineCheck,
    Evidence,
    advice_text,
    advise,
    headline,
    inconclusive_reasons,
    sentence,
)
from redraft.evaluation import stats
from redraft.evaluation.timing import ratio_interval

_RANK = {"same": 0, "better": 0, "undecided": 1, "worse": 2}


def judge(
    measured: Measurements,
    selected: Mapping[str, Selected],
    baseline: BaselineChoice,
    settings: Sequence[SettingResult],
    baselines: Baselines,
    likelihood: Sequence[Likelihood],
) -> Outcome:
    """The verdict. An inconclusive study has no lines: nothing may be said about the families."""
    rows = {row.id: row for row in settings}
    first, fast = rows.get(baseline.setting), rows.get(baseline.speed_setting)
    reasons = inconclusive_reasons(baseline.family, _checks(measured, first, baselines, likelihood))
    lines: list[VerdictLine] = []
    if first is not None and fast is not None and not reasons:
        lines = _lines(measured, selected, rows, first, fast)
    return Outcome(
        inconclusive=reasons,
        preliminary=measured.study.seeds < 2,
        headline=headline(reasons, [line.text for line in lines], len(measured.missing)),
        advice=lines[0].advice if lines else None,
        advice_text=lines[0].advice_text if lines else "",
        lines=tuple(lines),
    )


def _checks(
    measured: Measurements, first: SettingResult | None, baselines: Baselines, likelihood: Sequence[Likelihood]
) -> list[BaselineCheck]:
    """What the baseline must beat: for pairs the trivial texts, for plain text the n-gram model's likelihood."""
    metric, found = measured.primary, []
    ours = first.quality.get(metric.name) if first is not None else None
    if ours:
        for row in baselines.texts:
            trivial = row.quality[metric.name].value
            found.append(BaselineCheck(row.name, metric.label, trivial, ours.value, metric.better))
    exact = next((one for one in likelihood if one.family == measured.study.baseline), None)
    if not measured.data.paired and baselines.ngram and exact:
        name, bits = f"a {baselines.ngram.order}-gram model of bytes", baselines.ngram.bits_per_byte
        found.append(BaselineCheck(name, "bits per byte", bits, exact.bits_per_byte.value, -1))
    return found


def _lines(
    measured: Measurements,
    selected: Mapping[str, Selected],
    rows: Mapping[str, SettingResult],
    first: SettingResult,
    fast: SettingResult,
) -> list[VerdictLine]:
    """The lines, the setting to deploy first: equal quality before worse, the fast setting before the best one."""
    lines: list[VerdictLine] = []
    for family, own in selected.items():
        if family == measured.study.baseline:
            continue
        roles = [("both", own.best)] if own.best == own.fast else [("best", own.best), ("fast", own.fast)]
        for role, name in roles:
            evidence = _evidence(measured, rows[name], first, fast)
            if evidence is not None:
                lines.append(_line(name, cast(Role, role), evidence))
    sizes = len(measured.timings_by_batch())
    lines.sort(
        key=lambda one: (
            _RANK[one.quality],
            bool(sizes) and len(one.alternatives) == sizes,
            one.role != "fast",
        )
    )
    return lines


def _line(name: str, role: Role, evidence: Evidence) -> VerdictLine:
    advice = advise(evidence)
    return VerdictLine(
        setting=name,
        role=role,
        quality=evidence.quality.verdict,
        compute=evidence.compute,
        faster_at=evidence.faster_at,
        alternatives=tuple(evidence.alternatives),
        advice=advice,
        text=sentence(evidence),
        advice_text=advice_text(evidence, advice),
    )


def _evidence(measured: Measurements, row: SettingResult, first: SettingResult, fast: SettingResult) -> Evidence | None:
    """The numbers about one setting; None if it was not compared with the baseline."""
    metric = measured.primary
    tested = row.against_baseline.get(metric.name)
    if tested is None:
        return None
    speedups = {speed.batch: speed.speedup for speed in row.speed if speed.speedup is not None}
    faster = {batch for batch, ratio in speedups.items() if ratio.word == "faster"}
    found = _alternatives(measured, row.id, fast.id) if faster else []
    ours, theirs = (one.work.flops_per_token if one.work else None for one in (row, fast))
    return Evidence(
        family=row.family,
        label=row.label,
        baseline=first.family,
        reference=first.label,
        speed_reference=fast.label,
        metric=metric.label.removesuffix(" %"),
        quality=tested,
        speedups=speedups,
        compute=ours / theirs if ours and theirs and same_tokens(measured.starts) else None,
        alternatives=[one for one in found if one.batch in faster],
        labels={name: setting.label for name, setting in measured.settings.items()},
    )


def _alternatives(measured: Measurements, name: str, reference: str) -> list[Alternative]:
    """Settings of the baseline family that score no lower than setting ``name`` and that it is not faster than.

    At most one for each batch size: the one that does so at most batch sizes, of several the fastest. The reference
    setting is left out, because every line says how fast the setting is against it.
    """
    metric = measured.primary
    ours = measured.statistics("test", name, metric)
    if ours is None or not metric.better:
        return []
    found: dict[str, list[Alternative]] = {}
    for setting in measured.settings.values():
        theirs = measured.statistics("test", setting.id, metric)
        if setting.family != measured.study.baseline or setting.id == reference or theirs is None:
            continue
        if metric.better * (stats.point(theirs, metric.combine) - stats.point(ours, metric.combine)) < 0:
            continue
        quality = stats.compare(theirs, ours, metric.combine, measured.margin, metric.better).verdict
        for timing in measured.timings_by_batch():
            mine, other = timing.of(name), timing.of(setting.id)
            if mine is not None and other is not None:
                speedup = Ratio(*ratio_interval(other.seconds, mine.seconds))
                if speedup.high >= 1:
                    one = Alternative(timing.batch, setting.id, cast(Verdict, quality), speedup)
                    found.setdefault(setting.id, []).append(one)
    order = sorted(found.values(), key=lambda each: (-len(each), -max(one.speedup.ratio for one in each)))
    first: dict[int, Alternative] = {}
    for each in order:
        for one in each:
            first.setdefault(one.batch, one)
    return [first[batch] for batch in sorted(first)]
