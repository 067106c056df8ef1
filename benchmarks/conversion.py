"""Conversion of an autoregressive model: quality after few training tokens, for every objective of conversion.

    REDRAFT_DATA=DATA python -m benchmarks.conversion tatoeba --tokens 250000 1000000 --seeds 3 --out runs/conversion

An arm is a way to train. All arms of a task start from the same checkpoint and read the same number of tokens of the
same rows. ``autoregressive`` is the checkpoint trained further without conversion, and ``start`` the checkpoint itself.
Quality is the first metric of the task on the same test rows, with the most steps that take at most eight forward
passes a text in the mean; settings that take more are measured and not counted. One process runs the arms in turn. A
result is a line of ``results.jsonl``; what is there is not repeated, and an interrupted training is continued.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import redraft
from redraft.data.columns import Columns
from redraft.data.examples import load
from redraft.evaluation.config import Evaluation
from redraft.evaluation.evaluate import evaluate
from redraft.train.loop import train
from redraft.train.recipe import Recipe

MOST_PASSES = 8


@dataclass(frozen=True)
class Task:
    """Data, the checkpoint that every arm starts from, and what its training needs."""

    start: str
    data: str
    input: str
    target: str
    train: dict[str, Any]
    length: int
    new_tokens: int
    texts: int  # that the checkpoint writes


TASKS = {
    "tatoeba": Task(
        "translate-en-de-autoregressive",
        "mt/tatoeba.en-de",
        "src",
        "ref",
        {"lr": 1e-3, "batch_tokens": 1024},
        length=192,
        new_tokens=64,
        texts=8192,
    ),
    "multiplication": Task(
        "multiply-autoregressive",
        "multiplication:4x4:100000",
        "question",
        "rationale+answer",
        {"lr": 1e-3, "batch_tokens": 2048},
        length=96,
        new_tokens=96,
        texts=4096,
    ),
    "e2e": Task(
        "smollm2-135m",
        "data-to-text/e2e",
        "mr",
        "text",
        {"lr": 2e-4, "batch_tokens": 1024},
        length=192,
        new_tokens=96,
        texts=2048,
    ),
}


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    family: dict[str, Any]
    objective: dict[str, Any] = field(default_factory=dict)
    curriculum: dict[str, Any] = field(default_factory=dict)
    steps: tuple[int, ...] = (4, 6)  # tried in generation


_MASKED: dict[str, Any] = {"name": "masked", "weight": "uniform", "shift": 1}
_BLOCK: dict[str, Any] = {"name": "block", "block": 16, "weight": "uniform", "shift": 1}


def _texts(**also: Any) -> dict[str, Any]:
    return {"name": "teacher_texts", **({"also": also} if also else {})}


def _soft(share: float, **also: Any) -> dict[str, Any]:
    return {"name": "soft_targets", "share": share, **({"also": also} if also else {})}


ARMS = {
    "autoregressive": Arm({"name": "autoregressive"}, steps=(0,)),
    "plain": Arm(_MASKED),
    "complementary": Arm(_MASKED | {"complementary": True}),
    "anneal": Arm(_MASKED, curriculum={"name": "anneal", "until": 0.2}),
    "blocks": Arm(_MASKED, curriculum={"name": "blocks", "grow": 0.3, "shrink": 0.0}),
    "joint": Arm(_MASKED | {"autoregressive": 0.5}),
    "align": Arm(_MASKED, {"name": "align"}),
    "align 1": Arm(_MASKED, {"name": "align", "weight": 1.0}),
    "soft": Arm(_MASKED, _soft(0.5)),
    "soft 1": Arm(_MASKED, _soft(1.0)),
    "context": Arm(_MASKED, {"name": "context"}),
    "confident": Arm(_MASKED, {"name": "confident"}),
    "texts": Arm(_MASKED, _texts()),
    "texts, soft": Arm(_MASKED, _texts(**_soft(0.5))),
    "texts, align 1": Arm(_MASKED, _texts(name="align", weight=1.0)),
    "texts, align 1, soft": Arm(_MASKED, _texts(name="align", weight=1.0, also=_soft(0.5))),
    "block": Arm(_BLOCK),
    "block, Fast-dLLM v2": Arm(_BLOCK | {"complementary": True, "padding": "mask"}),
    "block, on policy": Arm(_BLOCK, {"name": "on_policy", "generation": {"steps": 6}}),
    "block, texts": Arm(_BLOCK, _texts()),
    "block, texts, soft": Arm(_BLOCK, _texts(**_soft(0.5))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[250_000])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=200, help="test rows")
    parser.add_argument("--train-rows", type=int, default=0, help="training rows, evenly spaced; unset: all")
    parser.add_argument("--texts", type=int, default=0, help="that the checkpoint writes; unset: as the task has it")
    parser.add_argument("--data-root", default=os.environ.get("REDRAFT_DATA", ""))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start", default="", help="another checkpoint to start from, for example a fine-tuned one")
    parser.add_argument("--out", type=Path, default=Path("runs/conversion"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    task = TASKS[args.task]
    task = replace(task, texts=args.texts or task.texts)
    start, folder = args.start or task.start, args.out / args.task
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.jsonl"
    if args.train_rows:
        shorten(task, folder, args)
    cases = [
        ("start", 0, 0),
        *((arm, n, s) for n, s, arm in itertools.product(args.tokens, range(args.seeds), args.arms)),
    ]
    done = {(row["arm"], row["tokens"], row["seed"]) for row in lines(results) if row["start"] == start}
    for arm, tokens, seed in cases:
        if (arm, tokens, seed) in done:
            continue
        row: dict[str, Any] = {"task": args.task, "start": start, "arm": arm, "tokens": tokens, "seed": seed}
        if arm == "start":
            row["settings"] = measured(task, start, ARMS["autoregressive"], args)
        else:
            row |= trained(
                task, start, ARMS[arm], folder, f"{arm.replace(', ', '+').replace(' ', '')}-{tokens}-{seed}", row, args
            )
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{arm}, {tokens:,} tokens, seed {seed}: {json.dumps(row['settings'])}", flush=True)
    print(table([row for row in lines(results) if row["start"] == start]))


def shorten(task: Task, folder: Path, args: argparse.Namespace) -> None:
    """Write some training and validation rows, evenly spaced, where every run reads them."""
    splits = load(task.data, Columns(input=task.input, target=task.target), data_root=args.data_root or None)
    for name, every, count in (("train", splits.train, args.train_rows), ("validation", splits.validation, 512)):
        some = every if len(every) <= count else [every[at * len(every) // count] for at in range(count)]
        rows = [json.dumps({task.input: one.prompt, task.target: one.target}, ensure_ascii=False) for one in some]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def lines(path: Path) -> list[dict[str, Any]]:
    """The results so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trained(
    task: Task, start: str, arm: Arm, folder: Path, name: str, row: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Train an arm and measure it."""
    out = folder / name
    written = folder / "own_texts"  # the same for every run, unless the checkpoint differs, which their names tell
    (out / "train").mkdir(parents=True, exist_ok=True)
    written.mkdir(exist_ok=True)
    if not (out / "train" / "own_texts").exists():
        (out / "train" / "own_texts").symlink_to(written.resolve())
    objective = json.loads(json.dumps(arm.objective))
    if objective.get("name") == "teacher_texts":
        objective["texts"] = task.texts
    recipe = Recipe.of(
        {
            "data": {
                "source": str(folder.resolve() / "train.jsonl") if args.train_rows else task.data,
                "validation": str(folder.resolve() / "validation.jsonl") if args.train_rows else "",
                "data_root": args.data_root,
                "input": task.input,
                "target": task.target,
                "length": task.length,
                "too_long": "skip",
            },
            "model": {"from": start},
            "family": arm.family,
            "objective": objective,
            "curriculum": arm.curriculum,
            "train": {
                **task.train,
                "tokens": row["tokens"],
                "seed": row["seed"],
                "threads": args.threads,
                "dtype": "float32",
                "validate_every": 0,
                "validation_rows": 256,
            },
        }
    )
    result = train(recipe, out, device="cpu")
    assert result.validation is not None
    return {
        "flops": result.flops,
        "read": result.tokens,
        "nats": result.validation["nats_per_token"],
        "settings": measured(task, str(out), arm, args),
        "recipe": {"family": arm.family, "objective": objective, "curriculum": arm.curriculum, "train": task.train},
    }


def measured(task: Task, model: str, arm: Arm, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Quality and forward passes with each number of steps."""
    loaded = redraft.load(model, device="cpu")
    test = load(task.data, Columns(input=task.input, target=task.target), data_root=args.data_root or None).test
    found = []
    for steps in arm.steps:
        chosen: dict[str, Any] = {"steps": steps, "candidates": 1} if steps else {}
        settings = loaded.settings(max_new_tokens=task.new_tokens, temperature=0.0, **chosen)
        result = evaluate(
            loaded, test, Evaluation(data=task.data, rows=args.rows, samples=2), settings, lambda line: None
        ).tasks[""]
        metrics = {name: asdict(value) for name, value in result.metrics.items()}
        short = {name: [round(one[key], 2) for key in ("value", "low", "high")] for name, one in metrics.items()}
        found.append({"steps": steps, "passes": round(result.nfe, 2), **short})
    return found


def counted(row: dict[str, Any]) -> dict[str, Any] | None:
    """The setting of a result with the most steps within ``MOST_PASSES``; of an autoregressive model, its only one."""
    within = [one for one in row["settings"] if one["passes"] <= MOST_PASSES or not one["steps"]]
    return within[-1] if within else None


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: an arm in each row, the mean over seeds and its range, the gap to the checkpoint it started from."""
    first = next(iter(key for key in rows[0]["settings"][0] if key not in ("steps", "passes")))
    reference = next((counted(row) for row in rows if row["arm"] == "start"), None)
    out = [
        f"| tokens | arm | seeds | {first} | gap to the checkpoint | passes | nats a token | TFLOP |",
        "|---:|---|---:|---|---:|---:|---:|---:|",
    ]
    for tokens, arm, same in grouped(rows):
        found = [one for one in map(counted, same) if one is not None]
        if not found:
            continue
        values = [one[first][0] for one in found]
        mean, spread = statistics.fmean(values), f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        gap = "" if reference is None else f"{mean - reference[first][0]:+.1f}"
        nats = [row["nats"] for row in same if "nats" in row]
        cost = [row["flops"] / 1e12 for row in same if "flops" in row]
        out.append(
            f"| {tokens:,} | {arm} | {len(values)} | {mean:.1f}{spread} | {gap} | "
            f"{statistics.fmean(one['passes'] for one in found):.1f} | {statistics.fmean(nats) if nats else 0:.3f} | "
            f"{statistics.fmean(cost) if cost else 0:.1f} |"
        )
    return "\n".join(out)


def grouped(rows: list[dict[str, Any]]) -> Iterator[tuple[int, str, list[dict[str, Any]]]]:
    """Results by tokens and arm, in the order of the arms."""
    known = ["start", *ARMS]
    ordered = sorted(rows, key=lambda row: (row["tokens"], known.index(row["arm"])))
    for (tokens, arm), same in itertools.groupby(ordered, key=lambda row: (row["tokens"], row["arm"])):
        yield tokens, arm, list(same)


if __name__ == "__main__":
    main()
