"""Preferences and rewards: the variance of the score, what rewards teach small models, and the cost of an update.

    python -m benchmarks.post_training variance             # shared noise or not, on a toy and on a trained model
    python -m benchmarks.post_training sudoku --seeds 3     # supervised, then rewards; masked and autoregressive
    python -m benchmarks.post_training json --seeds 3       # JSON that a masked model writes in few steps
    python -m benchmarks.post_training update [--lora]      # an update of smollm2-135m: memory, where the time goes

``--tiny`` runs the same code in about a minute. Each part prints its rows and one JSON object last. Models and logs
are kept in ``--out``; a part that is started again continues there.

``sudoku``: 4 x 4, with the 288 solutions split before puzzles are made of them, so that no solution of a test puzzle
was trained on. Solved is the share of puzzles whose cells are all right.

``json``: records as JSON, written by a masked model in fewer steps than tokens, without a constraint. The reward asks
for valid JSON of the schema alone; ``right`` (all values as asked for) shows what that reward does not see.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations, product
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import redraft
import redraft.rollouts
from redraft import config
from redraft.host_memory import peak_resident
from redraft.model import Model
from redraft.objectives.shared.vocabulary import evaluate
from redraft.posttraining.estimators.levels import Levels
from redraft.posttraining.reward import RewardLoss
from redraft.rewards import Answer, build_reward, scores
from redraft.train import loop
from redraft.train.logging import Event
from redraft.train.post_training import TextSampler
from redraft.train.recipe import Recipe
from redraft.types import Batch
from tests.laws.test_posttraining import P, R, pair_draws
from tests.tiny import pairs

ROOT = Path(__file__).parents[1]
BETA = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("variance", "sudoku", "json", "update"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--lora", action="store_true", help="update: train an adapter of rank 8")
    parser.add_argument("--out", type=Path, default=Path("runs/post-training"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    begun = time.monotonic()
    parts: dict[str, Callable[[argparse.Namespace], Any]] = {
        "variance": variance,
        "sudoku": sudoku,
        "json": records,
        "update": update,
    }
    found = parts[args.part](args)
    seconds = round(time.monotonic() - begun, 1)
    print(json.dumps({"benchmark": "post_training", "part": args.part, "seconds": seconds, "found": found}))


# ---- the variance of the preference score


def variance(args: argparse.Namespace) -> list[dict[str, Any]]:
    """V[s] of the estimated preference score s, over draws of the noise; means over pairs for a trained model."""
    found = []
    for name, theta in (("toy", P), ("toy, model = reference", R)):
        margin, chance = pair_draws(theta)
        mean = sum(chance[key] * s for key, s in margin.items())
        shared = sum(chance[key] * (s - mean) ** 2 for key, s in margin.items())
        found.append({"model": name, "levels": 1, "shared": shared})
        print(f"{name:24} 1 level   shared {shared:.8f}   (predicted: .00646213, without sharing .0375012; 0)")
    reference = redraft.load("translate-en-de-masked")
    rows = examples("test", 12 if args.tiny else 48)
    policy = preferred(args, reference)
    batch = as_batch(reference, rows)
    for levels in (1, 2, 4, 8):
        shared, apart = spread(policy, reference, batch, levels, draws=6 if args.tiny else 16)
        found.append({"model": "translate-en-de-masked", "levels": levels, "shared": shared, "not shared": apart})
        print(f"trained model            {levels} levels  shared {shared:.4f}   not shared {apart:.4f}", flush=True)
    return found


def examples(split: str, count: int) -> list[tuple[str, str, str]]:
    """Prompt, translation, and the translation of another sentence of about the same length."""
    path = ROOT / "recipes" / "toy" / "data" / f"tatoeba.en-de.{split}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ordered = sorted(rows, key=lambda row: len(row["ref"]))
    other = {one["ref"]: next_["ref"] for one, next_ in zip(ordered, [*ordered[1:], ordered[0]], strict=True)}
    kept = [(row["src"], row["ref"], other[row["ref"]]) for row in rows if other[row["ref"]] != row["ref"]]
    return random.Random(0).sample(kept, min(count, len(kept)))


def preferred(args: argparse.Namespace, reference: Model) -> Model:
    """The reference after a little training on preferences."""
    data = args.out / "preferences.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    some = [
        {"prompt": prompt, "chosen": won, "rejected": lost}
        for prompt, won, lost in examples("train", 32 if args.tiny else 300)
    ]
    write(data, some)
    out = args.out / f"preferred{'-tiny' * args.tiny}"
    run(args, reference, "translate-en-de-masked", data, out, {"name": "preference"}, lr=1e-4, batch_tokens=4096)
    return redraft.load(str(out))


def as_batch(model: Model, rows: Sequence[tuple[str, str, str]]) -> Batch:
    """Preferred answers, then the rejected ones."""
    encode = model.tokenizer

    def row(prompt: str, answer: str) -> tuple[list[int], list[int]]:
        return encode.encode_prompt(prompt), [*encode.encode(answer), encode.eos_id]

    return pairs([row(prompt, won) for prompt, won, _ in rows] + [row(prompt, lost) for prompt, _, lost in rows])


@torch.no_grad()
def spread(policy: Model, reference: Model, batch: Batch, levels: int, draws: int) -> tuple[float, float]:
    """The mean variance of s with the same masks in both networks, and with masks of their own."""
    objective, half = RewardLoss(Levels(levels), 2, 0.0), len(batch.ids) // 2
    nats: dict[str, list[Any]] = defaultdict(list)
    for seed in range(draws):
        prepared = objective.prepare(batch, reference.spec, torch.Generator().manual_seed(seed))
        for name, model in (("policy", policy), ("reference", reference)):
            nats[name].append(evaluate(model.network.eval(), objective, prepared).nats.double())
    own, theirs = (torch.stack(nats[name]) for name in ("policy", "reference"))
    found = []
    for other in (theirs, theirs.roll(1, 0)):
        gain = other - own
        found.append(float((BETA * (gain[:, :half] - gain[:, half:])).var(0).mean()))
    return found[0], found[1]


# ---- what rewards teach


def sudoku(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Share of solved puzzles after supervised training, and after rewards."""
    train, test = puzzles(seed=0, count=200 if args.tiny else 4000)
    folder = args.out / f"sudoku{'-tiny' * args.tiny}"
    data = folder / "puzzles.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write(data, train)
    found = []
    for seed, family in product(range(args.seeds), ("masked", "autoregressive")):
        place = folder / f"{family}-{seed}"
        supervised(args, data, place / "supervised", family, seed, tokens=20_000 if args.tiny else 1_200_000)
        objective = {"name": "reward", "reward": "sudoku", "group": 8, "generation": {"max_new_tokens": 17}}
        start = redraft.load(str(place / "supervised"))
        run(
            args, start, str(place / "supervised"), data, place / "rewarded", objective, lr=3e-4,
            batch_tokens=9000 if family == "masked" else 4500,  # sixteen prompts an update
            passes=0.1 if args.tiny else 0.5, seed=seed,
        )  # fmt: skip
        row: dict[str, Any] = {"family": family, "seed": seed}
        for stage in ("supervised", "rewarded"):
            row[stage] = judged(redraft.load(str(place / stage)), test[: 20 if args.tiny else 200])
        row["log"] = ends(place / "rewarded")
        found.append(row)
        print(json.dumps(row), flush=True)
    return found


