"""Fits a study into a number of minutes by measuring how fast this machine trains and decodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from redraft import runtime
from redraft.compare.grid import thin
from redraft.compare.plan import (
    CHECK_SAMPLES,
    LIKELIHOOD_SAMPLES,
    SIZES,
    TOKENS_PER_PARAMETER,
    Plan,
    parameters,
)
from redraft.compare.study import Study
from redraft.errors import UserError
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import Item
from redraft.evaluation.timing import FEWEST_CALLS
from redraft.model import Model

DEFAULT_MINUTES = 8.5  # if no budget is given
LARGE_MINUTES = 55.0  # if no budget is given, and large checkpoints are trained on a CPU
EVALUATION = 0.35  # share of the minutes that decoding may take
SLACK = 0.85  # share of the minutes that is planned for: one measurement is not exact
FEWEST_TEST, FEWEST_VALIDATION = 100, 50
FEWEST_TOKENS = 10_000  # of training; with fewer there is nothing to compare
CHECKING = 0.15  # validation may take this share of the training time; otherwise it gets fewer rows
FEWEST_CHECKED = 16
REPORTING = 8.0  # seconds of analysis and writing
CONSTRAINED = 1.5  # rough ratio of decoding time with a constraint to decoding time without
EXTRAPOLATED = 5.0  # seconds of a batch from which decoding with more steps is not timed but extrapolated
UPDATE = 3.0  # an update takes the time of this many forward passes over the same tokens
PACE = ("batch_tokens", "dropout")  # fields of [train] that affect speed and depend on the budget

Table = Callable[[int], dict[str, Any]]  # training tokens -> the recipe's [train]


@dataclass(frozen=True)
class Probe:
    """Measurements from a short training run of one family at one size."""

    speed: float  # training tokens per second, in tokens of the baseline
    overhead: float  # seconds of a run beside its updates: reading, building, writing
    model: Model

    def reading(self, tokens: float, samples: int) -> float:
        """Seconds of the likelihood of this many tokens: one pass, or one pass per noise draw for a bound."""
        return tokens * (1 if self.model.spec.family.schedule is None else samples) / (UPDATE * self.speed)


# (family, preset, fields of [train]) -> measurements of a short training run
Measure = Callable[[str, str, Mapping[str, Any]], Probe]


@dataclass(frozen=True)
class Workload:
    """Sizes of the data that the time depends on."""

    items: Sequence[Item]  # validation items to time decoding with
    row_tokens: float  # mean tokens of a row, prompt and target
    validation_rows: int  # available for validation in training
    new_tokens: Mapping[str, int] = field(default_factory=dict)  # limit of an output by family; else the plan's


def fit_plan(
    study: Study,
    draft: Plan,
    measure: Measure,
    workload: Workload,
    table: Table,
    begun: float,
    sizes: Sequence[str] = SIZES,
) -> Plan:
    """Choose model size, training tokens and grid so that the study ends in time.

    Counted are the updates of all runs, their overhead and validations, the likelihood of the test rows, decoding and
    timing of the whole grid, and the report.

    Args:
        study: with its minutes (``limited``). draft: the plan before measuring; a preset in it is kept.
        measure: trains for a few updates.
        begun: time.monotonic() when the study began.
        sizes: presets to choose from.
    Raises:
        UserError: the minutes are too few for any comparison.
    """
    total = study.minutes * 60 * SLACK
    left = total - (time.monotonic() - begun)
    fixed = draft.preset or study.bases
    size, probes = _choose_size(study, draft, measure, left * (1 - EVALUATION), [draft.preset] if fixed else sizes)
    guess = table(max(1, _affordable(left * (1 - EVALUATION), probes, study.runs)))
    pace = {name: guess[name] for name in PACE if name in guess}
    probes = {family: measure(family, size, pace) for family in study.families}  # again, with the final batch size
    costs = _decoding_costs(study, draft, probes, workload)
    plan = within(replace(draft, preset=size), study, costs, left * EVALUATION)
    decode = costs.of(plan, study)
    left = total - (time.monotonic() - begun)
    budget = max(left - decode, 0.3 * left)
    tokens = _affordable(budget, probes, study.runs)
    train = _limit_validation(table(max(tokens, 1)), study, budget, probes, workload)
    checks = _validation_seconds(train, study, probes, workload)
    tokens = _affordable(budget - checks, probes, study.runs)
    if tokens < FEWEST_TOKENS:
        raise UserError(
            f"{study.minutes:g} minutes allow only {max(tokens, 0):,} training tokens for each model on this machine.",
            "Give more --minutes, use fewer seeds or steps, or fine-tune with --from.",
        )
    updates = study.runs * sum(tokens / one.speed + one.overhead for one in probes.values())
    stages = {"preparing": time.monotonic() - begun, "training": updates + checks, **costs.stages(plan, study)}
    rows = {"validation_rows": train["validation_rows"]} if "validation_rows" in train else {}
    return replace(plan, tokens=tokens, train={**table(tokens), **rows}, seconds=stages)


def _choose_size(
    study: Study, draft: Plan, measure: Measure, seconds: float, sizes: Sequence[str]
) -> tuple[str, dict[str, Probe]]:
    """The largest preset that gets enough training tokens in the time, with its measurements."""
    tokens = 0
    chosen: tuple[str, dict[str, Probe]] | None = None
    for size in sizes:
        if chosen and tokens < TOKENS_PER_PARAMETER * parameters(size, draft.vocab_size):
            break  # a larger size is slower still
        found = {family: measure(family, size, {}) for family in study.families}
        tokens = _affordable(seconds, found, study.runs)
        enough = tokens >= TOKENS_PER_PARAMETER * found[study.baseline].model.network.parameter_count
        if chosen is None or enough:
            chosen = size, found
        if not enough:
            break
    assert chosen is not None
    return chosen


@dataclass(frozen=True)
class Costs:
    """Measured seconds of each setting: of a full batch, and of a single request."""

    batch: Mapping[str, float]
    single: Mapping[str, float]
    rows: int  # of the full batch
    likelihood: float = 0.0  # of one test row, by all families

    def of(self, plan: Plan, study: Study) -> float:
        """Expected seconds of everything after training."""
        return sum(self.stages(plan, study).values())

    def stages(self, plan: Plan, study: Study) -> dict[str, float]:
        """Expected seconds after training, by stage."""
        calls = plan.timed_calls + 1
        once = sum(self.batch[s.id] for s in plan.settings)
        validation, test = (
            study.seeds * -(-rows // self.rows) * once for rows in (plan.validation_rows, plan.test_rows)
        )
        timing = sum(
            calls * (self.single if size == 1 else self.batch)[s.id]
            for size in study.batch_sizes
            for s in plan.settings
        )
        again = 0.0
        if study.constraint:  # two settings per family decode the test items again, and are timed in both ways
            each = (validation + test + timing) / max(1, len(plan.settings))
            again = CONSTRAINED * 2 * len(study.families) * each
        return {
            "likelihood": study.seeds * plan.test_rows * self.likelihood,
            "validation": validation,
            "timing": timing,
            "test": test + again,
            "report": REPORTING,
        }


def within(plan: Plan, study: Study, costs: Costs, seconds: float) -> Plan:
    """Reduce timed calls, then rows, then the grid, then calls again, until decoding fits into the time."""
    while costs.of(plan, study) > seconds:
        fewer = thin(plan.settings, study.baseline)
        if plan.timed_calls > 6:
            plan = replace(plan, timed_calls=max(6, plan.timed_calls // 2))
        elif plan.test_rows > FEWEST_TEST or plan.validation_rows > FEWEST_VALIDATION:
            test, validation = max(FEWEST_TEST, plan.test_rows * 7 // 10), plan.validation_rows * 7 // 10
            plan = replace(
                plan,
                test_rows=min(plan.test_rows, test),
                validation_rows=min(plan.validation_rows, max(FEWEST_VALIDATION, validation)),
            )
        elif len(fewer) < len(plan.settings):
            plan = replace(plan, settings=tuple(fewer))
        elif plan.timed_calls > FEWEST_CALLS:
            plan = replace(plan, timed_calls=FEWEST_CALLS)
        else:
            return plan
    return plan


def limited(study: Study, large: bool) -> Study:
    """The study with its minutes, also where no budget was given.

    Args:
        large: it trains large checkpoints on a CPU.
    """
    return replace(study, minutes=LARGE_MINUTES if large else DEFAULT_MINUTES) if study.unlimited else study


def deadline(study: Study, begun: float) -> float:
    """time.monotonic() after which optional work is left out; infinite with a budget of tokens or passes."""
    return begun + 60 * study.minutes * 0.95 if study.minutes else float("inf")


def _affordable(seconds: float, probes: Mapping[str, Probe], runs: int) -> int:
    """Training tokens that every model of every family gets in this time: equal tokens, not equal time."""
    left = seconds - runs * sum(one.overhead for one in probes.values())
    return int(max(left, 0.0) / (runs * sum(1 / one.speed for one in probes.values())))


def _validation_seconds(
    train: Mapping[str, Any], study: Study, probes: Mapping[str, Probe], workload: Workload
) -> float:
    """Seconds of the validations of all runs."""
    every, held = train.get("validate_every", 0), workload.validation_rows
    times = max(1, train["tokens"] // every) if every else 1
    tokens = times * workload.row_tokens * min(held, train.get("validation_rows", held))
    return study.runs * sum(one.reading(tokens, CHECK_SAMPLES) for one in probes.values())


def _limit_validation(
    train: dict[str, Any], study: Study, seconds: float, probes: Mapping[str, Probe], workload: Workload
) -> dict[str, Any]:
    """[train] with fewer validation rows if validation would take too long; the study's own number is kept."""
    cost = _validation_seconds(train, study, probes, workload)
    if cost <= CHECKING * seconds or "validation_rows" in study.train:
        return train
    rows = min(workload.validation_rows, train.get("validation_rows", workload.validation_rows))
    return {**train, "validation_rows": max(min(rows, FEWEST_CHECKED), int(rows * CHECKING * seconds / cost))}


