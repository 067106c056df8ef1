"""Decisions by slots in one pass against ranking by likelihood: accuracy, forward passes, positions and seconds.

    python -m benchmarks.decide --data ../shared/data --out runs/decide [--task e2e] [--tokens 6000000] [--rows 500]

It trains a masked and an autoregressive model on the same rows for the same number of tokens (once: the same --out uses
them again), and decides the test rows with every method. The tasks:

- e2e: six fields of a restaurant (type, food, price, area, family, rating; unknown where the data have none) from a
  sentence about it (E2E NLG). Labels have different numbers of tokens.
- e2e-three: three of these fields, with few enough combinations to score all of them.
- sst2: positive or negative, from a sentence of a review (SST-2).

With --zero-shot MODEL, a pretrained model decides the rows of sst2 without training. It prints one JSON object per
line: accuracy in percent (each slot, their mean, and all slots of a row), forward passes and positions for a row, and
its time one by one and in batches of 32, in ms. --tiny trains for a few updates, to check the script.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import redraft
from redraft.errors import UserError
from redraft.generation.decide import Decision
from redraft.model import Model
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from redraft.types import Forward

UNKNOWN = "unknown"
FIELDS = {
    "type": ("eatType", ["coffee shop", "pub", "restaurant"]),
    "food": ("food", ["Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"]),
    "price": ("priceRange", ["cheap", "less than £20", "moderate", "£20-25", "high", "more than £30"]),
    "area": ("area", ["city centre", "riverside"]),
    "family": ("familyFriendly", ["yes", "no"]),
    "rating": ("customer rating", ["low", "1 out of 5", "average", "3 out of 5", "high", "5 out of 5"]),
}
TASKS: Mapping[str, Sequence[str]] = {"e2e": tuple(FIELDS), "e2e-three": ("type", "area", "family"), "sst2": ("mood",)}
METHODS = {"masked": ("one_pass", "chain", "likelihood"), "autoregressive": ("chain", "likelihood")}
Row = dict[str, str]


def labels_of(task: str) -> dict[str, list[str]]:
    """The labels of each slot."""
    if task == "sst2":
        return {"mood": ["positive", "negative"]}
    return {name: [*FIELDS[name][1], UNKNOWN] for name in TASKS[task]}


def template(task: str) -> str:
    """The answer with a slot for each field."""
    return "[mood]" if task == "sst2" else "; ".join(f"{name}: [{name}]" for name in TASKS[task])


def rows_of(task: str, split: str, data: Path) -> list[Row]:
    """The rows of a split: the text, and the right label of each slot."""
    name = "glue/sst2" if task == "sst2" else "data-to-text/e2e"
    found = []
    with gzip.open(data / f"{name}.{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if task == "sst2":
                found.append({"text": row["sentence1"], "mood": row["label"]})
                continue
            given = dict(re.findall(r"(\w[\w ]*)\[(.*?)\]", row["mr"]))
            found.append({"text": row["text"], **{key: given.get(FIELDS[key][0], UNKNOWN) for key in TASKS[task]}})
    return found


def trained(task: str, family: str, data: Path, out: Path, tokens: int, preset: str) -> Path:
    """The folder of a model that was trained to answer a text with its filled slots."""
    rows = out / task / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        pattern, lines = template(task), []
        for row in rows_of(task, split, data):
            answer = re.sub(r"\[(\w+)\]", lambda slot, own=row: own[slot[1]], pattern)  # type: ignore[misc]
            lines.append(json.dumps({"question": row["text"], "answer": answer}, ensure_ascii=False) + "\n")
        (rows / f"rows.{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe = Recipe.of(
        {
            "data": {"source": str(rows), "input": "question", "target": "answer", "length": 192},
            "tokenizer": {"kind": "bpe", "vocab_size": 2000},
            "model": {"preset": preset},
            "family": {"name": family},
            "train": {"tokens": tokens, "batch_tokens": 2048, "lr": 2e-3, "validation_rows": 256},
        }
    )
    folder = out / task / family
    result = train(recipe, folder)
    print(json.dumps({"trained": str(folder), "tokens": tokens, "seconds": round(result.seconds)}), flush=True)
    return folder


@contextmanager
def counted(model: Model) -> Any:
    """Counts the positions that a model's networks run: yields a list that holds the number."""
    positions, original = [0], model.inference_network

    def wrapped(*arguments: Any) -> Callable[..., Any]:
        network = original(*arguments)

        def run(request: Forward, store: Any = None) -> Any:
            positions[0] += int((request.positions >= 0).sum())
            return network(request, store)

        return run

    def hook(_: Any, arguments: tuple[Any, ...]) -> None:
        positions[0] += int((arguments[0].positions >= 0).sum())

    handle = model.network.register_forward_pre_hook(hook)
    if original() is not model.network:  # a form of the network that is no module
        model.inference_network = wrapped  # type: ignore[method-assign]
    try:
        yield positions
    finally:
        handle.remove()
        model.__dict__.pop("inference_network", None)


