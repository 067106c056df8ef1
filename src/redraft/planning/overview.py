"""``redraft plan``: memory and time of training a model and of serving it, on one machine or several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from redraft import runtime
from redraft.errors import UserError
from redraft.host_memory import readable
from redraft.loading import family_of
from redraft.lora import BASE_DTYPE_HELP, BASE_DTYPES
from redraft.options import check, setting
from redraft.planning.machine import Machine, find
from redraft.planning.parallel import ALONE, KINDS, Parallel
from redraft.planning.roofline import Decoder
from redraft.planning.serving import ServerPlan, server
from redraft.planning.step import StepPlan, step
from redraft.planning.timing import pace
from redraft.planning.training import MemoryPlan, Planned
from redraft.planning.twin import Outline
from redraft.presets import preset
from redraft.train.recipe import Recipe

LARGE_VOCABULARY, SMALL_VOCABULARY = 128_256, 8192  # of presets from 1B parameters on, and of smaller ones
_CLI = ("cli",)


@dataclass(frozen=True)
class Question:
    """What is to be planned. Zero and empty values are those of the recipe or the model, or the usual ones."""

    preset: str = setting("", "Shape of a new model (see: redraft models --presets).", metavar="NAME", reach=_CLI)
    family: str = setting(
        "", "Family of the model. Unset: the model's own, or masked for a preset.", metavar="NAME", reach=_CLI
    )
    vocab_size: int = setting(
        0,
        "Vocabulary of a preset. Unset: 8,192, and 128,256 for presets of 1B parameters or more.",
        least=0,
        unit="tokens",
        reach=_CLI,
    )
    length: int = setting(0, "Tokens of a row in training. Unset: the recipe's, else 1,024.", least=0, reach=_CLI)
    batch_tokens: int = setting(
        0, "Tokens of a batch on each device. Unset: the recipe's, else 8 rows.", least=0, unit="tokens", reach=_CLI
    )
    dtype: str = setting(
        "auto",
        "Type of products in training and of weights in serving. auto: bfloat16 on an accelerator.",
        choices=("auto", "float32", "bfloat16"),
        reach=_CLI,
    )
    lora_rank: int = setting(0, "Train adapters of this rank on a model; 0 trains all weights.", least=0, reach=_CLI)
    base_dtype: str = setting("auto", f"Under adapters: {BASE_DTYPE_HELP}", choices=BASE_DTYPES, reach=_CLI)

    machine: str = setting(
        "this",
        "Kind of device: a100, h100, h200, rtx4090 ... or this one, which is measured.",
        metavar="NAME",
        reach=_CLI,
    )
    tflops: float = setting(0.0, "Its matrix products in bfloat16, in TFLOP/s.", least=0, reach=_CLI)
    bandwidth: float = setting(0.0, "Its memory's bandwidth, in GB/s.", least=0, reach=_CLI)
    memory: float = setting(0.0, "Its memory, in GB.", least=0, reach=_CLI)
    link: float = setting(0.0, "What it can send to other devices, in GB/s.", least=0, reach=_CLI)
    gpus: int = setting(1, "Devices that train together.", least=1, reach=_CLI)
    parallel: str = setting(
        "ddp", "What they share: ddp the batch, fsdp also weights and their states.", choices=KINDS, reach=_CLI
    )

    rows: int = setting(32, "Rows of a batch in serving.", least=1, unit="rows", reach=_CLI)
    context: int = setting(
        0,
        "Positions of a row in serving. Unset: 4,096, or the model's context if that is shorter.",
        least=0,
        reach=_CLI,
    )
    block: int = setting(32, "Positions of a pass of block diffusion.", least=1, unit="tokens", reach=_CLI)

    def __post_init__(self) -> None:
        check(self)

    def on(self, device: torch.device) -> Machine:
        """The machine, measured if it is this one.

        Raises:
            UserError: there is no machine of this name.
        """
        scales = {"bfloat16": 1e12 * self.tflops, "bandwidth": 1e9 * self.bandwidth, "memory": 1e9 * self.memory}
        scales |= {"float32": 1e12 * self.tflops / 2, "link": 1e9 * self.link}
        return find(self.machine, device, **{name: value or None for name, value in scales.items()})


@dataclass(frozen=True)
class Pass:
    """A pass of decoding: its least time, and the tokens that it must write to be as fast as autoregression."""

    rows: int
    positions: int
    cached: int
    seconds: float
    break_even: float


@dataclass(frozen=True)
class Overview:
    """The answer: memory and time of training and of serving."""

    parameters: int
    trained: int
    machine: Machine
    parallel: Parallel
    training: MemoryPlan
    update: StepPlan
    serving: ServerPlan
    passes: tuple[Pass, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, in bytes and seconds."""
        return {
            "parameters": self.parameters,
            "trained": self.trained,
            "machine": vars(self.machine),
            "parallel": vars(self.parallel),
            "training": {"memory": self.training.to_json(), "update": self.update.to_json()},
            "serving": {"memory": self.serving.to_json(), "passes": [vars(one) for one in self.passes]},
        }


