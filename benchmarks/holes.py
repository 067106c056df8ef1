"""Sizes of holes and lengths of answers: accuracy of the ways to choose them, on held-out pairs.

    python benchmarks/holes.py [--model translate-en-de-masked] [--data mt/tatoeba.en-de] [--rows 250]

One JSON object per line:

- hole: one to five tokens of a reference are removed; share of rows whose size (1 to 8) is found, and mean error.
- text: one or two words are removed; share of texts restored, by what is known about the hole.
- answer: the whole answer is generated; share of rows whose length (1 to 24) is found, and mean error.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

import redraft
from redraft.data.examples import Example, load
from redraft.generation.first_pass import first_pass
from redraft.generation.holes import Hole, HoleLayout
from redraft.generation.length import best_lengths
from redraft.generation.prompts import prompt_ids
from redraft.generation.start import start_holes
from redraft.model import Model
from redraft.samplers.shared.common import length_request

SIZES, LENGTHS = range(1, 9), range(1, 25)


def report(what: str, scores: Sequence[tuple[int, Mapping[str, Sequence[float]]]], choices: range) -> None:
    """Print the accuracy of each way. ``scores``: of each row the true number, and each way's scores of all choices."""
    hits: Counter[str] = Counter()
    errors: dict[str, int] = defaultdict(int)
    for truth, ways in scores:
        for way, values in ways.items():
            found = choices[max(range(len(choices)), key=values.__getitem__)]
            hits[way] += found == truth
            errors[way] += abs(found - truth)
    for way in scores[0][1]:
        right, error = hits[way] / len(scores), errors[way] / len(scores)
        print(
            json.dumps({"what": what, "by": way, "right": round(right, 3), "mean_error": round(error, 2)}), flush=True
        )


def by_head(model: Model, prompt: list[int]) -> torch.Tensor:
    """log p [n] of lengths 1, 2 ... n by the length head, end-of-text counted."""
    request = length_request(torch.tensor([prompt]), torch.tensor([len(prompt)]), model.spec, rows=torch.tensor([0]))
    log_p, lengths = best_lengths(model.inference_network()(request), 128, 128)
    found = torch.full((129,), -math.inf)
    found[lengths[0]] = log_p[0]
    return found


def holes(model: Model, rows: Sequence[Example], rng: random.Random) -> None:
    scores = []
    for row in rows:
        ids, prompt = model.tokenizer.encode(row.target), prompt_ids(model, row.prompt or "")
        if len(ids) < 5:
            continue
        size = rng.randint(1, min(5, len(ids) - 2))
        at = rng.randint(0, len(ids) - size)
        before, after = ids[:at], [*ids[at + size :], model.tokenizer.eos_id]
        plain = [[*prompt, *before, *[None] * n, *after] for n in SIZES]
        near = []
        for n, whole in zip(SIZES, plain, strict=True):
            begin, end = len(prompt) + at, len(prompt) + at + n
            close = {*range(max(len(prompt), begin - 2), begin), *range(end, min(len(whole) - 1, end + 2))}
            near.append([None if place in close else token for place, token in enumerate(whole)])
        heads = [len(prompt)] * len(plain)
        looks = first_pass(model.inference_network(), plain, heads, model.spec)
        fits = first_pass(model.inference_network(), near, heads, model.spec, plain)
        length = by_head(model, prompt)[torch.tensor([len(whole) - len(prompt) for whole in plain])].tolist()
        certain, neighbours = [-look.entropy for look in looks], [fit.truth for fit in fits]
        ways = {
            "always 3": [float(n == 3) for n in SIZES],
            "confidence (CAL without its fitted bias)": [look.confidence for look in looks],
            "entropy": certain,
            "neighbours": neighbours,
            "length head": length,
            "entropy, neighbours": [a + b for a, b in zip(certain, neighbours, strict=True)],
            "entropy, neighbours, length head": [sum(three) for three in zip(certain, neighbours, length, strict=True)],
        }
        scores.append((size, ways))
    report("hole", scores, SIZES)


def texts(model: Model, rows: Sequence[Example], rng: random.Random) -> None:
    hits: Counter[str] = Counter()
    count = 0
    for row in rows:
        words = row.target.split(" ")
        if len(words) < 5:
            continue
        count += 1
        many = rng.randint(1, 2)
        at = rng.randint(1, len(words) - many - 1)
        left, right = " ".join(words[:at]) + " ", " " + " ".join(words[at + many :])
        size = len(model.tokenizer.encode(" " + " ".join(words[at : at + many])))
        for known, hole in (("size", f"[[{size}]]"), ("nothing", "[[?]]"), ("3 tokens", "[[3]]")):
            hits[known] += model.infill(left + hole + right, row.prompt or "").text == row.target
        hits["size, the space before it given"] += (
            _without_glue(model, left, size, right, row.prompt or "") == row.target
        )
    for known, restored in hits.items():
        print(json.dumps({"what": "text", "known": known, "restored": round(restored / count, 3), "rows": count}))


def _without_glue(model: Model, left: str, size: int, right: str, prompt: str) -> str:
    layout = HoleLayout.of(model, [left, Hole(size, size), right], prompt)
    layout = replace(layout, pieces=model.tokenizer.encode_batch(layout.texts), spaces=[False])
    drafting = start_holes(model, [layout.row([size])], [len(layout.head)], model.settings(), size)
    for _ in drafting:
        pass
    return drafting.results()[0].text


def answers(model: Model, rows: Sequence[Example]) -> None:
    scores = []
    eos, nothing = model.tokenizer.eos_id, prompt_ids(model, "")

    def look(prompt: list[int]) -> list[Any]:
        whole = [[*prompt, *[None] * n, eos] for n in LENGTHS]
        return first_pass(model.inference_network(), whole, [len(prompt)] * len(whole), model.spec)

    empty = look(nothing)
    for row in rows:
        length, prompt = len(model.tokenizer.encode(row.target)), prompt_ids(model, row.prompt or "")
        if length not in LENGTHS:
            continue
        looks = look(prompt)
        ways = {
            "always 9": [float(n == 9) for n in LENGTHS],
            "confidence (CAL without its fitted bias)": [one.confidence for one in looks],
            "confidence / confidence without prompt": [
                a.confidence / b.confidence for a, b in zip(looks, empty, strict=True)
            ],
            "length head": by_head(model, prompt)[torch.tensor([n + 1 for n in LENGTHS])].tolist(),
        }
        scores.append((length, ways))
    report("answer", scores, LENGTHS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="translate-en-de-masked")
    parser.add_argument("--data", default="mt/tatoeba.en-de")
    parser.add_argument("--data-root")
    parser.add_argument("--rows", type=int, default=250)
    args = parser.parse_args()
    model, rng = redraft.load(args.model), random.Random(0)
    rows = list(load(args.data, None, data_root=args.data_root).validation)
    rng.shuffle(rows)
    with torch.inference_mode():
        holes(model, rows[: args.rows], rng)
        texts(model, rows[: args.rows], rng)
        answers(model, rows[: args.rows])


if __name__ == "__main__":
    main()
