"""``redraft demo``: the shipped models at work, on real data, in a few minutes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import Device, Json, Seed, WeightType, screen
from redraft.cli._verbs import verb
from redraft.errors import UserError
from redraft.settings import Dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from redraft.evaluation.items import Item
    from redraft.model import Model

_PAIR = {family: f"translate-en-de-{family}" for family in ("autoregressive", "masked")}
_SENTENCE = "I think that we should go home now."
_NEW_TOKENS, _STEPS, _SHOWN = 48, 4, 5
_PRODUCTS, _OBJECTS = 64, 8
_CALLS = 8  # of each rival in the race
_STUDY_TOKENS = 20_000
_ENGLISH, _HOLE = "My brother bought a new car.", "Mein Bruder hat [[?]] gekauft."
_DIGITS = "multiplication:4x4"
_SCHEMA = """{"type": "object", "additionalProperties": false, "required": ["name", "age", "sex"], "properties": {
"name": {"type": "string", "pattern": "^[A-Z][a-z]{2,9}$"}, "age": {"type": "integer", "minimum": 0, "maximum": 99},
"sex": {"enum": ["female", "male"]}}}"""
_CONSTRAINTS: dict[str, dict[str, str]] = {"without": {}, "with": {"json_schema": _SCHEMA}}
_LABEL = {"autoregressive": "autoregressive", "masked": f"masked, {_STEPS} steps"}
_PACE = 0.25  # seconds a pass stays in sight


@verb(order=10, resumes=True)
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the report; the same command goes on where it stopped.")] = Path(
        "runs/demo"
    ),
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: WeightType = "auto",
) -> dict[str, Any]:
    """Watch models at work: denoising, a race, a comparison.

    \b
    Examples:
      redraft demo
      redraft demo --out runs/another-demo --seed 1

    A text is denoised pass by pass, and two models race on the same prompts. Four tasks show what diffusion is good
    for: drafting for an autoregressive model, answering at once, filling holes, and JSON that is always valid. A small
    study compares two models in earnest. All of it on shipped checkpoints and real English-German sentence pairs.
    """
    import redraft
    from redraft.cli.compare import run
    from redraft.evaluation.items import make_items
    from redraft.files import check_writable

    console = screen(as_json)
    data = sample()
    check_writable(out, folder=True)
    models = {family: redraft.load(name, device, dtype) for family, name in _PAIR.items()}
    console.rule("1. A text comes into focus", align="left")
    denoised = denoise(models["masked"], console, seed)

    console.rule("2. A race: autoregressive against masked, same prompts", align="left")
    rows = heldout(data)
    raced = race(models, make_items(rows, models["masked"].tokenizer, 64, True, _NEW_TOKENS), console)

    console.rule("3. What diffusion is good for", align="left")
    good_for = {
        "multiplication": multiply(console, device, dtype),
        "hole": fill(models["masked"], console, seed),
        "json": write_json(console, seed, device, dtype),
    }

    console.rule("4. A small comparison, with a report", align="left")
    found = run(study(data, out, seed, device, dtype), as_json)
    verdict = {"compare": found["verdict"], "files": found["files"]}
    return {"denoised": denoised, "race": raced, "good_for": good_for, **verdict}


def sample() -> Path:
    """Where the shipped sample lies.

    Raises:
        UserError: not in a checkout.
    """
    folder = Path(__file__).parents[3] / "examples" / "data"
    if not (folder / "tatoeba.en-de.test.jsonl.gz").is_file():
        raise UserError("the demo's sample data are not here.", "Run it in a checkout: make demo.")
    return folder / "tatoeba.en-de"


def heldout(data: Path) -> Sequence[Any]:
    from redraft.data.columns import Columns
    from redraft.data.examples import read

    return read(f"{data}.test.jsonl.gz", Columns(input="english", target="german"))


def denoise(model: Model, console: Console, seed: int) -> dict[str, Any]:
    """One sentence, pass by pass: animated on a terminal, else a line a pass."""
    from redraft.cli._animation import plain, watch

    settings = model.settings(max_new_tokens=_NEW_TOKENS, steps=8, candidates=1, sampler="confidence", seed=seed)
    drafting = model.start([_SENTENCE], settings)
    console.print(f"English: {_SENTENCE}", markup=False)
    if console.is_terminal:
        seconds = watch(drafting, console, _PACE)
    else:
        seconds = plain(drafting, console)
    found = drafting.results()[0]
    console.print(f"German:  {found.text}", markup=False)
    console.print(f"{found.nfe} passes for {len(found.ids)} tokens, {seconds * 1000:.0f} ms", style="dim")
    return {"prompt": _SENTENCE, "text": found.text, "nfe": found.nfe, "new_tokens": len(found.ids), "seconds": seconds}


def race(models: dict[str, Model], asked: list[Item], console: Console) -> dict[str, Any]:
    """The same prompts to both, turn by turn, alone and 32 at a time."""
    from rich.table import Table

    from redraft.evaluation.decoding import DecodingConfig
    from redraft.evaluation.texts import generate_texts
    from redraft.evaluation.timing import time_in_turns

    rivals = {
        "autoregressive": DecodingConfig("autoregressive", temperature=0.0, top_p=1.0),
        "masked": DecodingConfig("confidence", {"steps": _STEPS}, temperature=0.0, top_p=1.0),
    }
    prompts = [item.prompt for item in asked]
    texts = {f: generate_texts(models[f], prompts, s, _NEW_TOKENS, 32) for f, s in rivals.items()}
    table = Table(title=f"Some of {len(prompts)} prompts", title_justify="left", show_lines=True)
    for name in ("English", *_LABEL.values(), "people"):
        table.add_column(name)
    for number, item in enumerate(asked[:_SHOWN]):
        table.add_row(item.prompt, *(texts[family].texts[number] for family in rivals), item.references[0])
    console.print(table)
    runners = [(models[family], setting) for family, setting in rivals.items()]
    speeds = {batch: time_in_turns(runners, prompts, batch, _CALLS, _NEW_TOKENS) for batch in (1, 32)}
    result: dict[str, Any] = {}
    times = Table("", "passes a text", "one text", "tokens/s", "32 texts", "tokens/s")
    for number, family in enumerate(rivals):
        passes = statistics.fmean(texts[family].nfe)
        result[family] = {"passes_per_text": passes}
        cells = [_LABEL[family], f"{passes:.1f}"]
        for batch, entries in speeds.items():
            median = statistics.median(entries[number].seconds)
            rate = sum(entries[number].tokens) / sum(entries[number].seconds)
            result[family][f"batch_{batch}"] = {"median_seconds": median, "tokens_per_second": rate}
            cells += [f"{median * 1000:.0f} ms", f"{rate:.0f}"]
        times.add_row(*cells)
    console.print(times)
    return result


def multiply(console: Console, device: str, dtype: Dtype) -> dict[str, Any]:
    """Products of two numbers: autoregression alone, with a diffusion model that drafts for it, and diffusion alone."""
    from rich.table import Table

    import redraft
    from redraft.data.examples import load
    from redraft.evaluation.decoding import DecodingConfig
    from redraft.evaluation.items import make_items
    from redraft.evaluation.scores import score
    from redraft.evaluation.texts import generate_texts
    from redraft.evaluation.timing import time_in_turns
    from redraft.metrics.final_answer import FinalAnswer

    plain, masked = (redraft.load(f"multiply-{family}", device, dtype) for family in _PAIR)
    plain.draft_with(redraft.load("multiply-masked", device, dtype))
    new = plain.settings().max_new_tokens
    asked = make_items(load(_DIGITS).test, plain.tokenizer, _PRODUCTS, True, new)
    prompts = [item.prompt for item in asked]
    own, greedy = masked.settings(), DecodingConfig("autoregressive", temperature=0.0, top_p=1.0)
    rivals = {
        "autoregressive": (plain, greedy),
        "drafted by diffusion": (plain, DecodingConfig("draft_verify", {"block": 32}, temperature=0.0, top_p=1.0)),
        "diffusion alone": (masked, DecodingConfig(own.sampler or "confidence", own.options, temperature=0.0)),
    }
    wrote = {name: generate_texts(model, prompts, config, new, 32) for name, (model, config) in rivals.items()}
    timed = time_in_turns(list(rivals.values()), prompts, 1, _CALLS, new)
    medians = [statistics.median(entry.seconds) for entry in timed]
    table = Table("", "same text", "right", "passes a text", "one text", "speed", title_justify="left")
    table.title = f"{len(prompts)} products of four-digit numbers, such as {prompts[0]}"
    found: dict[str, Any] = {}
    for (name, run), median in zip(wrote.items(), medians, strict=True):
        same = statistics.fmean(a == b for a, b in zip(run.texts, wrote["autoregressive"].texts, strict=True))
        right = score(FinalAnswer(), run.texts, asked).value
        passes, speed = statistics.fmean(run.nfe), medians[0] / median
        found[name] = {"same": same, "right": right, "passes": passes, "median_seconds": median, "speed": speed}
        cells = (f"{same:.0%}", f"{right:.0f} %", f"{passes:.1f}", f"{median * 1000:.0f} ms", f"{speed:.1f}x")
        table.add_row(name, *cells)
    console.print(table)
    return found


def fill(model: Model, console: Console, seed: int) -> dict[str, Any]:
    """A hole with text on both sides, which an autoregressive model can't see."""
    filled = model.infill(_HOLE, _ENGLISH, seed=seed)
    console.print(f"English:  {_ENGLISH}", markup=False)
    console.print(f"Given:    {_HOLE.replace('[[?]]', '____')}", markup=False)
    console.print(f"Filled:   {filled.text}", markup=False)
    console.print("The model chose the size of the hole, and saw the text behind it.", style="dim")
    return {"prompt": _ENGLISH, "holes": _HOLE, "text": filled.text}


