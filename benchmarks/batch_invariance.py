"""Does a text depend on its neighbours? Every sampler with every cache: ragged batches against single rows.

    python -m benchmarks.batch_invariance [--rows 8]

In float32, on an untrained network with opinions (its weights are enlarged). Batches of several sizes change how sums
are rounded: a decision may turn where it was that close. A text counts as *equal* if its ids are, as *close* if, in the
pass in which the two part, predictions agree within 1e-4 and

- either another token was drawn at some position: both use the same uniform, so it lay within 1e-4 of an edge between
  the two tokens (at temperature 0: the two likeliest tokens are that close);
- or other positions were written, and two of them were within 1e-4 in confidence.

Anything else is a dependence on neighbours, set in bold. Prints a table; exits with 1 if there is any.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from redraft import registry
from redraft.canvas import make_canvas
from redraft.data.tokenizer import Tokenizer
from redraft.decode import Loop, Method
from redraft.errors import UserError
from redraft.model import Model
from redraft.presets import preset
from redraft.types import Canvas, Forward, Output, Sampler

MARGIN = 1e-4
HOMES = {
    "autoregressive": "autoregressive",
    "draft_verify": "hybrid",
    "posterior": "uniform",
    "predictor_corrector": "uniform",
    "analytic": "sedd",
}
LENGTHS = (24, 11, 17, 5, 30, 8, 21, 14)  # free positions of the rows of a batch


@dataclass(frozen=True)
class Seen:
    """One pass of one row."""

    want: tuple[int, ...]
    token: tuple[int, ...]
    conf: torch.Tensor  # [w] probability of these
    p: torch.Tensor  # [w, V]


@dataclass
class Watch:
    """What was predicted and drawn, pass by pass, for each row."""

    seen: dict[int, list[Seen]] = field(default_factory=dict)

    def __call__(self, ask: Forward, out: Output) -> None:
        assert ask.rows is not None
        owner = (ask.want >= 0).nonzero()[:, 0]
        for number, row in enumerate(ask.rows.tolist()):
            real = ask.want[number] >= 0
            one = Seen(
                tuple(ask.want[number][real].tolist()),
                tuple(out.token[number][real].tolist()),
                out.conf[number][real].double().exp(),
                out.log_p[owner == number].double().exp(),
            )
            self.seen.setdefault(row, []).append(one)


def model_of(family: str) -> Model:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": family}, tokenizer, preset("toy", tokenizer.vocab_size), conditional=True, seed=1)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    model.network.requires_grad_(False)
    return model


def write(model: Model, sampler: Sampler, cache: str, rows: list[int], temperature: float) -> tuple[Canvas, Watch]:
    """Texts of these rows, whose prompts and lengths differ."""
    prompts = [[65 + row, 70, 66 + 2 * row, 4] if row % 2 else [65 + row, 4] for row in rows]
    canvas = make_canvas(
        [[*prompt, *[None] * LENGTHS[row % len(LENGTHS)]] for prompt, row in zip(prompts, rows, strict=True)],
        [len(prompt) for prompt in prompts],
        model.spec,
        seeds=rows,
        temperature=temperature,
    )
    policy = None if cache == "none" else registry.find("caches", cache)()
    watch = Watch()
    loop = Loop({"main": model.writer()}, Method(sampler, policy), model.spec, watch=watch)
    for _ in loop.run(canvas):
        pass
    return canvas, watch


def excused(alone: Watch, together: Watch, number: int) -> bool:
    """Did the two part at a decision that was closer than ``MARGIN``? See above."""
    before: Seen | None = None
    for ours, theirs in zip(alone.seen[0], together.seen[number], strict=False):
        if ours.want != theirs.want:
            break
        if float((ours.p.cumsum(-1) - theirs.p.cumsum(-1)).abs().max()) > MARGIN:
            return False
        if ours.token != theirs.token:
            return True
        before = ours
    if before is None or len(before.conf) < 2:
        return False
    apart = before.conf.sort().values.diff()
    return float(apart.min()) < MARGIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    caches, failed = ["none", *registry.names("caches")], 0
    print("| sampler | " + " | ".join(caches) + " |\n|---|" + "---|" * len(caches))
    for name in registry.names("samplers"):
        kind: Any = registry.find("samplers", name)
        model = model_of(HOMES.get(name, "masked"))
        sampler = kind(steps=4) if "steps" in kind.__dataclass_fields__ else kind()
        cells = []
        for cache in caches:
            equal = close = wrong = 0
            for temperature in (0.0, 1.0):
                try:
                    canvas, together = write(model, sampler, cache, list(range(args.rows)), temperature)
                except UserError as error:
                    cells.append(f"refused: {error.what}")
                    break
                for row in range(args.rows):
                    single, alone = write(model, sampler, cache, [row], temperature)
                    width = single.ids.shape[1]
                    if torch.equal(canvas.ids[row, :width], single.ids[0]):
                        equal += 1
                    elif excused(alone, together, row):
                        close += 1
                    else:
                        wrong += 1
            else:
                cells.append(
                    f"{equal} equal" + (f", {close} close" if close else "") + (f", **{wrong}**" if wrong else "")
                )
                failed += wrong
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
