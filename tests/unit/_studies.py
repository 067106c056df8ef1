"""Measurements of a finished study, made by hand for the tests of analysis and report: no model is run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from redraft.compare.analysis import analyse
from redraft.compare.measurements import (
    BaselineAnswers,
    Curve,
    CurvePoint,
    DataSummary,
    GeneratedTexts,
    Machine,
    Measurements,
    RowLikelihoods,
    Timing,
    TrainingRun,
    Validation,
)
from redraft.compare.plan import Plan
from redraft.compare.record import Record
from redraft.compare.study import Study
from redraft.config import to_mapping
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import Item
from redraft.evaluation.texts import GenerationRun
from redraft.evaluation.timing import TimedCalls
from redraft.models.transformer import Config
from redraft.tasks import infer_task


def config(family: str, sampler: str, **options: Any) -> DecodingConfig:
    """A setting as the grid of a study has it."""
    return DecodingConfig(sampler, options, temperature=0.0, top_p=1.0, family=family)


GREEDY = config("autoregressive", "autoregressive")
BEAM = config("autoregressive", "autoregressive", beams=4)
FEW, MANY = (config("masked", "confidence", steps=steps) for steps in (2, 8))
SETTINGS = (GREEDY, BEAM, FEW, MANY)
WORDS = ["haus", "rot", "hund", "sieht", "den", "alten", "mann", "heute", "wieder", "gern", "dort", "nicht"]


def items(count: int, seed: int) -> tuple[Item, ...]:
    """Prompts and references of 4 to 30 words."""
    draw = random.Random(seed)
    lengths = [4 + 26 * i // count for i in range(count)]
    return tuple(Item(f"prompt {seed} {i}", (" ".join(draw.choices(WORDS, k=n)),), n) for i, n in enumerate(lengths))


def damaged(rows: tuple[Item, ...], share: float, seed: int) -> tuple[str, ...]:
    """The references with about this share of their words replaced."""
    draw = random.Random(seed)
    texts = []
    for row in rows:
        words = row.references[0].split()
        texts.append(" ".join(draw.choice(WORDS) + "x" if draw.random() < share else w for w in words))
    return tuple(texts)


def measured(
    damage: dict[str, float] | None = None,
    seconds: dict[str, float] | None = None,
    seeds: int = 3,
    baseline: float = 0.9,
    count: int = 80,
    **fields: Any,
) -> Measurements:
    """A study in which a setting's words are wrong with the given probability and its calls take the given time.

    Args:
        baseline: the same probability for the texts of a trivial system.
    """
    damage = {GREEDY.id: 0.2, BEAM.id: 0.1, FEW.id: 0.4, MANY.id: 0.1, **(damage or {})}
    seconds = {GREEDY.id: 0.2, BEAM.id: 0.6, FEW.id: 0.1, MANY.id: 0.3, **(seconds or {})}
    study = Study(data="mine.jsonl", seeds=seeds, price_per_hour=2.0, **fields)
    validation, test = items(40, seed=1), items(count, seed=2)
    found = Measurements(
        study=study,
        plan=Plan(1000, "toy", 100, 50, 30, count, 40, 4, {"tokens": 1000}, SETTINGS),
        choice=infer_task([], "translation"),
        data=DataSummary(
            source="mine.jsonl",
            hash="0" * 24,
            columns={"input": "a", "target": "b"},
            rows={"train": 900, "validation": 40, "test": count},
            notes=(),
            leaks=0,
            paired=True,
            validation_items=40,
            test_items=count,
        ),
        validation=validation,
        test=test,
        machine=Machine("cpu", cpu="a chip", cores=2, threads=2, torch="2", python="3.11"),
        command="redraft compare --data mine.jsonl",
    )
    sizes = tuple(len(item.references[0]) for item in test)
    for seed in range(seeds):
        for number, family in enumerate(study.families):
            found.training.append(training(family, seed))
            nats = tuple((1.0 + 0.2 * number) * 3.0 * item.tokens for item in test)
            found.likelihoods.append(RowLikelihoods(family, seed, nats, sizes, number > 0, 0.01 * number, 8))
        for number, setting in enumerate(SETTINGS):
            for part, rows in (("validation", validation), ("test", test)):
                texts = damaged(rows, damage[setting.id], seed=100 * seed + number)
                found.texts.append(generated(setting, part, seed, texts))
    for batch in (1, 32):
        entries = [
            TimedCalls(s.id, tuple(seconds[s.id] * f for f in (1, 1.1, 0.9, 1)), (10 * batch,) * 4) for s in SETTINGS
        ]
        found.timings.append(Timing(batch, tuple(entries)))
    trivial = {
        "copying the input": tuple(item.prompt for item in test),
        "the nearest training example": damaged(test, baseline, 7),
    }
    found.baselines = BaselineAnswers(trivial, (), 6, 3.0)
    return found


def constrained(regex: str) -> Measurements:
    """A study in which the chosen settings generate the same texts under a constraint as without it."""
    found = measured(constraint={"regex": regex})
    for name in (BEAM.id, MANY.id):
        found.texts += [replace(one, constrained=True) for one in found.texts_of("test", name)]
    return found


def record(**fields: Any) -> Record:
    """The record of such a study."""
    return analyse(measured(**fields))


def training(family: str, seed: int) -> TrainingRun:
    points = tuple(CurvePoint(t, 3 - t / 1000, 0.0, t / 500) for t in (500, 1000))
    return TrainingRun(
        family=family,
        seed=seed,
        dropout=0.0,
        kept=True,
        parameters=140_000,
        steps=9,
        tokens=1000,
        passes=2.0,
        flops=1e12,
        seconds=10.0,
        tokens_per_second=100.0,
        peak_memory=10**9,
        validation=Validation(2.0, 0.01, family != "autoregressive"),
        curve=Curve(points),
        model=f"models/{family}-{seed}",
    )


def generated(setting: DecodingConfig, part: Any, seed: int, texts: tuple[str, ...]) -> GeneratedTexts:
    tokens = tuple(max(1, len(text.split())) for text in texts)
    work = {"passes": 10, "queries": 50 * len(texts), "pairs": 900 * len(texts), "targets": sum(tokens)}
    run = GenerationRun(
        texts=list(texts),
        nfe=[setting.steps or n for n in tokens],
        tokens=list(tokens),
        finished=len(texts),
        work=work | {"encoded": 0, "encoded_pairs": 0},
        seconds=1.0,
        peak_memory=5 * 10**8,
        memory_before=4 * 10**8,
        peak_exact=True,
        shape={"name": "transformer", **to_mapping(Config(vocab_size=100, dim=64, layers=2, heads=2))},
    )
    return GeneratedTexts(setting.id, part, seed, run)


def with_texts(one: GeneratedTexts, texts: Sequence[str]) -> GeneratedTexts:
    """The same piece with other texts."""
    return replace(one, run=replace(one.run, texts=list(texts)))