def _decoding_costs(study: Study, draft: Plan, probes: Mapping[str, Probe], workload: Workload) -> Costs:
    """Time each setting once on a full batch and once on a single request."""
    most, items = max(study.batch_sizes), workload.items

    def seconds(count: int) -> dict[str, float]:
        found: dict[str, float] = {}
        lines: dict[DecodingConfig, list[tuple[int, float]]] = {}  # by what settings share apart from their steps
        for setting in draft.settings:
            one, limit = probes[setting.family], workload.new_tokens.get(setting.family, draft.new_tokens)
            rest = replace(setting, options={k: v for k, v in setting.options.items() if k != "steps"})
            known = lines.setdefault(rest, [])
            guess = _on_line(known, setting.steps)
            if guess is None or guess < EXTRAPOLATED:
                guess = _batch_seconds(one.model, setting, items[:count], limit)
                known.append((setting.steps or 0, guess))
            found[setting.id] = guess
        return found

    most = min(most, len(items))
    row = sum(one.reading(workload.row_tokens, LIKELIHOOD_SAMPLES) for one in probes.values())
    return Costs(seconds(most), seconds(1), most, row)


def _on_line(known: Sequence[tuple[int, float]], steps: int | None) -> float | None:
    """Seconds of more steps on the line through the last two that were timed; None with fewer."""
    if steps is None or len(known) < 2:
        return None
    (first, before), (last, after) = known[-2:]
    return after + max(0.0, after - before) * (steps - last) / (last - first) if last > first else None


def _batch_seconds(model: Model, setting: DecodingConfig, items: Sequence[Item], new_tokens: int) -> float:
    """Seconds of one batch, rather too many than too few: a model with little training writes long outputs.

    A sampler without a number of steps may need as many steps as there are tokens.
    """
    longest = max(2, min(new_tokens, max(item.tokens for item in items)))
    if setting.steps is None:
        longest = new_tokens
    elif setting.steps > longest:
        longest = min(new_tokens, setting.steps)
    begin = time.perf_counter()
    settings = model.settings(max_new_tokens=longest, **setting.generation())
    for _ in model.start([item.asked for item in items], settings):
        pass
    runtime.synchronise(model.network.device)
    return time.perf_counter() - begin
