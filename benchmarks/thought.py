"""Chains of thought: accuracy, forward passes and speed of diffusion and autoregressive models on the same problems.

    python benchmarks/thought.py --autoregressive runs/ar --masked runs/masked [--thought runs/thought]
        [--data multiplication:4x4] [--split test] [--rows 500] [--speed-rows 64] [--votes 5]

Texts are generated at temperature 0, and at 0.7 for majority votes. Accuracy is that of the final answer, with its 95 %
bootstrap interval over rows. Speeds are medians of three rounds in which the settings take turns, after one warmup
round: answers and tokens per second at batch 1 and 32, on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch

import redraft
from redraft.data.columns import Columns
from redraft.data.examples import load
from redraft.evaluation import stats
from redraft.evaluation.votes import majority_vote
from redraft.metrics.final_answer import FinalAnswer
from redraft.model import Model

ROUNDS, HEAT = 3, 0.7


@dataclass(frozen=True)
class Setting:
    """One way to solve the problems."""

    name: str
    model: Model
    options: dict[str, Any]
    votes: int = 1


def settings(args: argparse.Namespace) -> list[Setting]:
    """The settings for each model that is given."""
    length = {"max_new_tokens": args.tokens}
    ways: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "autoregressive": [("autoregressive", {})],
        "masked": [
            *((f"masked, {n} steps", {"sampler": "confidence", "steps": n}) for n in (1, 2, 4, 8, 16, 32)),
            *((f"masked, factor {f:g}", {"sampler": "factor", "options": {"factor": f}}) for f in (1.0, 0.2)),
        ],
        "thought": [(f"thought by thought, {n} steps each", {"sampler": "thought", "steps": n}) for n in (1, 2, 4)],
    }
    found: list[Setting] = []
    for kind, tried in ways.items():
        if getattr(args, kind) is None:
            continue
        model = redraft.load(getattr(args, kind))
        found += [Setting(name, model, {**length, **options}) for name, options in tried]
        if args.votes > 1:
            name, options = tried[-1]
            warm = {**length, **options, "temperature": HEAT}
            found.append(Setting(f"{name}, {args.votes} votes", model, warm, args.votes))
    return found


def solve(setting: Setting, prompts: list[str], batch: int) -> list[Any]:
    """Generate the texts of every prompt: ``votes`` samples of each, one prompt after the other."""
    repeated = [prompt for prompt in prompts for _ in range(setting.votes)]
    return setting.model.generate(repeated, batch_size=batch, **setting.options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for kind in ("autoregressive", "masked", "thought"):
        parser.add_argument(f"--{kind}")
    parser.add_argument("--data", default="multiplication:4x4")
    parser.add_argument("--split", default="test")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--speed-rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96, help="most tokens of a solution")
    parser.add_argument("--votes", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = getattr(load(args.data, Columns(input="question", target="rationale+answer")), args.split)[: args.rows]
    prompts, wanted = [row.prompt for row in rows], [row.target for row in rows]
    tried, metric = settings(args), FinalAnswer()
    seconds: dict[tuple[str, int], list[float]] = {}
    few = prompts[: args.speed_rows]
    for number in range(ROUNDS + 1):
        for setting in tried:
            for batch in (1, 32):
                some = few if batch == 32 else few[: max(4, len(few) // 8)]
                begin = time.perf_counter()
                texts = solve(setting, some, batch)
                if number:
                    taken = (time.perf_counter() - begin) / len(some)
                    seconds.setdefault((setting.name, batch), []).append(taken)
    print("| | right answers % | passes an answer | answers/s, batch 1 | batch 32 | tokens/s, batch 1 | batch 32 |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for setting in tried:
        texts = solve(setting, prompts, 32)
        chosen = [
            majority_vote(texts[at : at + setting.votes], attrgetter("text"))
            for at in range(0, len(texts), setting.votes)
        ]
        score = metric.score([text.text for text in chosen], wanted)
        around = stats.interval(score.stats[None], metric.combine)
        passes, tokens = (sum(map(of, texts)) / len(prompts) for of in (lambda t: t.nfe, lambda t: len(t.ids)))
        rate = [1 / statistics.median(seconds[setting.name, batch]) for batch in (1, 32)]
        cells = [f"{around.value:.1f} [{around.low:.1f}, {around.high:.1f}]", f"{passes:.1f}"]
        cells += [f"{one:.1f}" for one in rate] + [f"{tokens * one:.0f}" for one in rate]
        print(f"| {setting.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