def measure(
    model: Model, task: str, rows: Sequence[Row], text: str, prompt: str, single: int, **settings: Any
) -> dict[str, Any]:
    """Decide the rows in batches, and ``single`` of them one by one."""
    labels = labels_of(task)

    def decide(part: Sequence[Row]) -> list[Decision]:
        return model.decide(text, labels, [{"text": row["text"]} for row in part], prompt, **settings)

    decide(rows[:2])  # warm
    counting: AbstractContextManager[list[int]] = counted(model)
    with counting as positions:
        begin = time.perf_counter()
        found = [one for part in batches(rows, 32) for one in decide(part)]
        batched = (time.perf_counter() - begin) / len(rows)
    begin = time.perf_counter()
    for row in rows[:single]:
        decide([row])
    alone = (time.perf_counter() - begin) / max(1, min(single, len(rows)))
    pairs = list(zip(rows, found, strict=True))
    right = {name: 100 * sum(one.labels[name] == row[name] for row, one in pairs) / len(pairs) for name in labels}
    every = 100 * sum(all(one.labels[name] == row[name] for name in labels) for row, one in pairs) / len(pairs)
    return {
        "accuracy": {name: round(value, 1) for name, value in right.items()},
        "mean": round(sum(right.values()) / len(right), 2),
        "all_slots": round(every, 2),
        "nfe": sum(one.nfe for one in found) / len(found),
        "positions": round(positions[0] / len(rows), 1),
        "ms_alone": round(1000 * alone, 2),
        "ms_in_32": round(1000 * batched, 2),
    }


def batches(rows: Sequence[Row], size: int) -> Iterable[Sequence[Row]]:
    """Consecutive rows."""
    return (rows[begin : begin + size] for begin in range(0, len(rows), size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder that holds data-to-text/ and glue/.")
    parser.add_argument("--out", type=Path, default=Path("runs/decide"))
    parser.add_argument("--task", choices=tuple(TASKS), default="e2e")
    parser.add_argument("--tokens", type=int, default=6_000_000)
    parser.add_argument("--preset", default="1m")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--single", type=int, default=100, help="Rows that are also timed one by one.")
    parser.add_argument("--zero-shot", help="A pretrained model of plain text, such as smollm2-135m, for sst2.")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.tiny:
        args.tokens, args.preset, args.rows, args.single = 40_000, "toy", 20, 2
    rows = rows_of(args.task, "test", args.data)
    rows = [rows[i * len(rows) // args.rows] for i in range(min(args.rows, len(rows)))]
    if args.zero_shot:
        model = redraft.load(args.zero_shot)
        text = "Review: {text}\nSentiment: [mood]"
        for calibrate in (False, True):
            found = measure(model, "sst2", rows, text, "", args.single, calibrate=calibrate)
            print(json.dumps({"model": args.zero_shot, "calibrate": calibrate, **found}), flush=True)
        return
    for family, methods in METHODS.items():
        model = redraft.load(trained(args.task, family, args.data, args.out, args.tokens, args.preset))
        for method in methods:
            settings = {"by": "sum", "calibrate": False, "method": method}
            try:
                found = measure(model, args.task, rows, template(args.task), "{text}", args.single, **settings)
            except UserError as error:
                found = {"refused": str(error)}
            print(json.dumps({"task": args.task, "family": family, "method": method, **found}), flush=True)


if __name__ == "__main__":
    main()
