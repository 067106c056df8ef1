"""Made-up values of the cells of a claim, so that analyses can be tested without training anything."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from redraft.config import to_mapping
from redraft.models.transformer import Config
from redraft.study.cells.base import Cell, ordered
from redraft.study.cells.controlled import FEWEST
from redraft.study.cells.data import Data, Source
from redraft.study.claim import Claim, TaskTable
from redraft.study.experiment import Experiment, Found, analysis_of
from redraft.study.finding import Finding

ROWS = 60
WORDS = ["haus", "rot", "hund", "sieht", "den", "alten", "mann", "heute", "wieder", "gern", "dort", "nicht"]
SHAPE = {"name": "transformer", **to_mapping(Config(vocab_size=100, dim=32, layers=1, heads=2))}
Quality = Callable[[Any, int], float]  # share of right words or rows of a cell, for the item with this number of words


def shrunk(name: str) -> Claim:
    """A claim with two seeds and two values of everything that is swept."""
    claim = Claim.load(name, seeds=2)
    decode = {}
    for key, one in claim.decode.items():
        ends = {option: (values[0], values[-1])[: len(values)] for option, values in one.sweep.items()}
        decode[key] = replace(one, sweep=ends)
    return replace(claim, decode=decode)


class Placeless(Experiment):
    """An experiment whose data have no files."""

    def _source(self, table: TaskTable) -> Source:
        return Source(table.source, table.source, table.text, table.input, table.target, table.prompt)


def items(data: Data) -> list[dict[str, Any]]:
    """References of 3 to 42 words; of a task of labels, one of three words."""
    draw, found = random.Random(0), []
    for number in range(ROWS):
        count = 3 + number % 40
        text = " ".join(draw.choices(WORDS, k=count)) if data.kind != "classification" else WORDS[number % 3]
        item = {"prompt": f"p {number}", "references": [text], "tokens": len(text.split()) + 1}
        found.append({**item, "task": "", "turns": []})
    return found


def written(cell: Any, quality: Quality) -> list[str]:
    """Texts in which a share of the words is right; of labels, a share of the rows. Equal shares give equal texts."""
    texts = []
    for number, item in enumerate(items(cell.data)):
        words = item["references"][0].split()
        share, draw = quality(cell, len(words)), random.Random(1000 * cell.trained.seed + number)
        texts.append(" ".join(word if draw.random() < share else "falsch" for word in words))
    return texts


def generated(cell: Any, quality: Quality) -> dict[str, Any]:
    """The value of texts."""
    texts = written(cell, quality)
    tokens = [len(text.split()) + 1 for text in texts]
    passes = [cell.config.steps or count for count in tokens]
    wide = cell.config.sampler != "autoregressive"
    queries = sum(p * (t if wide else 1) for p, t in zip(passes, tokens, strict=True))
    work = dict.fromkeys(("passes", "encoded", "encoded_pairs"), 0) | {"queries": queries, "targets": queries}
    work["pairs"] = 30 * queries
    return {"texts": texts, "nfe": passes, "tokens": tokens, "work": work, "shape": SHAPE}


def value_of(cell: Cell, quality: Quality) -> dict[str, Any]:
    """A plausible value for a cell of any kind."""
    return _MADE[cell.name](cell, quality)


def _data(cell: Any, quality: Quality) -> dict[str, Any]:
    task = "classification" if cell.kind == "classification" else "translation" if cell.paired else "generation"
    return {"items": {"test": items(cell), "validation": items(cell)}, "task": task, "train_bytes": 50_000}


def _trivial(cell: Any, quality: Quality) -> dict[str, Any]:
    return {"texts": {"copying the input": ["?"] * ROWS}, "bits_per_byte": 9.0}


def _train(cell: Any, quality: Quality) -> dict[str, Any]:
    curve = [{"step": s, "passes": s, "bits_per_byte": 4.0 - s / 10 + 0.01 * cell.seed} for s in (1, 2, 4, 8)]
    return {"curve": curve, "parameters": 1000, "tokens": 100}


def _timing(cell: Any, quality: Quality) -> dict[str, Any]:
    seconds = [[0.01 * (c.steps or 10) * f for f in (1.0, 1.01, 0.99)] for c in cell.configs]
    pairs = zip(cell.configs, seconds, strict=True)
    return {"entries": [{"id": c.id, "seconds": s, "tokens": [9] * 3} for c, s in pairs]}


def _pace(cell: Any, quality: Quality) -> dict[str, Any]:
    names = {"autoregressive": cell.new_tokens, **{f"masked, {s} steps": s for s in cell.steps}}
    return {"seconds": {n: [0.001 * s] * 3 for n, s in names.items()}, "steps": names, "parameters": 1}


def _judged(cell: Any, quality: Quality) -> dict[str, Any]:
    draw = random.Random(cell.id)
    rows = []
    for _ in range(ROWS):
        row = [0.0] * 8
        row[draw.randrange(4) if draw.random() < quality(cell, 9) else 0] = 1.0
        row[4 + draw.randrange(4)] = 1.0
        rows.append(row)
    nats = [[20.0, 9.0]] * ROWS
    return {**generated(cell, quality), "nats": nats, "human_nats": nats, "mauve": rows}


def _controlled(cell: Any, quality: Quality) -> dict[str, Any]:
    texts = [t for t, i in zip(written(cell, quality), items(cell.data), strict=True) if i["tokens"] > FEWEST]
    size = min(cell.rows, len(texts))
    return {"texts": texts[:size], "valid": [True] * size, "valid_without": [False] * size}


_MADE: dict[str, Callable[[Any, Quality], dict[str, Any]]] = {
    "data": _data,
    "trivial": _trivial,
    "train": _train,
    "texts": generated,
    "choices": lambda cell, quality: {"texts": written(cell, quality)},
    "likelihood": lambda cell, quality: {"nats": [9.0] * ROWS, "bytes": [9] * ROWS},
    "timing": _timing,
    "pace": _pace,
    "judged": _judged,
    "controlled": _controlled,
    "memory": lambda cell, quality: dict.fromkeys(("less", "full"), 8e6 if cell.family["name"] == "masked" else 1e6),
    "reconstruction": lambda cell, quality: {"hits": [9.0] * ROWS, "tokens": [9] * ROWS},
}


def finding(experiment: Experiment, quality: Quality) -> Finding:
    """What the analysis of a claim concludes from made-up values."""
    analysis, found = analysis_of(experiment.claim), Found()
    for _ in range(9):
        new = [cell for cell in ordered(analysis.cells(experiment, found)) if not found.has(cell)]
        if not new:
            return analysis.conclude(experiment, found)
        found.values |= {cell.id: value_of(cell, quality) for cell in new}
    raise AssertionError("the analysis asks for more and more cells")
