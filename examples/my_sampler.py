"""A sampler of your own, used from outside of the package by its dotted path.

    python -m examples.my_sampler --count 2
    PYTHONPATH=. redraft generate --model translate-en-de-masked --prompt "I am tired." \\
      --sampler examples.my_sampler:Leftmost --option count=2

It fills the leftmost free positions of a masked diffusion model: as an autoregressive model generates, but ``count``
tokens in each forward pass. Inside the package, the same class in ``src/redraft/samplers/leftmost.py`` would be
``--sampler leftmost``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import redraft
from redraft.errors import UserError
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common
from redraft.types import FREE, Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class Leftmost(Sampler):
    """Fills the ``count`` leftmost free positions at each step."""

    count: int = 1

    def start(self, canvas: Canvas, spec: Spec) -> None:
        """Check the options and the model, once, before the first step."""
        common.check_diffusion(spec)
        if self.count < 1:
            raise UserError(f"count = {self.count} must be at least 1.")

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        """Request a prediction of the leftmost free positions of every row that has any."""
        free = canvas.status == FREE  # [B, L]
        return common.requests_for(canvas, spec, free & (free.cumsum(1) <= self.count))

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        """Fill all requested positions with the tokens that the loop sampled."""
        return None, common.write(requests[0], outputs[0], requests[0].targets >= 0)


def main() -> None:
    """Generate with the sampler, and print what each step filled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="translate-en-de-masked", help="A masked diffusion model.")
    parser.add_argument("--count", type=int, default=2, help="Tokens of each forward pass.")
    args = parser.parse_args()
    model = redraft.load(args.model)
    settings = {"sampler": "examples.my_sampler:Leftmost", "options": {"count": args.count}, "candidates": 1}
    for step in model.stream("The weather is fine today.", **settings):
        print(f"positions {step.pos.tolist()} = {model.tokenizer.decode(step.token.tolist())!r}")
    print(model.generate("The weather is fine today.", **settings)[0].text)


if __name__ == "__main__":
    main()
