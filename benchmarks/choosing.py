"""Samplers that suit no shipped model, or edit what they wrote: quality against forward passes (docs/choosing.md).

    python -m benchmarks.choosing [--data-root DATA] [--minutes 1.8] [--rows 100] [--out DIR] [--only PART ...]

Four parts, each with the plain sampler of its model beside the others, on the same validation rows:

- editing: multi_block, token_to_mask and joint_threshold (token editing), with translate-en-de-masked as shipped;
- uniform: posterior, predictor_corrector and psi, with uniform noise;
- lengths: daedal and rho_eos, with a masked model without a length head, whose answers end in end-of-text;
- blocks: renoising and the causal reading of a hybrid with uniform noise.

The last three train models of 1M weights for ``--minutes`` each by the recipes of Tatoeba, and keep them in ``--out``.
That is far too little for good translations: compare the rows of a part with each other only. One JSON object for each
setting goes to results.jsonl; what it holds is not measured again. Prints a table for each part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redraft
from benchmarks.samplers import Setting, measure, table
from redraft.data.examples import load
from redraft.evaluation.items import make_items
from redraft.model import Model
from redraft.train.loop import train
from redraft.train.recipe import Recipe

RECIPES = Path(__file__).parents[1] / "recipes" / "pretrain"
LONGEST = 40  # new tokens where the length is not predicted


def trained(name: str, args: argparse.Namespace, base: str, *overrides: str) -> Model:
    """The model of a recipe, trained for a few minutes, or as it was trained before."""
    out = args.out / name
    if not (out / "config.json").exists():
        budget = [f"train.minutes={args.minutes}", "train.tokens=0", "train.validation_rows=64", "model.preset='1m'"]
        root = [f"data.data_root={json.dumps(args.data_root)}"] if args.data_root else []
        recipe = Recipe.load(RECIPES / f"tatoeba-en-de-{base}.toml", [*budget, *root, *overrides])
        train(recipe, out)
    return redraft.load(out)


def _editing(args: argparse.Namespace) -> tuple[Model, list[Setting], dict[str, Any]]:
    found: list[Setting] = [("confidence", {"steps": steps}, 0.0) for steps in (8, 16)]
    found += [("threshold", {"threshold": bar}, 0.0) for bar in (0.5, 0.7)]
    found += [("multi_block", {"block": block, "threshold": 1.5}, 0.0) for block in (4, 8)]
    found += [("token_to_mask", {"threshold": 0.9, "by": by, "doubt": at}, 0.0) for by, at in _DOUBTS]
    found += [("joint_threshold", {"threshold": bar, "edit": 0.5}, 0.0) for bar in (0.5, 0.7)]
    return redraft.load("translate-en-de-masked"), found, {}


_DOUBTS = (("probability", 0.1), ("replacement", 0.9), ("change", 0.3))


def _uniform(args: argparse.Namespace) -> tuple[Model, list[Setting], dict[str, Any]]:
    found: list[Setting] = [("posterior", {"steps": steps}, 0.0) for steps in (8, 16, 64)]
    found += [("predictor_corrector", {"steps": steps}, 0.0) for steps in (8, 16)]
    found += [("psi", {"steps": steps}, 0.0) for steps in (16, 64)]
    return trained("uniform", args, "uniform"), found, {}


def _lengths(args: argparse.Namespace) -> tuple[Model, list[Setting], dict[str, Any]]:
    model = trained("lengths", args, "masked", "family.length_head=false")
    found: list[Setting] = [("confidence", {"steps": 16}, 0.0), ("threshold", {"threshold": 0.7}, 0.0)]
    shape = {"initial": 8, "window": 4, "threshold": 0.7}
    found += [("daedal", {**shape, "grow": 4, "end": end}, 0.0) for end in (0.3, 0.5)]
    found += [("rho_eos", {"initial": 16, "threshold": 0.7}, 0.0)]
    return model, found, {"max_new_tokens": LONGEST}


def _blocks(args: argparse.Namespace) -> tuple[Model, list[Setting], dict[str, Any]]:
    family = ("name='hybrid'", "process='uniform'", "block=8", "self_condition=0.5")
    model = trained("blocks", args, "autoregressive", *(f"family.{field}" for field in family))
    found: list[Setting] = [("autoregressive", {}, 0.0)]
    found += [("renoising", {"block": 8, "steps": steps, "bound": 0.5}, 1.0) for steps in (4, 8, 16)]
    found += [("renoising", {"block": 8, "steps": 16, "bound": bound}, 1.0) for bound in (0.1, 2.0)]
    return model, found, {"max_new_tokens": LONGEST}


PARTS: dict[str, Callable[[argparse.Namespace], tuple[Model, list[Setting], dict[str, Any]]]] = {
    "editing": _editing,
    "uniform": _uniform,
    "lengths": _lengths,
    "blocks": _blocks,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--minutes", type=float, default=1.8, help="of training, for each of three models")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/choosing"))
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.jsonl"
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(one["part"], one["sampler"], json.dumps(one["options"])) for one in results}
    examples = load("mt/tatoeba.en-de", None, data_root=args.data_root).validation
    for part in args.only:
        model, settings, more = PARTS[part](args)
        asked = make_items(examples, model.tokenizer, args.rows, model.paired, model.settings().max_new_tokens)
        for setting in settings:
            if (part, setting[0], json.dumps(setting[1])) in done:
                continue
            results.append({"part": part, **measure(model, asked, setting, 1, **more)})
            print(json.dumps(results[-1]), flush=True)
            with file.open("a") as opened:
                opened.write(json.dumps(results[-1]) + "\n")
        print(f"\n{part}\n\n{table([one for one in results if one['part'] == part])}\n")


if __name__ == "__main__":
    main()
