"""Train a small masked diffusion model on the sample data, and generate with it.

    python examples/train.py --out runs/small --tokens 300000

A recipe is all that a training run depends on. The same tables can stand in a TOML file (recipes/toy/masked.toml).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import redraft
from redraft.train.logging import describe
from redraft.train.loop import train
from redraft.train.recipe import Recipe

DATA = Path(__file__).parent / "data" / "tatoeba.en-de"  # 3,000 sentence pairs


def main() -> None:
    """Train, save and generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/small", help="Folder for the model.")
    parser.add_argument("--tokens", type=int, default=300_000, help="Training budget in tokens.")
    parser.add_argument("--family", default="masked", help="See: redraft models --families.")
    args = parser.parse_args()

    recipe = Recipe.of(
        {
            "data": {"source": str(DATA), "input": "english", "target": "german", "length": 160},
            "tokenizer": {"kind": "bpe", "vocab_size": 1000},
            "model": {"preset": "toy"},
            "family": {"name": args.family},
            "train": {"tokens": args.tokens, "batch_tokens": 2048, "lr": 3e-3, "validation_rows": 64},
        }
    )
    # Events are updates, validations and saves. Stopped at any moment, the same call continues from the last save.
    result = train(recipe, args.out, on_event=lambda event: print(describe(event)))
    print(f"{result.parameters / 1e6:.2f}M parameters, {result.seconds:.0f} s")

    model = redraft.load(args.out)
    for generation in model.generate(["I am tired.", "Where is the dog?"], steps=4, max_new_tokens=16):
        print(f"{generation.nfe} forward passes: {generation.text!r}")


if __name__ == "__main__":
    main()
