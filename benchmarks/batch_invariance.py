"""Batch invariance: does a text depend on the other rows of its batch? Every sampler with every cache.

    python -m benchmarks.batch_invariance [--samplers confidence,wino] [--rows 4]

Ragged batches are compared with single rows, in float32, on an untrained network with enlarged weights, for each family
that a sampler supports; ``confidence`` and ``threshold`` also run block by block (family block) and with changing
length (expand). Sums are rounded differently in batches of other sizes, so a close decision may change. A text counts
as *equal* if its ids and its number of forward passes are equal (and its length, where lengths change). It counts as
*close* if, in the forward pass in which the two runs diverge, predictions agree within 1e-4 and

- either another token was sampled at some position: both runs use the same uniform number, which was within 1e-4 of the
  boundary between the two tokens (at temperature 0: the probabilities of the two likeliest tokens are that close);
- or other positions were written, and the confidences of two of them were within 1e-4.

Continuous diffusion makes no decisions before its last forward passes: rounding errors accumulate in vectors. Its texts
are compared by the last forward pass, which predicts tokens (embedding) or decodes them (latent), with the same rule,
and by vectors: those predicted in every forward pass (embedding), or those decoded at the end (latent). The largest
difference of a component is reported; more than 1e-3 of the largest component counts as a dependence. Samplers of edits
sample from rates; no difference is tolerated for them.

Every other difference is a dependence on the batch, printed in bold. Prints a table; exits with 1 if there is such a
difference, or a sampler that could not be run.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from typing import Any

import torch

from redraft import registry
from redraft.canvas import Growth
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.start import start_rows
from redraft.model import Model
from redraft.presets import preset
from redraft.types import PAD, Canvas, Output, Request, VectorQuery

MARGIN, DRIFT = 1e-4, 1e-3
MASKS = [{"name": "masked"}]
LENGTHS = [{"name": "block", "block": 4}, {"name": "expand"}]
VECTORS = [{"name": "embedding"}, {"name": "latent"}]
# Families of samplers that support others than masked diffusion; the remaining samplers fill masks.
HOMES: dict[str, list[dict[str, Any]]] = {
    "analytic": [{"name": "sedd"}, {"name": "sedd", "process": "uniform"}],
    "autoregressive": [{"name": "autoregressive"}],
    "confidence": MASKS + LENGTHS,
    "ddim": VECTORS,
    "dpm_solver": VECTORS,
    "draft_verify": [{"name": "hybrid"}],
    "edit_flow": [{"name": "edit"}, {"name": "edit", "start": 4}],
    "posterior": [{"name": "uniform"}],
    "predictor_corrector": [{"name": "uniform"}],
    "psi": [{"name": "uniform"}],
    "renoising": [{"name": "hybrid", "process": "uniform", "self_condition": share} for share in (0.0, 0.5)],
    "thought": [{"name": "thought", "border": "e"}],
    "threshold": MASKS + LENGTHS,
}
FREE = (12, 5, 9, 14, 3, 7)  # free positions of the rows of a batch


@dataclass(frozen=True)
class Seen:
    """One forward pass of one row."""

    want: tuple[int, ...]
    token: tuple[int, ...]
    conf: torch.Tensor  # [w] probability of these
    p: torch.Tensor  # [w, V]
    vector: torch.Tensor | None  # [w or K, Z] predicted, or decoded


@dataclass
class Watch:
    """The predictions and samples of each row, forward pass by forward pass."""

    seen: dict[int, list[Seen]] = field(default_factory=dict)

    def __call__(self, request: Request, out: Output) -> None:
        positions, owner = request.target_positions, (request.targets >= 0).nonzero()[:, 0]
        query = request.find(VectorQuery)
        for number, row in enumerate(request.rows.tolist()):
            real, mine = request.targets[number] >= 0, owner == number
            vector = None if out.vector is None else out.vector[mine].double()
            if query is not None and query.kind == "decode":
                assert query.vectors is not None and query.noisy is not None
                vector = query.vectors[number][query.noisy[number]].double()
            one = Seen(
                tuple(positions[number][real].tolist()),
                tuple(out.token[number][real].tolist()),
                out.conf[number][real].double().exp(),
                out.log_p[mine].double().exp(),
                vector,
            )
            self.seen.setdefault(row, []).append(one)


def model_of(family: dict[str, Any]) -> Model:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh(family, tokenizer, preset("toy", tokenizer.vocab_size), paired=True, seed=1)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    model.network.embedding.weight.data[list(model.spec.tokens.segment_end_ids)] *= (
        2  # so that some of them are generated
    )
    model.network.requires_grad_(False)
    return model


def write(model: Model, settings: dict[str, Any], rows: list[int]) -> tuple[Canvas, Watch]:
    """Generate the texts of these rows, whose prompts and lengths differ."""
    prompts = [[65 + row, 70, 66 + 2 * row, 4] if row % 2 else [65 + row, 4] for row in rows]
    free = [FREE[row % len(FREE)] for row in rows]
    growth = None
    if model.spec.variable_length:
        growth = Growth([len(p) + n + 6 for p, n in zip(prompts, free, strict=True)], [[len(p)] for p in prompts])
        most = model.family.initial_length if model.spec.edits else 99
        closed = [[*[None] * min(n - 1, most), model.tokenizer.eos_id] for n in free]
    else:
        closed = [[None] * n for n in free]
    chosen = model.settings(seed=rows[0], max_new_tokens=max(free), **settings)
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, closed, strict=True)]
    drafting = start_rows(model, texts, [len(p) for p in prompts], chosen, growth)
    watch = drafting.loop.on_answer = Watch()
    for _ in drafting:
        pass
    return drafting.canvas, watch


def excused(alone: list[Seen], together: list[Seen]) -> bool:
    """Did the two runs diverge at a decision closer than ``MARGIN``? See the module docstring."""
    if alone[-1].vector is not None:
        alone, together = alone[-1:], together[-1:]
    before: Seen | None = None
    for ours, theirs in zip(alone, together, strict=False):
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


def drift(alone: list[Seen], together: list[Seen]) -> float:
    """The largest difference of a vector component, relative to the largest component; 0 without vectors."""
    found = 0.0
    for ours, theirs in zip(alone, together, strict=False):
        if ours.vector is not None and theirs.vector is not None:
            found = max(found, float((ours.vector - theirs.vector).abs().max() / ours.vector.abs().max()))
    return found


@dataclass
class Cell:
    """The results for the texts of one sampler, family and cache."""

    equal: int = 0
    close: int = 0
    wrong: int = 0
    drift: float = 0.0
    refused: str = ""

    def compare(self, model: Model, settings: dict[str, Any], rows: int) -> None:
        try:
            canvas, together = write(model, settings, list(range(rows)))
        except UserError as error:
            self.refused = error.what
            return
        for row in range(rows):
            single, alone = write(model, settings, [row])
            ours, theirs = alone.seen[0], together.seen[row]
            text, other = (c.ids[n][c.status[n] != PAD] for c, n in ((single, 0), (canvas, row)))
            moved = drift(ours, theirs)
            self.drift = max(self.drift, moved)
            if moved > DRIFT:
                self.wrong += 1
            elif torch.equal(text, other) and int(single.nfe[0]) == int(canvas.nfe[row]):
                self.equal += 1
            elif not model.spec.edits and excused(ours, theirs):
                self.close += 1
            else:
                self.wrong += 1

    def __str__(self) -> str:
        if self.refused:
            return f"refused: {self.refused}"
        parts = [f"{self.equal} equal"]
        parts += [f"{self.close} close"] * (self.close > 0) + [f"**{self.wrong}**"] * (self.wrong > 0)
        return ", ".join(parts) + (f"; vectors {self.drift:.0e}" if self.drift else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", default=",".join(registry.names("samplers")), help="names with commas between")
    parser.add_argument("--rows", type=int, default=4)
    args = parser.parse_args()
    caches, failed = ["none", *registry.names("caches")], 0
    print("| sampler | family | " + " | ".join(caches) + " |\n|---|---|" + "---|" * len(caches))
    for name in args.samplers.split(","):
        kind = registry.find("samplers", name)
        steps = {"steps": 4} if "steps" in kind.__dataclass_fields__ else {}
        for family in HOMES.get(name, MASKS):
            model, cells = model_of(family), [Cell() for _ in caches]
            for cell, cache in zip(cells, caches, strict=True):
                for temperature in (0.0, 1.0):
                    chosen = {"sampler": name, "cache": cache, "temperature": temperature, **steps}
                    cell.compare(model, chosen, args.rows)
            label = "-".join(map(str, family.values()))
            print(f"| {name} | {label} | " + " | ".join(map(str, cells)) + " |", flush=True)
            failed += sum(cell.wrong for cell in cells) + all(cell.refused for cell in cells)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