def overview(question: Question, target: str = "", overrides: tuple[str, ...] = (), device: str = "auto") -> Overview:
    """Memory and time of training and of serving. Nothing is loaded.

    Args:
        target: a recipe (a TOML file) or a model; empty: the question's preset.
        overrides: ``["train.ema=0.999", ...]``.
        device: of this machine.
    Raises:
        UserError: there is no such recipe, model, preset or machine.
    """
    where = runtime.device(device)
    machine, parallel = question.on(where), Parallel(question.gpus, question.parallel)
    recipe = recipe_of(question, target, overrides)
    planned = Planned.of(recipe, where, machine, parallel)
    memory = planned.memory()
    measured = pace(planned.outline, machine, memory.checkpointing, where, parallel) if machine.measured else 1.0
    served = _served(question, recipe)
    return Overview(
        parameters=planned.outline.parameters,
        trained=planned.outline.trained,
        machine=machine,
        parallel=parallel if question.gpus > 1 else ALONE,
        training=memory,
        update=step(planned.outline, machine, memory.checkpointing, parallel, measured),
        serving=server({target or question.preset: served}, where, question.dtype, question.rows, machine),
        passes=passes(question, served, machine),
    )


def passes(question: Question, run: Outline, machine: Machine) -> tuple[Pass, ...]:
    """Passes of one position, of a block, and of the whole context, for one row and for the whole batch."""
    low = question.dtype == "bfloat16" or (question.dtype == "auto" and machine.accelerator)
    decoder, found = Decoder.of(run, torch.bfloat16 if low else torch.float32), list[Pass]()
    for rows in sorted({1, question.rows}):
        for positions, cached in ((1, run.row), (question.block, run.row), (run.row, 0)):
            seconds = decoder.seconds(machine, rows, positions, cached)
            alone = decoder.seconds(machine, rows, 1, run.row)
            found.append(Pass(rows, positions, cached, seconds, seconds / alone))
    return tuple(found)


def recipe_of(question: Question, target: str = "", overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe of the run that a question is about.

    Raises:
        UserError: neither a target nor a preset, or both; or there is none of this name.
    """
    if bool(target) == bool(question.preset):
        what = (
            "A plan needs a recipe, a model or --preset." if not target else f"Both '{target}' and a preset were given."
        )
        raise UserError(what, "For example: redraft plan --preset 8b --machine h100.")
    if target.endswith(".toml"):
        found = Recipe.load(Path(target), overrides)
        data, train = found.data, found.train
        if question.length:
            data = replace(data, length=question.length)
        if question.batch_tokens:
            train = replace(train, batch_tokens=question.batch_tokens)
        if question.dtype != "auto":
            train = replace(train, dtype=question.dtype)
        return replace(found, data=data, train=train)
    length = question.length or 1024
    rank = question.lora_rank
    tables: dict[str, Any] = {
        "data": {"length": length},
        "tokenizer": {"vocab_size": _vocabulary(question)} if question.preset else {},
        "model": {"preset": question.preset} if question.preset else {"from": target},
        "family": {"name": question.family or "masked"} if question.preset or question.family else family_of(target),
        "lora": {"rank": rank, "alpha": 2.0 * rank, "base_dtype": question.base_dtype} if rank else None,
        "train": {"tokens": 1, "batch_tokens": question.batch_tokens or 8 * length, "dtype": question.dtype},
    }
    return Recipe.of(tables, "plan", overrides)


def _vocabulary(question: Question) -> int:
    large = preset(question.preset, 1).dim >= 2048
    return question.vocab_size or (LARGE_VOCABULARY if large else SMALL_VOCABULARY)


def _served(question: Question, recipe: Recipe) -> Outline:
    """The outline of the model when it is served: without adapters, with rows of the context."""
    whole = replace(recipe, lora=None, train=replace(recipe.train, batch_tokens=1 << 30))
    most = Outline.of(whole, False).shape.max_length
    context = question.context or min(4096, most)
    if context > most and recipe.model.from_:
        raise UserError(f"--context {context} exceeds the model's context of {most}.", f"Give at most {most}.")
    return Outline.of(replace(whole, data=replace(whole.data, length=context)), False)


def lines(found: Overview) -> list[str]:
    """The overview in words and tables."""
    machine, step_plan = found.machine, found.update
    many = f"{found.parallel.workers} x " if found.parallel.workers > 1 else ""
    how = f", {found.parallel.kind}" if found.parallel.workers > 1 else ""
    trained = "" if found.trained == found.parameters else f", {found.trained:,} of them trained"
    text = [
        f"model    {found.parameters:,} parameters{trained}",
        f"machine  {many}{machine.name}{how}: {machine.bfloat16 / 1e12:.4g} TFLOP/s in bfloat16, "
        f"{machine.bandwidth / 1e9:.4g} GB/s, ridge {machine.ridge():.0f} FLOP/byte",
        "",
        "training, on each device",
        f"  {found.training}",
        f"  fits     {'yes' if found.training.fits else 'no'}",
        f"  update   {clock(step_plan.seconds)}: products {clock(step_plan.products)}, vectors "
        f"{clock(step_plan.vectors)}, host {clock(step_plan.host)}, optimizer {clock(step_plan.optimizer)}, "
        f"communication {clock(step_plan.communication)}",
        f"  speed    {step_plan.tokens_per_second:,.0f} tokens/s, {step_plan.utilisation:.0%} of the peak",
    ]
    if step_plan.pace != 1.0:
        text.append(f"  measured {step_plan.pace:.2f} times the seconds of the roofline")
    text += [f"  sends    {name} {readable(size)} an update" for name, size in step_plan.sent.items()]
    text += [
        "",
        "serving, on one device",
        f"  {found.serving}",
        "",
        "  rows  positions  cached       a pass  break-even",
    ]
    for one in found.passes:
        text.append(
            f"  {one.rows:4}  {one.positions:9,}  {one.cached:6,}  {clock(one.seconds):>11}  {one.break_even:10.2f}"
        )
    return [*text, "", "break-even: tokens that a pass must write to be as fast as autoregression with a cache"]


def clock(seconds: float) -> str:
    """``1.23 s``, ``45.6 ms``, ``7.8 us``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us" if seconds else "0"
