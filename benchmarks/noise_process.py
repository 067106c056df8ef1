"""Continuous time against discrete steps, and kinds of noise, at equal tokens, network and seeds.

    python benchmarks/noise_process.py --data-root DIR [--tokens 150000] [--seeds 3] [--out FILE.json]

Trains small byte-level models on Tiny Shakespeare, plain text, with a training loop of this file. Within a table, all
runs share data, order of batches, network, optimizer, learning-rate schedule and validation noise.

1. *Time.* Masked diffusion, trained on its bound, with T = 8, 32, 128, 1000 discrete steps and in continuous time
   (with a random and with an exact number of masks). Every model is scored by the same continuous bound. Reported: the
   final bound, and the updates at which each run first reaches the worst final bound (linear between validations).
2. *Noise.* Autoregressive (exact), masked, uniform, and score entropy with both kinds of noise, each by its own bound.
   All but the first masked one use the cosine schedule.

Prints one JSON object for each training, then both tables as Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from redraft.likelihood import bound
from redraft.objectives.masked import Masked
from redraft.objectives.shared.vocabulary import backward
from redraft.train import optim, schedules
from redraft.train.recipe import Recipe
from redraft.train.setup import prepare

CHANCE = 1_000_000  # this many steps are continuous time, with a random number of masks
TIMES = {
    "T = 8": {"name": "masked", "weight": "bound", "steps": 8},
    "T = 32": {"name": "masked", "weight": "bound", "steps": 32},
    "T = 128": {"name": "masked", "weight": "bound", "steps": 128},
    "T = 1000": {"name": "masked", "weight": "bound", "steps": 1000},
    "continuous, random number of masks": {"name": "masked", "weight": "bound", "steps": CHANCE},
    "continuous, exact number of masks": {"name": "masked", "weight": "bound"},
}
NOISES = {
    "autoregressive (exact)": {"name": "autoregressive"},
    "masked, linear schedule": {"name": "masked", "weight": "bound"},
    "masked, cosine schedule": {"name": "masked", "weight": "bound", "schedule": "cosine"},
    "scores, absorbing": {"name": "sedd"},
    "uniform": {"name": "uniform"},
    "uniform, with time": {"name": "uniform", "timed": True},
    "scores, uniform": {"name": "sedd", "process": "uniform"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--checks", type=int, default=6, help="validations per training")
    parser.add_argument("--preset", default="toy")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--out", type=Path, help="where finished trainings are kept, to go on from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    done: dict[str, Any] = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for seed in range(args.seeds):
        for table in (*TIMES.values(), *NOISES.values()):
            key = json.dumps([table, seed])
            if key not in done:
                done[key] = run(table, seed, args)
                print(json.dumps({**table, "seed": seed, **done[key]}), flush=True)
                if args.out:
                    args.out.write_text(json.dumps(done))
    report(done, args.seeds)


def run(family: dict[str, Any], seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one model; returns its curve of (updates, nats per token, error)."""
    tables = {
        "data": {"source": "lm/tinyshakespeare", "data_root": args.data_root, "text": "text", "length": 128},
        "tokenizer": {"kind": "bytes"},
        "model": {"preset": args.preset},
        "family": family,
        "train": {"tokens": args.tokens, "batch_tokens": 516, "seed": seed, "validation_rows": 64},
    }
    recipe = Recipe.of(tables, "benchmark", folder=".")
    with tempfile.TemporaryDirectory() as work:
        parts = prepare(recipe, Path(work), torch.device("cpu"))
    model, spec = parts.model, parts.model.spec
    objective = model.family.objective()
    judge = Masked() if family["name"] == "masked" else objective
    network = model.network.requires_grad_().train()
    optimizer, noise = optim.adamw(network, args.lr, (0.9, 0.98), 0.05), torch.Generator().manual_seed(seed)
    tokens, updates, curve, begin = 0, 0, [], time.perf_counter()
    while tokens < args.tokens:
        batch = next(parts.loader)
        before, tokens = tokens, tokens + int(batch.valid.sum())
        backward(network, objective, objective.prepare(batch, spec, noise), 1.0)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=True)
        share = min(1.0, tokens / args.tokens)
        optim.step(optimizer, schedules.learning_rate("cosine", share, args.lr, 0.05, 0.1))
        updates += 1
        every = args.tokens // args.checks
        if tokens // every > before // every or tokens >= args.tokens:
            last = tokens >= args.tokens
            found = bound(network, parts.validation, judge, spec, samples=8 if last else 4)
            curve.append((updates, found.nats_per_token, found.nats_per_token_stderr))
    return {"curve": curve, "seconds": round(time.perf_counter() - begin, 1), "parameters": model.parameters}


def report(done: dict[str, Any], seeds: int) -> None:
    curves = {
        name: [done[json.dumps([table, seed])]["curve"] for seed in range(seeds)]
        for name, table in {**TIMES, **NOISES}.items()
    }
    goal = max(curve[-1][1] for name in TIMES for curve in curves[name])
    print(f"\n| trained with | bound at the end | updates to {goal:.3f} |\n|---|---:|---:|")
    for name in TIMES:
        last, when = [c[-1][1] for c in curves[name]], [reached(c, goal) for c in curves[name]]
        print(f"| {name} | {spread(last, 3)} | {spread(when, 0)} |")
    print("\n| family | nats per byte | Monte-Carlo error of one |\n|---|---:|---:|")
    for name in NOISES:
        print(f"| {name} | {spread([c[-1][1] for c in curves[name]], 3)} | {curves[name][0][-1][2]:.3f} |")


def reached(curve: list[tuple[int, float, float]], goal: float) -> float:
    """Updates at which a curve first reaches the goal, linear between its points; infinite if it never does."""
    for (u0, y0, _), (u1, y1, _) in zip([(0, float("inf"), 0.0), *curve], curve, strict=False):
        if y1 <= goal:
            return u1 if y0 == float("inf") else u0 + (u1 - u0) * (y0 - goal) / (y0 - y1)
    return float("inf")


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    error = statistics.stdev(values) if len(values) > 1 and max(values) < float("inf") else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


if __name__ == "__main__":
    main()
