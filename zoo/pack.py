"""Make a shipped checkpoint from a finished training run: int8 weights, generation settings, a card.

    python zoo/pack.py RUN NAME [--set KEY=VALUE ...]       # then: make checksums

RUN is the --out folder of `redraft train recipes/zoo/NAME.toml`; --set gives the model's default generation settings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import redraft
from redraft import config

SOURCES = {
    "mt/tatoeba.en-de": "English-German sentence pairs of Tatoeba (tatoeba.org, manythings.org/anki), CC BY 2.0 FR",
    "lm/novels": "English novels first published 1927 or earlier, public domain",
    "multiplication:4x4:450000": "generated multiplications of four digits by four with their long-hand solutions",
    "pairs.mix.toml": "English novels (public domain), sentence pairs of Tatoeba (tatoeba.org, CC BY 2.0 FR), "
    "SQuADShifts (CC BY 4.0), SciTLDR (Apache-2.0)",
}
# For models with an unusual prompt: a sentence in the first line of the card (see `redraft models`), and a section.
USES = {
    "multiplication:4x4:450000": (
        " A prompt: `1 2 3 4 * 5 6 7 8`, lowest digit first.",
        """
## Use

    redraft generate --model {name} --prompt "1 2 3 4 * 5 6 7 8"

multiplies 4321 by 8765. Digits are written lowest first, separated by spaces. The output contains partial products and
sums; its last line, read backwards, is the answer: `5 6 5 3 7 8 7 3` is 37873565. Only four digits by four work.

The masked model can draft for the autoregressive one, which then generates the same output in 7 forward passes instead
of 56:

    redraft generate --model multiply-autoregressive --drafter multiply-masked --option block=32 \\
      --prompt "1 2 3 4 * 5 6 7 8"
""",
    )
}
CARD = """# {name}

{parameters:.2f}M parameters, {family}, trained by redraft on {data}; weights stored as int8 with a scale per row.{ask}

- Recipe: `redraft train recipes/zoo/{name}.toml --out runs/{name}`, then `python zoo/pack.py runs/{name} {name}`
- Training: {tokens:,} tokens ({passes:.2f} passes), {flops:.2e} FLOPs, {minutes:.0f} minutes on a shared CPU
- Validation: {nats} nats/token, {bits} bits/byte ({kind})
- Data licence: {data}. Weights: Apache-2.0, with the attribution that the data's licence requires.
- Default generation settings: `{settings}`

A small model that shows how the families behave, and a starting point for fine-tuning. Don't rely on its output.
{use}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    args = parser.parse_args()
    model = redraft.load(args.run, "cpu")
    model.defaults = config.parse_options(args.settings, "--set")
    model.settings()  # raises for unknown settings
    result = json.loads((args.run / "train" / "result.json").read_text(encoding="utf-8"))
    recipe = config.read_toml(args.run / "train" / "recipe.toml")
    found, bound = result["validation"], result["validation"]["is_bound"]
    error = {unit: f" ± {found[f'{unit}_error']:.3f}" if bound else "" for unit in ("nats", "bits")}
    ask, use = next((how for end, how in USES.items() if recipe["data"]["source"].endswith(end)), ("", ""))
    card = CARD.format(
        name=args.name,
        request=ask,
        use=use.format(name=args.name),
        parameters=result["parameters"] / 1e6,
        family=model.family_name,
        data=next(text for end, text in SOURCES.items() if recipe["data"]["source"].endswith(end)),
        tokens=result["tokens"],
        passes=result["passes"],
        flops=result["flops"],
        minutes=result["seconds"] / 60,
        nats=f"{found['nats_per_token']:.3f}{error['nats']}",
        bits=f"{found['bits_per_byte']:.3f}{error['bits']}",
        kind="an upper bound, with its Monte-Carlo error" if bound else "exact",
        settings=json.dumps(model.defaults),
    )
    model.save(Path(__file__).parent / args.name, "int8", card)


if __name__ == "__main__":
    main()
