"""Generate with a shipped model: a batch, one sequence step by step, and a hole in the middle of a text.

python examples/generate.py --model translate-en-de-masked
"""

from __future__ import annotations

import argparse

import redraft


def main() -> None:
    """Three ways to generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="translate-en-de-masked", help="A shipped checkpoint, or a folder.")
    args = parser.parse_args()
    model = redraft.load(args.model)

    # A batch. All settings have a default in the model's generation_config.json.
    for generation in model.generate(["I am tired.", "The weather is fine today."], steps=4):
        print(f"{generation.text!r}  {generation.nfe} forward passes, log-probability {generation.score:.2f}")

    # The steps of one sequence: which positions were filled, and with which confidence.
    for number, step in enumerate(model.stream("My brother bought a new car.", steps=4, candidates=1)):
        tokens = [model.tokenizer.decode([token]) for token in step.token.tolist()]
        print(f"step {number}: positions {step.pos.tolist()} = {tokens}")

    # A hole of unknown size. An autoregressive model can't see the text behind it; a masked model can.
    filled = model.infill("Mein Bruder hat [[?]] gekauft.", prompt="My brother bought a new car.")
    print(filled.text)


if __name__ == "__main__":
    main()
