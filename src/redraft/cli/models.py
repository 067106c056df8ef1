"""``redraft models``: the families, shapes, samplers and checkpoints that other commands take by name."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any

import typer

from redraft.cli._common import Device, Json, Seed

_TRAINING_BYTES = 16  # a float32 weight, its gradient and AdamW's two moments


def models(as_json: Json = False, device: Device = "auto", seed: Seed = 0) -> dict[str, Any]:
    """List families, samplers, constraints, guidance, shapes and shipped checkpoints.

    \b
    Examples:
      redraft models
      redraft models --json | python -m json.tool

    A shape fits --device if weights, gradients and optimizer state take less than its memory. --seed is taken for the
    sake of scripts that give every command the same options; nothing here is random.
    """
    found = {
        "families": _families(),
        "samplers": _samplers(),
        "constraints": _named("constraints"),
        "guidance": _named("guidance"),
        "courses": _named("courses"),
        "presets": _presets(device),
        "checkpoints": _checkpoints(),
    }
    if not as_json:
        _show(found)
    return found


def _families() -> list[dict[str, Any]]:
    from redraft.registry import find, names

    classes = {name: find("families", name) for name in names("families")}
    return [
        {"name": name, "summary": cls.summary, "citation": cls.citation, "options": _options(cls)}
        for name, cls in classes.items()
    ]


def _samplers() -> list[dict[str, Any]]:
    from redraft.registry import find, names

    classes = {name: find("samplers", name) for name in names("samplers")}
    return [
        {"name": name, "summary": _headline(cls), "exact": cls.exact, "options": _options(cls)}
        for name, cls in classes.items()
    ]


def _named(folder: str) -> list[dict[str, Any]]:
    from redraft.registry import find, names

    classes = {name: find(folder, name) for name in names(folder)}
    return [{"name": name, "summary": _headline(cls), "options": _options(cls)} for name, cls in classes.items()]


def _headline(cls: type) -> str:
    """First sentence of the file that defines a class, without the name that it opens with."""
    text = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "").split("\n\n")[0]
    name, _, rest = " ".join(text.split()).partition(": ")
    return rest or name


def _options(cls: type) -> dict[str, Any]:
    """Fields of a component with their defaults; a field without one is None."""
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(cls)
        if field.init
    }


def _presets(device: str) -> list[dict[str, Any]]:
    import torch

    from redraft import runtime
    from redraft.cli.doctor import memory
    from redraft.models.transformer import Transformer
    from redraft.presets import names, preset

    room = memory(runtime.device(device))
    rows = []
    for name in names():
        config = preset(name, vocab_size=8192)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in Transformer(config).parameters())
        shape = {"dim": config.dim, "layers": config.layers, "heads": config.heads, "max_length": config.max_length}
        trains = parameters * _TRAINING_BYTES < room
        rows.append({"name": name, "parameters": parameters, "trains_here": trains} | shape)
    return rows


def _checkpoints() -> list[dict[str, Any]]:
    from redraft.cli._zoo import facts
    from redraft.loading import zoo

    return [facts(path) for path in zoo().values()]


def _show(found: dict[str, Any]) -> None:
    typer.echo("Families (redraft train, redraft compare --families)")
    for family in found["families"]:
        typer.echo(f"  {family['name']:20} {family['summary']} [{family['citation']}]")
    typer.echo("\nSamplers (--sampler NAME --option KEY=VALUE)")
    for sampler in found["samplers"]:
        options = ", ".join(f"{key}={value}" for key, value in sampler["options"].items())
        typer.echo(f"  {sampler['name']:20} {sampler['summary']}{f' ({options})' if options else ''}")
    typer.echo("\nConstraints (--constraint NAME=TEXT)")
    for constraint in found["constraints"]:
        typer.echo(f"  {constraint['name']:20} {constraint['summary']}")
    titles = {
        "guidance": "Guidance (--guidance NAME --guide KEY=VALUE)",
        "courses": "Courses into another family (redraft finetune --course NAME --set course.KEY=VALUE)",
    }
    for kind, title in titles.items():
        typer.echo(f"\n{title}")
        for one in found[kind]:
            options = ", ".join(f"{key}={value}" for key, value in one["options"].items())
            typer.echo(f"  {one['name']:20} {one['summary']}{f' ({options})' if options else ''}")
    typer.echo("\nShapes, with a vocabulary of 8192 (model.preset in a recipe)")
    for shape in found["presets"]:
        fits = "" if shape["trains_here"] else ", too large to train on this device"
        sizes = f"{shape['layers']} layers of {shape['dim']}, {shape['max_length']} positions"
        typer.echo(f"  {shape['name']:20} {shape['parameters'] / 1e6:.1f}M parameters: {sizes}{fits}")
    typer.echo("\nCheckpoints (--model NAME)")
    for checkpoint in found["checkpoints"]:
        typer.echo(f"  {checkpoint['name']:20} {checkpoint['megabytes']} MB. {checkpoint.get('card', '')}")
    if not found["checkpoints"]:
        typer.echo("  none here: run in a checkout, or set REDRAFT_ZOO to a folder of checkpoints")
