"""How often the host waits for the device, per forward pass of decoding and per training update, on the pretend device.

``PYTHONPATH=src python -m tests.device.counting`` prints both tables.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from redraft import runtime
from redraft.data.tokenizer import Tokenizer
from redraft.generation.loop import Loop
from redraft.model import Model
from redraft.presets import preset
from redraft.presets import shape as network_shape
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from tests import pretend_device

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

# Name -> family and settings. The floor is one wait a turn: tokens and confidences have to reach the host.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "autoregressive + exact": ("autoregressive", {"cache": "exact"}),
    "confidence": ("masked", {"sampler": "confidence", "steps": 6, "cache": "none"}),
    "block + exact": ("block", {"cache": "exact"}),
    "draft and verify": ("hybrid", {"sampler": "draft_verify"}),
}
UPDATES = (
    *("masked", "autoregressive", "d3pm", "sedd", "uniform", "expand", "lora", "novels-masked", "block", "hybrid"),
    *("cross-masked", "edit", "self-conditioned", "embedding", "latent", "distilled", "glancing", "thought"),
)


def fresh(family: str, paired: bool = True, network: str = "transformer", length: int = 96, **fields: Any) -> Model:
    """An untrained model on the host, with weights large enough for distributions that differ between positions."""
    tokenizer = Tokenizer.bytes()
    size = tokenizer.vocab_size
    plain = network == "transformer"
    shape = preset("toy", size, max_length=length) if plain else network_shape("toy", size, network)
    model = Model.fresh({"name": family, **fields}, tokenizer, shape, paired, seed=1)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    model.network.eval().requires_grad_(False)
    return model


def tiny(recipe: Recipe, **more: Any) -> list[str]:
    """Overrides that keep what a recipe is about and make the rest small: two updates."""
    source = "novels" if recipe.data.text else "tatoeba.en-de"
    if recipe.data.source.endswith(".mix.toml"):
        source = "two-ways.mix.toml"
    generated = recipe.data.source.startswith("multiplication:")
    plain = {
        "data.source": "multiplication:3x3:500" if generated else f"{RECIPES}/toy/data/{source}",
        "tokenizer.kind": "bytes",
        "data.too_long": "skip",
        "model.preset": "toy",
        "train.batch_tokens": max(1024, recipe.data.length + 1),
        "train.passes": 0,
        "train.minutes": 0,
        "train.tokens": 1100,
        "train.validation_rows": 4,
        "train.log_every": 1,
        "train.threads": 1,
    }
    if recipe.family["name"] == "thought":
        plain |= {"family.segment_end": "+", "data.length": 256}  # for the tokenizer of bytes
    if recipe.family["name"] == "drafter":
        plain |= {"family.texts": 16}
    return [f"{key}={json.dumps(value)}" for key, value in {**plain, **more}.items()]


@functools.cache
def _model(family: str) -> Model:
    model = fresh(family, paired=False, length=700)
    model.network.to("cuda")
    return model


def per_pass(
    log: pretend_device.Log, method: str, batch: int, temperature: float, tokens: int = 16, positions: int = 600
) -> float:
    """Waits of the host per forward pass of decoding, for ``batch`` prompts of ``positions`` tokens and a few more."""
    family, settings = METHODS[method]
    model = _model(family)
    # Different lengths, so that the rows of a batch are ragged.
    prompts = [bytes(65 + (row + at) % 26 for at in range(positions + row)).decode() for row in range(batch)]
    common = {"max_new_tokens": tokens, "length": "fixed", "ignore_eos": True, "temperature": temperature, "seed": 1}
    run = model.start(prompts, model.settings(**{**common, **settings}))
    steps = iter(run)
    next(steps)  # the first turn fills the cache and makes what is made once
    log.clear()
    before = _passes(run.loop)
    for _ in steps:
        pass
    return len(log.of("wait")) / (_passes(run.loop) - before)


def _passes(loop: Loop) -> int:
    return sum(counter.passes for counter in (loop.counter, *loop.others.values()))


def per_update(log: pretend_device.Log, recipe: str, out: Path, every: int = 4) -> float:
    """Waits of the host per update of training, between two reports, without the waits of the report itself."""
    marks: list[int] = []

    def mark(event: Any) -> None:
        if event.kind == "update":
            # What the report and the progress bar read, now and then, is not the update's.
            marks.append(sum(not e.site.startswith(REPORTS) for e in log.of("wait")))

    path = RECIPES / "toy" / f"{recipe}.toml"
    overrides = tiny(
        Recipe.load(path), **{"train.tokens": 13_000, "train.log_every": every, "train.validation_rows": 0}
    )
    log.clear()
    train(Recipe.load(path, overrides), out, device="cuda", on_event=mark)
    return (marks[2] - marks[1] - 1) / every  # a report synchronises once, to measure the speed


REPORTS = ("redraft/train/state.py",)


def plug_in() -> pretend_device.Log:
    """Plug the device in. Its products are as fast as the host's, so the peak of an accelerator is not measured."""
    torch.set_num_threads(1)
    runtime.peak_matmul = lambda *args, **kwargs: 1e15
    return pretend_device.plug_in(("redraft",))


def main(wanted: list[str]) -> None:
    """Print the tables: ``turns``, ``updates``, or both."""
    log = plug_in()
    if not wanted or "turns" in wanted:
        print("waits per pass            batch 1, T=0  T=1   batch 32, T=0  T=1")
        for method in METHODS:
            found = [per_pass(log, method, batch, t, 8 if batch > 1 else 16) for batch in (1, 32) for t in (0.0, 1.0)]
            print(f"{method:26}" + "".join(f"{value:9.2f}" for value in found), flush=True)
    if not wanted or "updates" in wanted:
        print("waits per update")
        with TemporaryDirectory() as folder:
            for recipe in UPDATES:
                print(f"{recipe:26}{per_update(log, recipe, Path(folder) / recipe):9.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