def write_json(console: Console, seed: int, device: str, dtype: Dtype) -> dict[str, Any]:
    """Texts of a model that has never seen JSON, with and without a schema."""
    import redraft

    model = redraft.load("base-masked", device, dtype)
    prompts, valid = ["A person: "] * _OBJECTS, {}
    for name, constraint in _CONSTRAINTS.items():
        wrote = model.generate(prompts, constraint=constraint, max_new_tokens=48, seed=seed)
        texts = [one.text for one in wrote]
        valid[name] = sum(map(_parses, texts))
    console.print(f"JSON from a model of novels: {texts[0]}", markup=False)
    console.print(
        f"Valid of {_OBJECTS}: {valid['with']} with the schema, {valid['without']} without.", style="dim", markup=False
    )
    return {"objects": _OBJECTS, "valid": valid, "example": texts[0]}


def _parses(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def study(data: Path, out: Path, seed: int, device: str, dtype: Dtype) -> Any:
    """A small study of the two shipped models, fine-tuned briefly on the sample."""
    from redraft.compare.checkpoints import find_bases
    from redraft.compare.study import Study

    return Study(
        data=str(data),
        input="english",
        target="german",
        bases=find_bases(list(_PAIR.values()), list(_PAIR)),
        # The models were trained on such rows; brief fine-tuning at a low rate completes the study.
        budget_tokens=_STUDY_TOKENS,
        train={"lr": 5e-5},
        steps=(1, 4, 8),
        test_rows=200,
        validation_rows=100,
        timed_calls=8,
        seed=seed,
        device=device,
        dtype=dtype,
        out=str(out),
    )
