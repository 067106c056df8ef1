"""Quality by length of the reference, for models with fixed, predicted and variable length.

    python benchmarks/lengths.py answers --ar DIR --masked DIR --expand DIR --edit DIR [--data mt/tatoeba.en-de]
    python benchmarks/lengths.py holes --masked base-masked --expand DIR [--data lm/novels]
    python benchmarks/lengths.py automatic --masked translate-en-de-masked [--data ... --input COLUMN --target COLUMN]
    python benchmarks/lengths.py ladder --masked translate-en-de-masked [--most 256 --steps 16] [--data ...]

One JSON object per line: a system, a bucket of lengths in tokens, BLEU and chrF with a 95 % bootstrap interval over
rows, the mean error of the length in tokens, and forward passes per text. ``answers`` generates whole answers;
``holes`` fills one hole of 1 to 12 tokens in a window of plain text. ``automatic`` compares the length that a model
chooses itself, by its own settings, with the true one at the same number of steps; it fails (exit code 1) if the
automatic one loses more than 2 points in both BLEU and chrF. ``ladder`` generates answers of the fixed lengths 8, 16,
32 ... up to ``--most``, and with every automatic length; for one that the model refuses, it gives the reason.
``--prompt`` frames every input. Ways to get a length:

- head: predicted from the prompt; mean: that of training answers, for all rows; true: that of the reference.
- grows from N: expand and delete, from N masks; head, grows: from the predicted length. empty: edits of an empty text.
- search: the likeliest of all sizes (infilling.choose_sizes); of an answer, by the confidence at several lengths.
- typical: that of training answers to prompts of this length. daedal, rho_eos: found during the generation.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import redraft
from redraft.data.columns import Columns
from redraft.data.examples import Example, load
from redraft.evaluation.stats import interval
from redraft.generation.length import best_lengths
from redraft.generation.prompts import answer_suffix, prompt_ids
from redraft.generation.start import start_rows
from redraft.metrics.bleu import Bleu
from redraft.metrics.chrf import Chrf
from redraft.model import Model
from redraft.samplers.shared.common import length_request
from redraft.types import Generation

ANSWERS, HOLES = ((1, 4), (5, 9), (10, 19), (20, 99)), ((1, 2), (3, 5), (6, 12))
Sizes = Callable[[Model, Sequence[Example]], list[int]]
_BATCH = 32


def report(
    what: str, name: str, bucket: str, model: Model, texts: list[Generation], truths: list[str]
) -> dict[str, float]:
    said = [text.text for text in texts]
    bleu, chrf = Bleu().score(said, truths), Chrf().score(said, truths)
    low_high = [
        (round(found.low, 2), round(found.high, 2))
        for found in (interval(bleu.stats, Bleu().combine), interval(chrf.stats, Chrf().combine))
    ]
    sizes = [len(model.tokenizer.encode(truth)) for truth in truths]
    error = float(np.mean([abs(len(model.tokenizer.encode(a)) - b) for a, b in zip(said, sizes, strict=True)]))
    exact = sum(a.strip() == b.strip() for a, b in zip(said, truths, strict=True)) / len(truths)
    row = {
        "what": what,
        "system": name,
        "tokens": bucket,
        "rows": len(truths),
        "bleu": round(bleu.value, 2),
        "bleu_interval": low_high[0],
        "chrf": round(chrf.value, 2),
        "chrf_interval": low_high[1],
        "exact": round(exact, 3),
        "length_error": round(error, 2),
        "passes": round(float(np.mean([text.nfe for text in texts])), 1),
    }
    print(json.dumps(row), flush=True)
    return {"bleu": bleu.value, "chrf": chrf.value}


def of_length(model: Model, rows: Sequence[Example], sizes: Sequence[int], steps: int) -> list[Generation]:
    """Answers of given lengths in tokens, end-of-text not counted."""
    found: list[Generation] = []
    for begin in range(0, len(rows), _BATCH):
        part = range(begin, min(begin + _BATCH, len(rows)))
        heads = [prompt_ids(model, rows[i].prompt or "") for i in part]
        made = [[*head, *[None] * sizes[i], *answer_suffix(model)] for head, i in zip(heads, part, strict=True)]
        settings = model.settings(max_new_tokens=128, steps=min(steps, max(sizes[i] for i in part)))
        drafting = start_rows(model, made, [len(head) for head in heads], settings)
        for _ in drafting:
            pass
        found += drafting.results()
    return found


def true_sizes(model: Model, rows: Sequence[Example]) -> list[int]:
    return [max(1, len(model.tokenizer.encode(row.target))) for row in rows]


def head_sizes(model: Model, rows: Sequence[Example]) -> list[int]:
    """Lengths by the length head, end-of-text not counted."""
    found = []
    for row in rows:
        head = torch.tensor([prompt_ids(model, row.prompt or "")])
        with torch.inference_mode():
            request = length_request(head, torch.tensor([head.shape[1]]), model.spec, rows=torch.tensor([0]))
            logits = model.inference_network()(request)
        found.append(max(1, int(best_lengths(logits, 128, 1)[1]) - 1))
    return found


def answers(args: argparse.Namespace) -> None:
    splits = load(args.data, None, data_root=args.data_root)
    names = ("ar", "masked", "expand", "edit")
    models = {name: redraft.load(path) for name in names if (path := getattr(args, name))}
    some = next(models[name] for name in ("masked", "expand", "edit", "ar") if name in models)
    encode = some.tokenizer.encode
    mean = round(
        float(np.mean([len(encode(row.target)) for row in splits.train[:: max(1, len(splits.train) // 2000)]]))
    )
    systems = _systems(args, models, mean)
    rng = random.Random(0)
    rows = list(splits.test)
    rng.shuffle(rows)
    for low, high in ANSWERS:
        mine = [row for row in rows if low <= len(encode(row.target)) <= high][: args.rows]
        if len(mine) < 20:
            continue
        for name, model, write in systems:
            texts = write(mine)
            report("answers", name, f"{low}-{high}", model, texts, [row.target for row in mine])


def test_rows(args: argparse.Namespace, model: Model) -> list[Example]:
    """Test rows whose prompts leave room for the longest answer, with ``--prompt`` around them."""
    columns = Columns(input=args.input, target=args.target)
    rows = list(load(args.data, columns if args.input else None, data_root=args.data_root).test)
    random.Random(0).shuffle(rows)
    room = model.network.config.max_length - args.most
    rows = [replace(row, prompt=args.prompt.format(row.prompt)) for row in rows]
    return [row for row in rows if len(prompt_ids(model, row.prompt or "")) <= room][: args.rows]


def ladder(args: argparse.Namespace) -> None:
    """Quality at fixed lengths, and with each automatic length."""
    model = redraft.load(args.masked)
    rows = test_rows(args, model)
    truths, prompts = [row.target for row in rows], [row.prompt or "" for row in rows]
    ways: dict[str, dict[str, Any]] = {}
    size = 8
    while size <= args.most:
        ways[f"fixed, {size}"] = {"length": "fixed", "max_new_tokens": size, "steps": min(args.steps, size)}
        size *= 2
    for way in ("head", "typical", "search"):
        ways[way] = {"length": way, "max_new_tokens": args.most, "steps": args.steps}
    ways["head, 4 candidates"] = {**ways["head"], "candidates": 4}
    for sampler in ("daedal", "rho_eos"):
        ways[sampler] = {"sampler": sampler, "max_new_tokens": args.most}
    report("ladder", "true length", "all", model, of_length(model, rows, true_sizes(model, rows), args.steps), truths)
    for name, settings in ways.items():
        try:
            texts = model.generate(prompts, **{"candidates": 1, **settings})
        except redraft.UserError as error:
            print(json.dumps({"what": "ladder", "system": name, "refused": str(error)}), flush=True)
            continue
        report("ladder", name, "all", model, texts, truths)


def automatic(args: argparse.Namespace) -> bool:
    """Does the automatic length lose at most 2 points, in BLEU or in chrF, against the true one?"""
    model = redraft.load(args.masked)
    rows = test_rows(args, model)
    truths, prompts = [row.target for row in rows], [row.prompt or "" for row in rows]
    true = report(
        "automatic", "true length", "all", model, of_length(model, rows, true_sizes(model, rows), args.steps), truths
    )
    more = {} if args.candidates is None else {"candidates": args.candidates}
    chosen = model.generate(prompts, max_new_tokens=args.most, steps=args.steps, **more)
    found = report("automatic", "automatic length", "all", model, chosen, truths)
    return any(found[name] >= true[name] - 2.0 for name in true)


def _systems(
    args: argparse.Namespace, models: Mapping[str, Model], mean: int
) -> list[tuple[str, Model, Callable[[Sequence[Example]], list[Generation]]]]:
    """Name, model and way to generate of each system that is compared."""
    ar, masked, expand, edit = (models.get(name) for name in ("ar", "masked", "expand", "edit"))
    steps = args.steps

    def plain(model: Model, **settings: object) -> Callable[[Sequence[Example]], list[Generation]]:
        return lambda rows: model.generate([row.prompt or "" for row in rows], max_new_tokens=args.most, **settings)

    def of_size(model: Model, sizes: Sizes) -> Callable[[Sequence[Example]], list[Generation]]:
        return lambda rows: of_length(model, rows, sizes(model, rows), steps)

    systems: list[tuple[str, Model, Callable[[Sequence[Example]], list[Generation]]]] = []
    if ar is not None:
        systems += [("autoregressive, greedy", ar, plain(ar))]
        systems += [("autoregressive, 4 beams", ar, plain(ar, sampler="autoregressive", options={"beams": 4}))]
    for name, model in (("masked", masked), ("expand", expand)):
        if model is not None:
            ways = {"mean": lambda _, rows: [mean] * len(rows), "true": true_sizes, "head": head_sizes}
            systems += [(f"{name}, {way} length", model, of_size(model, sizes)) for way, sizes in ways.items()]
    if masked is not None:
        systems += [("masked, head, 4 candidates", masked, plain(masked, steps=steps, candidates=4))]
    if expand is not None:
        systems += [("expand, head, grows", expand, plain(expand, steps=steps))]
        for start in (4, 8, 16):
            systems += [(f"expand, grows from {start}", expand, plain(expand, steps=steps, start=start))]
    if edit is not None:
        systems += [("edit, empty", edit, plain(edit, steps=steps))]
        systems += [
            ("edit, empty, leaps", edit, plain(edit, steps=2 * steps, sampler="edit_flow", options={"order": "leap"}))
        ]
    return systems


def holes(args: argparse.Namespace) -> None:
    rng, texts = random.Random(0), [row.target for row in load(args.data, None, data_root=args.data_root).test]
    masked, expand = redraft.load(args.masked), redraft.load(args.expand)
    cases: dict[tuple[int, int], list[tuple[str, str, str]]] = {bucket: [] for bucket in HOLES}
    while min(map(len, cases.values())) < args.rows:
        text = rng.choice(texts)
        words = text.split(" ")
        if len(words) < 40:
            continue
        first, many = rng.randrange(len(words) - 30), rng.randint(1, 8)
        middle = first + 12 + rng.randint(0, 5)
        left, right = " ".join(words[first:middle]) + " ", " " + " ".join(words[middle + many : middle + many + 15])
        hole = " ".join(words[middle : middle + many])
        size = len(masked.tokenizer.encode(" " + hole))
        for bucket in HOLES:
            if bucket[0] <= size <= bucket[1] and len(cases[bucket]) < args.rows and "[[" not in left + right:
                cases[bucket].append((left, hole, right))

    def fill(model: Model, case: tuple[str, str, str], hole: str, **settings: object) -> Generation:
        left, _, right = case
        found = model.infill(hole, prefix=left, suffix=right, **settings)
        found.text = found.text.removeprefix(left).removesuffix(right)
        return found

    def sized(model: Model) -> Callable[[tuple[str, str, str]], Generation]:
        return lambda case: fill(model, case, f"[[{len(model.tokenizer.encode(' ' + case[1]))}]]")

    systems = [
        ("masked, search", masked, lambda case: fill(masked, case, "[[?]]")),
        ("masked, always 4", masked, lambda case: fill(masked, case, "[[4]]")),
        ("masked, true size", masked, sized(masked)),
        ("expand, true size", expand, sized(expand)),
        *(
            (f"expand, grows from {n}", expand, lambda case, n=n: fill(expand, case, "[[?]]", start=n))
            for n in (1, 4, 8)
        ),
    ]
    for (low, high), chosen in cases.items():
        for name, model, write in systems:
            report(
                "holes", name, f"{low}-{high}", model, [write(case) for case in chosen], [hole for _, hole, _ in chosen]
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("answers", "holes", "automatic", "ladder"))
    for name in ("ar", "masked", "expand", "edit"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--data")
    parser.add_argument("--data-root")
    parser.add_argument("--input")
    parser.add_argument("--target")
    parser.add_argument("--prompt", default="{}")
    parser.add_argument("--rows", type=int, default=250, help="of each bucket, at most")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--candidates", type=int, help="of the automatic length; unset: the model's own setting")
    parser.add_argument("--most", type=int, default=48, help="tokens of the longest answer")
    args = parser.parse_args()
    args.data = args.data or ("lm/novels" if args.what == "holes" else "mt/tatoeba.en-de")
    if args.what == "automatic":
        raise SystemExit(not automatic(args))
    {"answers": answers, "holes": holes, "ladder": ladder}[args.what](args)


if __name__ == "__main__":
    main()
