"""A finished study made by hand, for the tests of results and reports: no model is run."""

from __future__ import annotations

import random
from typing import Any

from redraft.compare.material import Item
from redraft.compare.plan import Plan
from redraft.compare.results import Record
from redraft.compare.study import Setting, Study
from redraft.config import to_mapping
from redraft.models.transformer import Config
from redraft.tasks import choose

GREEDY = Setting("autoregressive", "autoregressive")
BEAM = Setting("autoregressive", "autoregressive", {"beams": 4})
FEW, MANY = (Setting("masked", "confidence", {"steps": s}) for s in (2, 8))
SETTINGS = (GREEDY, BEAM, FEW, MANY)
WORDS = ["haus", "rot", "hund", "sieht", "den", "alten", "mann", "heute", "wieder", "gern", "dort", "nicht"]


def items(count: int, seed: int) -> list[Item]:
    """Prompts and references of 4 to 30 words."""
    draw = random.Random(seed)
    lengths = [4 + 26 * i // count for i in range(count)]
    return [Item(f"prompt {seed} {i}", (" ".join(draw.choices(WORDS, k=n)),), n) for i, n in enumerate(lengths)]


def damaged(rows: list[Item], share: float, seed: int) -> list[str]:
    """The references with about this share of their words replaced."""
    draw = random.Random(seed)
    texts = []
    for row in rows:
        words = row.references[0].split()
        texts.append(" ".join(draw.choice(WORDS) + "x" if draw.random() < share else w for w in words))
    return texts


def record(
    damage: dict[str, float] | None = None,
    seconds: dict[str, float] | None = None,
    seeds: int = 3,
    floor: float = 0.9,
    count: int = 80,
    **fields: Any,
) -> Record:
    """A study in which a setting's words are wrong with the given probability and its calls take the given time."""
    damage = {GREEDY.id: 0.2, BEAM.id: 0.1, FEW.id: 0.4, MANY.id: 0.1, **(damage or {})}
    seconds = {GREEDY.id: 0.2, BEAM.id: 0.6, FEW.id: 0.1, MANY.id: 0.3, **(seconds or {})}
    study = Study(data="mine.jsonl", seeds=seeds, price_per_hour=2.0, **fields)
    plan = Plan(1000, "toy", 100, 50, 30, count, 40, 4, {"tokens": 1000}, SETTINGS)
    validation, test = items(40, seed=1), items(count, seed=2)
    cells: list[dict[str, Any]] = []
    for seed in range(seeds):
        for number, family in enumerate(study.families):
            cells.append(training(family, seed))
            wrong = 1.0 + 0.2 * number
            nats = [wrong * 3.0 * t.tokens for t in test]
            sizes = [len(t.references[0]) for t in test]
            extra = {"is_bound": number > 0, "error": 0.01 * number, "samples": 8, "bytes": sizes}
            cells.append({"kind": "likelihood", "family": family, "seed": seed, "nats": nats, **extra})
        for number, setting in enumerate(SETTINGS):
            for part, rows in (("validation", validation), ("test", test)):
                texts = damaged(rows, damage[setting.id], seed=100 * seed + number)
                cells.append(written(setting, part, seed, texts))
    for batch in (1, 32):
        entries = [{"id": s.id, "seconds": [seconds[s.id] * f for f in (1, 1.1, 0.9, 1)]} for s in SETTINGS]
        entries = [{**e, "tokens": [10 * batch] * 4} for e in entries]
        cells.append({"kind": "race", "batch": batch, "entries": entries})
    trivial = {"copying the input": [t.prompt for t in test], "the nearest training example": damaged(test, floor, 7)}
    cells.append({"kind": "floors", "texts": trivial, "people": [], "order": 6, "bits_per_byte": 3.0})
    return Record(
        study=study,
        plan=plan,
        choice=choose([], "translation"),
        validation=validation,
        test=test,
        cells=cells,
        missing=[],
        data={
            "source": "mine.jsonl",
            "sha": "0" * 24,
            "columns": {"input": "a", "target": "b"},
            "rows": {"train": 900, "validation": 40, "test": count},
            "notes": [],
            "leaks": 0,
            "paired": True,
        },
        machine={"device": "cpu", "cpu": "a chip", "cores": 2, "threads": 2, "torch": "2", "python": "3.11"},
        command="redraft compare --data mine.jsonl",
    )


def training(family: str, seed: int) -> dict[str, Any]:
    points = [{"tokens": t, "bits_per_byte": 3 - t / 1000, "bits_error": 0.0, "passes": t / 500} for t in (500, 1000)]
    check = {"bits_per_byte": 2.0, "bits_error": 0.01, "is_bound": family != "autoregressive"}
    sizes = {"parameters": 140_000, "steps": 9, "tokens": 1000, "passes": 2.0, "flops": 1e12, "seconds": 10.0}
    curve = {"validation": points, "update": []}
    out = f"models/{family}-{seed}"
    rest = {"peak_memory": 10**9, "validation": check, "curve": curve, "out": out}
    return {"kind": "train", "family": family, "seed": seed, **sizes, **rest}


def written(setting: Setting, part: str, seed: int, texts: list[str]) -> dict[str, Any]:
    tokens = [max(1, len(t.split())) for t in texts]
    work = {"passes": 10, "queries": 50 * len(texts), "pairs": 900 * len(texts), "wanted": sum(tokens)}
    work |= {"encoded": 0, "encoded_pairs": 0}
    nfe = [setting.steps or n for n in tokens]
    rest = {"nfe": nfe, "tokens": tokens, "finished": len(texts), "work": work, "seconds": 1.0}
    memory = {"peak_memory": 5 * 10**8, "memory_before": 4 * 10**8, "peak_exact": True}
    shape = {"name": "transformer", **to_mapping(Config(vocab_size=100, dim=64, layers=2, heads=2))}
    found = {"kind": "texts", "id": setting.id, "part": part, "family": setting.family, "seed": seed, "texts": texts}
    return {**found, **rest, **memory, "shape": shape}
