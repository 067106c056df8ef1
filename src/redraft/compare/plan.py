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
REPORTING = 8.0  # seconds of scoring and writing
CONSTRAINED = 1.5  # seconds with a constraint for each one without, roughly

Probe = Callable[[str, str], tuple[float, Model]]
Table = Callable[[int], dict[str, Any]]


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


def largest(tokens: int, vocab_size: int) -> str:
    """The largest preset that a token budget can train."""
    fitting = [name for name in SIZES if tokens >= TOKENS_PER_PARAMETER * parameters(name, vocab_size)]
    return fitting[-1] if fitting else SIZES[0]


def training_table(study: Study, tokens: int, pass_tokens: int, length: int, paired: bool) -> dict[str, Any]:
    """Fields of the recipe's [train], the same for every family.

    Small budgets get small batches, so that there are about a thousand updates; many passes over little data get
    dropout, and the model of the best validation is kept: each family at its best stopping point.
    """
    longest = length if paired else length + 1
    batch = 1 << max(10, min(13, (tokens // 1000).bit_length()))
    table: dict[str, Any] = {
        "tokens": tokens,
        "batch_tokens": max(batch, longest),
        "lr": 4e-4 if study.bases else 1.5e-3,
        "dropout": 0.1 if tokens > 5 * pass_tokens else 0.0,
        "keep_best": True,
        "validate_every": max(1, tokens // 8),
        "validation_rows": 256,
    }
    return {**table, **study.train}


def thin(settings: Sequence[Setting], baseline: str) -> list[Setting]:
    """About half of the grid: every other number of steps, the largest kept; then one length candidate only."""
    steps = sorted({s.steps for s in settings if s.steps is not None})
    if len(steps) > 2:
        kept = set(steps[::-1][::2])
        return [s for s in settings if s.steps is None or s.steps in kept]
    return [s for s in settings if s.family == baseline or s.candidates == 1]


def measured(study: Study, draft: Plan, probe: Probe, questions: Sequence[Item], table: Table, begun: float) -> Plan:
    """Fit size, tokens and grid into the minutes by measuring this machine.

    Args:
        draft: the plan before measuring; its preset is kept where it is not empty.
        probe: (family, preset) -> training tokens a second, and the model that came of it.
        questions: validation items to time decoding with.
        table: training tokens -> the recipe's [train].
        begun: time.monotonic() when the study began.
    Raises:
        UserError: the minutes don't suffice for any comparison.
    """
    minutes = study.minutes or DEFAULT_MINUTES
    total = minutes * 60 * SLACK
    left = total - (time.monotonic() - begun)
    tokens = 0
    chosen: tuple[str, dict[str, float], dict[str, Model]] | None = None
    for size in [draft.preset] if draft.preset or study.bases else SIZES:
        if chosen and tokens < TOKENS_PER_PARAMETER * parameters(size, draft.vocab_size):
            break  # it would be slower still
        found = {family: probe(family, size) for family in study.families}
        speeds = {family: speed for family, (speed, _) in found.items()}
        models = {family: model for family, (_, model) in found.items()}
        tokens = _affordable(left * (1 - EVALUATION), speeds, study.runs)
        enough = tokens >= TOKENS_PER_PARAMETER * models[study.baseline].parameters
        if chosen is None or enough:
            chosen = size, speeds, models
        if not enough:
            break
    assert chosen is not None
    size, speeds, models = chosen
    most = max(study.batch_sizes)
    batch = {s.id: _batch_seconds(models[s.family], s, questions[:most], draft.new_tokens) for s in draft.settings}
    single = {s.id: _batch_seconds(models[s.family], s, questions[:1], draft.new_tokens) for s in draft.settings}
    costs = Costs(batch, single, min(most, len(questions)))
    plan = within(replace(draft, preset=size), study, costs, left * EVALUATION)
    decode = costs.of(plan, study)
    left = total - (time.monotonic() - begun)
    tokens = _affordable(max(left - decode, 0.3 * left), speeds, study.runs)
    if tokens < FEWEST_TOKENS:
        raise UserError(
            f"{minutes:g} minutes are too few here: {max(tokens, 0):,} training tokens for each model.",
            "Give more --minutes, fewer seeds or steps, or fine-tune with --from.",
        )
    train = tokens * study.runs * sum(1 / speed for speed in speeds.values())
    stages = {"preparing": time.monotonic() - begun, "training": train, "decoding": decode}
    return replace(plan, tokens=tokens, train=table(tokens), seconds=stages)


@dataclass(frozen=True)
class Costs:
    """Measured seconds of each setting: of one full batch, and of one request alone."""

    batch: Mapping[str, float]
    single: Mapping[str, float]
    rows: int  # of the full batch

    def of(self, plan: Plan, study: Study) -> float:
        """Expected seconds of everything after training."""
        batches = study.seeds * (plan.test_rows + plan.validation_rows) / self.rows
        calls = plan.timed_calls + 1
        texts = sum(self.batch[s.id] * batches for s in plan.settings)
        race = sum(calls * (self.single[s.id] * (1 in study.batch_sizes) + self.batch[s.id]) for s in plan.settings)
        again = 0.0
        if study.constraint:  # two settings a family write the test items once more, and are timed in both ways
            again = CONSTRAINED * 2 * len(study.families) * (texts + race) / max(1, len(plan.settings))
        return texts + race + again + REPORTING


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


def _affordable(seconds: float, speeds: Mapping[str, float], seeds: int) -> int:
    """Tokens that every model of every family can be trained on in the time: equal tokens, not equal time."""
    return int(max(seconds, 0.0) / (seeds * sum(1 / speed for speed in speeds.values())))


def _batch_seconds(model: Model, setting: Setting, questions: Sequence[Item], new_tokens: int) -> float:
    """Seconds of one batch. A hardly trained model writes long texts, so this errs on the slow side."""
    longest = max(2, min(new_tokens, max(q.tokens for q in questions)))
    if setting.steps is not None and setting.steps > longest:
        longest = min(new_tokens, setting.steps)
    begin = time.perf_counter()
    settings = model.settings(max_new_tokens=longest, **setting.generation())
    for _ in model.draft([q.prompt for q in questions], settings):
        pass
    runtime.synchronise(model.network.device)
    return time.perf_counter() - begin
