"""How large a model, how many tokens and which grid: named by the user, or measured so that the study ends in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from redraft import models, runtime
from redraft.compare.material import Item, Material
from redraft.compare.study import Setting, Study
from redraft.errors import UserError
from redraft.model import Model
from redraft.presets import preset as shape_of

DEFAULT_MINUTES = 8.5  # where no budget is given
SIZES = ("1m", "3m", "7m", "25m", "125m")
TOKENS_PER_PARAMETER = 5.0  # the largest size that gets this many is chosen; else the smallest
EVALUATION = 0.35  # share of the minutes that decoding may take
SLACK = 0.85  # share of the minutes that is planned for: machines are not as steady as one measurement
FEWEST_TEST, FEWEST_VALIDATION = 100, 50
FEWEST_TOKENS = 10_000  # of training: below this there is nothing to compare
CHECKING = 0.15  # most seconds of validation in training, for each one of updates; fewer rows are taken else
FEWEST_CHECKED = 16
REPORTING = 8.0  # seconds of scoring and writing
CONSTRAINED = 1.5  # seconds with a constraint for each one without, roughly
UPDATE = 3.0  # passes over the same tokens that an update takes the time of
CHECK_SAMPLES, LIKELIHOOD_SAMPLES = 4, 8  # noise draws per row of a bound, while training and of test rows

Table = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Probed:
    """What a short training told of a family at one size."""

    speed: float  # training tokens a second
    aside: float  # seconds of a run beside its updates: reading, building, writing
    model: Model

    def reading(self, tokens: float, samples: int) -> float:
        """Seconds of the likelihood of so many tokens: a pass over them, and one for each draw of noise of a bound."""
        return tokens * (1 if self.model.spec.schedule is None else samples) / (UPDATE * self.speed)


# (family, preset, fields of [train]) -> what a short training of it tells
Probe = Callable[[str, str, Mapping[str, Any]], Probed]
PACE = ("batch_tokens", "dropout")  # fields of [train] on which the speed depends, and which depend on the budget


@dataclass(frozen=True)
class Plan:
    """What will be done, and how long it should take."""

    tokens: int  # of training, for each model
    preset: str
    vocab_size: int
    length: int
    new_tokens: int
    test_rows: int
    validation_rows: int
    timed_calls: int
    train: dict[str, Any]  # fields of the recipe's [train]
    settings: tuple[Setting, ...]
    seconds: dict[str, float] = field(default_factory=dict)  # expected, by stage; empty where nothing was measured

    @property
    def eta_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def reserve(self) -> float:
        """Expected seconds of what must follow once the settings are chosen: timing them, testing two of each family,
        and the report."""
        chosen = min(1.0, 2 * len({s.family for s in self.settings}) / max(1, len(self.settings)))
        return sum(self.seconds.get(k, 0.0) * share for k, share in (("timing", 1), ("test", chosen), ("report", 1)))

    def lines(self, study: Study) -> list[str]:
        """The plan in words."""
        base = f"fine-tuning {', '.join(study.bases.values())}" if study.bases else f"from scratch, size {self.preset}"
        runs = f"{study.seeds} seed(s)" + (f" x {len(study.dropouts)} dropouts" if study.dropouts else "")
        text = [
            f"train    {len(study.families)} families x {runs}, {self.tokens:,} tokens each, {base}",
            f"decode   {len(self.settings)} settings, {self.validation_rows} validation and {self.test_rows} test rows",
            f"time     batch {', '.join(map(str, study.batch_sizes))}, {self.timed_calls} calls each",
        ]
        if self.seconds:
            stages = ", ".join(f"{name} {clock(s)}" for name, s in self.seconds.items())
            text.append(f"ETA      {clock(self.eta_seconds)} ({stages})")
        return text


def vocabulary(study: Study, material: Material) -> int:
    """Size of the vocabulary to train: one entry per 60 bytes or so of text, so that entries are met often enough."""
    if study.vocab_size:
        return study.vocab_size
    size = sum(len((e.prompt or "") + e.target) for e in material.train)
    fitting = [v for v in (512, 1024, 2048, 4096, 8192) if v * 60 <= size]
    return fitting[-1] if fitting else 512


def parameters(preset: str, vocab_size: int) -> int:
    """Weights of a preset, whatever the network: they are equal."""
    return models.parameters(shape_of(preset, vocab_size))


def largest(tokens: int, vocab_size: int, sizes: Sequence[str] = SIZES) -> str:
    """The largest of some presets that a token budget can train."""
    fitting = [name for name in sizes if tokens >= TOKENS_PER_PARAMETER * parameters(name, vocab_size)]
    return fitting[-1] if fitting else sizes[0]


def training_table(
    study: Study, tokens: int, pass_tokens: int, length: int, paired: bool, width: int = 256
) -> dict[str, Any]:
    """Fields of the recipe's [train], the same for every family; ``width`` is that of the widest network.

    The learning rate falls with the width (Yang et al. 2022, arXiv:2203.03466): wider checkpoints are moved less.
    Small budgets get small batches, so that there are about a thousand updates; many passes over little data get
    dropout, and the model of the best validation is kept: each family at its best stopping point.
    """
    longest = length if paired else length + 1
    batch = 1 << max(10, min(13, (tokens // 1000).bit_length()))
    table: dict[str, Any] = {
        "tokens": tokens,
        "batch_tokens": max(batch, longest),
        "lr": 1.5e-3 * min(1.0, 256 / width),
        "dropout": 0.1 if tokens > 5 * pass_tokens else 0.0,
        "keep_best": True,
        "validate_every": max(1, tokens // 8),
        "validation_rows": 256,
    }
    return {**table, **study.train}


def thin(settings: Sequence[Setting], baseline: str) -> list[Setting]:
    """About half of the grid: of each family every other number of steps, the largest kept; then one length candidate
    only."""
    steps: dict[str, list[int]] = {}
    for step, family in sorted({(s.steps, s.family) for s in settings if s.steps is not None}):
        steps.setdefault(family, []).append(step)
    kept = {family: found[::-1][::2] if len(found) > 2 else found for family, found in steps.items()}
    if kept != steps:
        return [s for s in settings if s.steps is None or s.steps in kept[s.family]]
    return [s for s in settings if s.family == baseline or s.candidates == 1]


def core(settings: Sequence[Setting], baseline: str) -> list[Setting]:
    """The part of the grid that no verdict can do without: what is left when nothing more can be thinned out."""
    kept = list(settings)
    while len(fewer := thin(kept, baseline)) < len(kept):
        kept = fewer
    return kept


def measured(
    study: Study,
    draft: Plan,
    probe: Probe,
    questions: Sequence[Item],
    table: Table,
    begun: float,
    *,
    row_tokens: float,
    held: int,
    sizes: Sequence[str] = SIZES,
) -> Plan:
    """Fit size, tokens and grid into the minutes by measuring this machine.

    Counted are the updates of all runs, what each run takes beside them, its validations, the likelihood of the test
    rows, writing and timing of the whole grid, and the report.

    Args:
        draft: the plan before measuring; its preset is kept where it is not empty.
        questions: validation items to time decoding with.
        table: training tokens -> the recipe's [train].
        begun: time.monotonic() when the study began.
        row_tokens: of a row, prompt and target, on average. held: rows for validation while training.
        sizes: presets to choose from.
    Raises:
        UserError: the minutes don't suffice for any comparison.
    """
    minutes = study.minutes or DEFAULT_MINUTES
    total = minutes * 60 * SLACK
    left = total - (time.monotonic() - begun)
    tokens = 0
    chosen: tuple[str, dict[str, Probed]] | None = None
    for size in [draft.preset] if draft.preset or study.bases else sizes:
        if chosen and tokens < TOKENS_PER_PARAMETER * parameters(size, draft.vocab_size):
            break  # it would be slower still
        found = {family: probe(family, size, {}) for family in study.families}
        tokens = _affordable(left * (1 - EVALUATION), found, study.runs)
        enough = tokens >= TOKENS_PER_PARAMETER * found[study.baseline].model.parameters
        if chosen is None or enough:
            chosen = size, found
        if not enough:
            break
    assert chosen is not None
    size, found = chosen
    guess = table(max(1, _affordable(left * (1 - EVALUATION), found, study.runs)))
    pace = {name: guess[name] for name in PACE if name in guess}
    found = {family: probe(family, size, pace) for family in study.families}  # once more, as it will be trained
    models = {family: one.model for family, one in found.items()}
    most = max(study.batch_sizes)
    batch = {s.id: _batch_seconds(models[s.family], s, questions[:most], draft.new_tokens) for s in draft.settings}
    single = {s.id: _batch_seconds(models[s.family], s, questions[:1], draft.new_tokens) for s in draft.settings}
    row = sum(one.reading(row_tokens, LIKELIHOOD_SAMPLES) for one in found.values())
    costs = Costs(batch, single, min(most, len(questions)), row)
    plan = within(replace(draft, preset=size), study, costs, left * EVALUATION)
    decode = costs.of(plan, study)
    left = total - (time.monotonic() - begun)
    budget = max(left - decode, 0.3 * left)
    tokens = _affordable(budget, found, study.runs)
    train = _checked(table(max(tokens, 1)), study, budget, found, row_tokens, held)
    checks = study.runs * sum(
        one.reading(_check_tokens(train, row_tokens, held), CHECK_SAMPLES) for one in found.values()
    )
    tokens = _affordable(budget - checks, found, study.runs)
    if tokens < FEWEST_TOKENS:
        raise UserError(
            f"{minutes:g} minutes are too few here: {max(tokens, 0):,} training tokens for each model.",
            "Give more --minutes, fewer seeds or steps, or fine-tune with --from.",
        )
    updates = study.runs * sum(tokens / one.speed + one.aside for one in found.values())
    stages = {"preparing": time.monotonic() - begun, "training": updates + checks, **costs.stages(plan, study)}
    rows = {"validation_rows": train["validation_rows"]} if "validation_rows" in train else {}
    return replace(plan, tokens=tokens, train={**table(tokens), **rows}, seconds=stages)


@dataclass(frozen=True)
class Costs:
    """Measured seconds of each setting: of one full batch, and of one request alone."""

    batch: Mapping[str, float]
    single: Mapping[str, float]
    rows: int  # of the full batch
    likelihood: float = 0.0  # of one test row, by all families

    def of(self, plan: Plan, study: Study) -> float:
        """Expected seconds of everything after training."""
        return sum(self.stages(plan, study).values())

    def stages(self, plan: Plan, study: Study) -> dict[str, float]:
        """The same, stage by stage."""
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
        if study.constraint:  # two settings a family write the test items once more, and are timed in both ways
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
    """Thin out calls, rows and grid until decoding fits: the grid last, because it is what the question is about."""
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
        else:
            return plan
    return plan


def clock(seconds: float) -> str:
    """``75`` -> ``1:15``."""
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


def _affordable(seconds: float, found: Mapping[str, Probed], runs: int) -> int:
    """Tokens that every model of every family can be trained on in the time: equal tokens, not equal time."""
    left = seconds - runs * sum(one.aside for one in found.values())
    return int(max(left, 0.0) / (runs * sum(1 / one.speed for one in found.values())))


def _check_tokens(train: Mapping[str, Any], row_tokens: float, held: int) -> float:
    """Tokens that the validations of one run read, each counted once."""
    every = train.get("validate_every", 0)
    times = max(1, train["tokens"] // every) if every else 1
    rows: float = times * row_tokens * min(held, train.get("validation_rows", held))
    return rows


def _checked(
    train: dict[str, Any], study: Study, seconds: float, found: Mapping[str, Probed], row_tokens: float, held: int
) -> dict[str, Any]:
    """[train] with no more validation rows than training can spare the time for; as many as the study asks for."""
    cost = study.runs * sum(
        one.reading(_check_tokens(train, row_tokens, held), CHECK_SAMPLES) for one in found.values()
    )
    if cost <= CHECKING * seconds or "validation_rows" in study.train:
        return train
    rows = min(held, train.get("validation_rows", held))
    return {**train, "validation_rows": max(min(rows, FEWEST_CHECKED), int(rows * CHECKING * seconds / cost))}


def _batch_seconds(model: Model, setting: Setting, questions: Sequence[Item], new_tokens: int) -> float:
    """Seconds of one batch. A hardly trained model writes long texts, so this errs on the slow side; one without steps
    may take as many as there may be tokens, and in a batch of weak texts one will."""
    longest = max(2, min(new_tokens, max(q.tokens for q in questions)))
    if setting.steps is None:
        longest = new_tokens
    elif setting.steps > longest:
        longest = min(new_tokens, setting.steps)
    begin = time.perf_counter()
    settings = model.settings(max_new_tokens=longest, **setting.generation())
    for _ in model.draft([q.prompt for q in questions], settings):
        pass
    runtime.synchronise(model.network.device)
    return time.perf_counter() - begin