def puzzles(seed: int, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and test puzzles with one solution each, from different solutions."""
    draw = random.Random(seed)
    solutions = grids()
    draw.shuffle(solutions)
    parts: list[list[dict[str, Any]]] = []
    for some, size in ((solutions[:220], count), (solutions[220:], 200)):
        rows: list[dict[str, Any]] = []
        while len(rows) < size:
            solution = draw.choice(some)
            shown = set(draw.sample(range(16), draw.randint(5, 9)))
            puzzle = "".join(cell if at in shown else "0" for at, cell in enumerate(solution))
            if sum(fits(puzzle, other) for other in solutions) == 1:
                rows.append({"prompt": puzzle, "answer": solution, "puzzle": puzzle, "solution": solution})
        parts.append(rows)
    return parts[0], parts[1]


def fits(puzzle: str, solution: str) -> bool:
    return all(cell in ("0", other) for cell, other in zip(puzzle, solution, strict=True))


def grids() -> list[str]:
    """The 288 solutions of 4 x 4 Sudoku."""
    found, rows = [], ["".join(each) for each in permutations("1234")]
    for four in product(rows, repeat=4):
        columns = zip(*four, strict=True)
        boxes = ({*four[i][j : j + 2], *four[i + 1][j : j + 2]} for i in (0, 2) for j in (0, 2))
        if len(set(four)) == 4 and all(len({*column}) == 4 for column in columns) and all(len(b) == 4 for b in boxes):
            found.append("".join(four))
    return found


def judged(model: Model, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean reward and solved puzzles of greedy answers, and the mean reward of sampled ones."""
    cells, solved = build_reward("sudoku", {}), build_reward("sudoku", {"solved": True})
    found = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        made = model.generate([row["prompt"] for row in rows], max_new_tokens=17, temperature=temperature)
        answers = [Answer(row["prompt"], one.text, "", row) for row, one in zip(rows, made, strict=True)]
        found[f"cells, {name}"] = statistics.fmean(scores(cells, answers))
        found[f"solved, {name}"] = statistics.fmean(scores(solved, answers))
    return found


NAMES = ["Ada", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gil", "Hana", "Ivo", "Jo"]
CITIES = ["Rome", "Oslo", "Lima", "Kyiv", "Bonn", "Cairo", "Perth"]
PROPERTIES: dict[str, Any] = {
    "name": {"enum": NAMES},
    "age": {"type": "integer", "minimum": 0, "maximum": 120},
    "city": {"enum": CITIES},
    "tags": {"type": "array", "items": {"type": "string"}},
}
STEPS = 4


def schema(keys: Sequence[str]) -> str:
    used = {key: PROPERTIES[key] for key in keys}
    return json.dumps({"type": "object", "properties": used, "required": keys, "additionalProperties": False})


def records(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Share of valid JSON after supervised training, and after rewards."""
    draw, rows = random.Random(0), list[dict[str, Any]]()
    keys, most = (["name", "age"], 32) if args.tiny else ([*PROPERTIES], 96)
    for _ in range(600 if args.tiny else 3100):
        value = {"name": draw.choice(NAMES), "age": draw.randint(18, 99), "city": draw.choice(CITIES)}
        value["tags"] = draw.sample(["new", "vip", "late", "paid"], draw.randint(0, 3))
        value = {key: value[key] for key in keys}
        words = [str(one) for part in value.values() for one in (part if isinstance(part, list) else [part])]
        rows.append({"prompt": " ".join(words), "answer": json.dumps(value)})
    train, test = rows[:-100], rows[-100:]
    folder = args.out / f"json{'-tiny' * args.tiny}"
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "records.jsonl"
    write(data, train)
    options = {"schema": schema(keys)}
    objective = {"name": "reward", "reward": "json_schema", "reward_options": options, "group": 8}
    objective["generation"] = {"max_new_tokens": most, "steps": STEPS}
    found = []
    for seed in range(args.seeds):
        place = folder / f"masked-{seed}"
        supervised(args, data, place / "supervised", "masked", seed, tokens=500_000 if args.tiny else 1_200_000)
        start = redraft.load(str(place / "supervised"))
        run(
            args, start, str(place / "supervised"), data, place / "rewarded", objective, lr=3e-4,
            batch_tokens=5_600 if args.tiny else 16_000, passes=1.0 if args.tiny else 0.5, seed=seed,
        )  # fmt: skip
        row: dict[str, Any] = {"seed": seed}
        for stage in ("supervised", "rewarded"):
            row[stage] = validity(redraft.load(str(place / stage)), test, options, most)
        row["log"] = ends(place / "rewarded")
        found.append(row)
        print(json.dumps(row), flush=True)
    return found


def validity(model: Model, rows: Sequence[dict[str, Any]], options: dict[str, str], most: int) -> dict[str, Any]:
    """Shares of valid and of right answers, greedy and sampled; and one of them."""
    judge, found = build_reward("json_schema", options), dict[str, Any]()
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        made = model.generate(
            [row["prompt"] for row in rows], max_new_tokens=most, steps=STEPS, temperature=temperature
        )
        cut = [one.finish == "length" for one in made]
        answers = [Answer("", one.text, truncated=long) for one, long in zip(made, cut, strict=True)]
        found[f"valid, {name}"] = statistics.fmean(scores(judge, answers))
        found[f"right, {name}"] = statistics.fmean(
            same(one.text, row["answer"]) for row, one in zip(rows, made, strict=True)
        )
        found[f"first, {name}"] = made[0].text
    return found


def same(text: str, reference: str) -> bool:
    try:
        return bool(json.loads(text) == json.loads(reference))
    except ValueError:
        return False


# ---- one update of a model of 135M


def update(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the parts of an update, texts a second, and the peak of the process."""
    data = args.out / "questions.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    write(data, [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(10) for b in range(10)])
    name = "translate-en-de-autoregressive" if args.tiny else "smollm2-135m"
    out, spent = args.out / f"update-{name}{'-lora' * args.lora}", defaultdict[str, float](float)
    objective = {"name": "reward", "reward": "numeric", "group": 4, "generation": {"max_new_tokens": 16}}
    with timed(spent):
        run(
            args, redraft.load(name), name, data, out, objective, lr=1e-5, batch_tokens=512, passes=0.08,
            lora={"rank": 8} if args.lora else None,
        )  # fmt: skip
    texts = 4 * spent.pop("prompts")
    seconds = {part: round(value, 2) for part, value in spent.items()}
    row = {"model": name, "lora": args.lora, "seconds": seconds, "texts": texts, **ends(out)}
    row |= {"texts a second": round(texts / sum(spent.values()), 3), "peak": peak_resident()}
    print(json.dumps(row), flush=True)
    return row


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Sum the seconds of the parts of training."""

    def measured(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            begun = time.monotonic()
            try:
                return function(*given, **named)
            finally:
                spent[part] += time.monotonic() - begun

        return call

    def counted(self: TextSampler, asked: Any) -> Any:
        spent["prompts"] += len(asked.batch.ids)
        return sampled(self, asked)

    sampled = TextSampler.__call__
    with (
        mock.patch.object(TextSampler, "__call__", counted),
        mock.patch.object(TextSampler, "_generate", measured("generation", TextSampler._generate)),
        mock.patch("redraft.train.post_training.scores", measured("rewards", scores)),
        mock.patch("redraft.rollouts._nats", measured("scoring", redraft.rollouts._nats)),
        mock.patch("redraft.train.loop.backward", measured("gradient", loop.backward)),
        mock.patch("redraft.train.optim.step", measured("optimizer", loop.optim.step)),
    ):
        yield


# ---- training


def supervised(args: argparse.Namespace, data: Path, out: Path, family: str, seed: int, tokens: int) -> None:
    """Train a small model on the answers of the data."""
    values = {
        "data": {"source": str(data), "input": "prompt", "target": "answer", "fractions": (0.95, 0.05, 0.0)},
        "tokenizer": {"kind": "bytes"},
        "model": {"preset": "toy", "config": {"dim": 64 if args.tiny else 128}},
        "family": {"name": family, **({"weight": "uniform"} if family == "masked" else {})},
        "train": {"tokens": tokens, "lr": 3e-3, "batch_tokens": 1024, "seed": seed, "dtype": "float32"},
    }
    train(args, Recipe.of(values), out)


def run(
    args: argparse.Namespace,
    start: Model,
    name: str,
    data: Path,
    out: Path,
    objective: dict[str, Any],
    lr: float,
    batch_tokens: int,
    passes: float = 1.0,
    seed: int = 0,
    lora: dict[str, Any] | None = None,
) -> None:
    """Post-train a model."""
    columns = {"input": "prompt", "target": "answer"} if objective["name"] == "reward" else {}
    values = {
        "data": {"source": str(data), "fractions": (0.95, 0.05, 0.0), **columns},
        "model": {"from": name},
        "family": {"name": start.family_name, **config.to_mapping(start.family)},
        "train": {"passes": passes, "lr": lr, "batch_tokens": batch_tokens, "seed": seed, "log_every": 1}
        | {"dtype": "float32", "validate_every": 0, "threads": args.threads, "schedule": "constant"},
        "objective": objective,
        **({"lora": lora} if lora else {}),
    }
    train(args, Recipe.of(values), out)


def train(args: argparse.Namespace, recipe: Recipe, out: Path) -> None:
    def told(event: Event) -> None:
        if event.kind == "update" and event.step % 10 == 0:
            shown = {key: round(value, 3) for key, value in event.values.items() if key in ("loss", "reward", "kl")}
            print(f"  {out.parent.name}/{out.name} step {event.step} {shown}", flush=True)

    loop.train(recipe, out, device="cpu", on_event=told)


def ends(out: Path) -> dict[str, Any]:
    """What the log says at the beginning and at the end: means over five updates."""
    lines = [json.loads(line) for line in (out / "train" / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if line["kind"] == "update"]
    keys = [key for key in ("reward", "kl", "length", "identical", "truncated") if key in updates[0]]
    return {
        "updates": len(updates),
        **{
            key: [round(statistics.fmean(line[key] for line in part), 4) for part in (updates[:5], updates[-5:])]
            for key in keys
        },
    }


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
