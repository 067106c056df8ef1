"""``redraft models``: the families, samplers, presets, checkpoints and settings that other commands accept."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from redraft.cli._common import Device, Json, Seed
from redraft.cli._verbs import verb
from redraft.options import describe, table
from redraft.settings import Settings

_TRAINING_BYTES = 16  # per weight: itself, its gradient and AdamW's two moments in float32


def _only(kind: str) -> Any:
    return typer.Option(f"--{kind}", help=f"List {kind}. Without any of these options, everything is listed.")


@verb(order=130)
def models(
    families: Annotated[bool, _only("families")] = False,
    samplers: Annotated[bool, _only("samplers")] = False,
    caches: Annotated[bool, _only("caches")] = False,
    constraints: Annotated[bool, _only("constraints")] = False,
    guidance: Annotated[bool, _only("guidance")] = False,
    curricula: Annotated[bool, _only("curricula")] = False,
    conversions: Annotated[bool, _only("conversions")] = False,
    rewards: Annotated[bool, _only("rewards")] = False,
    tasks: Annotated[bool, _only("tasks")] = False,
    benchmarks: Annotated[bool, _only("benchmarks")] = False,
    presets: Annotated[bool, _only("presets")] = False,
    checkpoints: Annotated[bool, _only("checkpoints")] = False,
    settings: Annotated[bool, _only("settings")] = False,
    as_json: Json = False,
    device: Device = "auto",
    seed: Seed = 0,
) -> dict[str, Any]:
    """List families, samplers, caches, guidance, constraints, ways to convert, rewards, tasks, benchmarks, checkpoints.

    \b
    Examples:
      redraft models
      redraft models --families
      redraft models --samplers --caches
      redraft models --benchmarks
      redraft models --settings
      redraft models --json | python -m json.tool

    A preset can be trained on --device if its weights, gradients and optimizer state fit into the memory. --settings
    lists the generation settings as a Markdown table. --seed has no effect; every command accepts it.
    """
    parts: dict[str, tuple[bool, Callable[[], list[dict[str, Any]]]]] = {
        "families": (families, _families),
        "samplers": (samplers, _samplers),
        "caches": (caches, lambda: _named("caches")),
        "constraints": (constraints, lambda: _named("constraints")),
        "guidance": (guidance, lambda: _named("guidance")),
        "curricula": (curricula, lambda: _named("curricula")),
        "conversions": (conversions, lambda: _named("objectives.conversion")),
        "rewards": (rewards, lambda: _named("rewards")),
        "tasks": (tasks, _tasks),
        "benchmarks": (benchmarks, _benchmarks),
        "presets": (presets, lambda: _presets(device)),
        "checkpoints": (checkpoints, _checkpoints),
        "settings": (settings, lambda: describe(Settings)),
    }
    some = any(asked for asked, _ in parts.values())
    found = {kind: made() for kind, (asked, made) in parts.items() if asked or not some}
    if not as_json:
        typer.echo("\n\n".join("\n".join(_SHOWN[kind](rows)) for kind, rows in found.items()))
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
        {"name": name, "summary": _headline(cls), "exact": cls().exact, "options": _options(cls)}
        for name, cls in classes.items()
    ]


def _named(folder: str) -> list[dict[str, Any]]:
    from redraft.registry import find, names

    classes = {name: find(folder, name) for name in names(folder)}
    return [{"name": name, "summary": _headline(cls), "options": _options(cls)} for name, cls in classes.items()]


def _tasks() -> list[dict[str, Any]]:
    from redraft.registry import find, names

    return [{"name": name, "summary": find("tasks", name).summary} for name in names("tasks")]


def _benchmarks() -> list[dict[str, Any]]:
    from redraft.registry import find, names

    classes = {name: find("tasks.benchmarks", name) for name in names("tasks.benchmarks")}
    return [
        {
            "name": name,
            "version": cls.version,
            "summary": cls.summary,
            "citation": cls.citation,
            "data": dict(cls.sources),
            "shots": cls.shots,
            "answering": cls.answering,
        }
        for name, cls in classes.items()
    ]


def _headline(cls: type) -> str:
    """First paragraph of the docstring of a class's file, without the name at its beginning."""
    text = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "").split("\n\n")[0]
    name, _, rest = " ".join(text.split()).partition(": ")
    return rest or name


def _options(cls: type) -> dict[str, Any]:
    """Fields of a component with their defaults; None for a field without a default."""
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(cls)
        if field.init
    }


def _presets(device: str) -> list[dict[str, Any]]:
    from redraft import runtime
    from redraft.models import parameters as weights
    from redraft.presets import names, preset

    room = runtime.installed_memory(runtime.device(device))
    rows = []
    for name in names():
        config = preset(name, vocab_size=8192)
        parameters = weights(config)
        shape = {"dim": config.dim, "layers": config.layers, "heads": config.heads, "max_length": config.max_length}
        trains = not room or parameters * _TRAINING_BYTES < room
        rows.append({"name": name, "parameters": parameters, "trains_here": trains} | shape)
    return rows


def _checkpoints() -> list[dict[str, Any]]:
    from redraft.shipped import zoo
    from redraft.zoo.files import facts, packaged_facts

    return [*map(facts, zoo().values()), *packaged_facts()]


def _listing(title: str) -> Callable[[list[dict[str, Any]]], list[str]]:
    """A function that formats components with their summaries and fields."""

    def lines(rows: list[dict[str, Any]]) -> list[str]:
        shown = [title]
        for one in rows:
            options = ", ".join(f"{key}={value}" for key, value in one["options"].items())
            shown.append(f"  {one['name']:20} {one['summary']}{f' ({options})' if options else ''}")
        return shown

    return lines


def _family_lines(rows: list[dict[str, Any]]) -> list[str]:
    title = "Families (redraft train, redraft compare --families)"
    return [title, *(f"  {one['name']:20} {one['summary']} [{one['citation']}]" for one in rows)]


def _task_lines(rows: list[dict[str, Any]]) -> list[str]:
    title = "Kinds of tasks, for any data (redraft evaluate, tune, compare --task NAME --data DATA)"
    return [title, *(f"  {one['name']:20} {one['summary']}" for one in rows)]


def _benchmark_lines(rows: list[dict[str, Any]]) -> list[str]:
    shown = ["Benchmarks, with data of their own (redraft evaluate --task NAME, or --task NAME:PART)"]
    for one in rows:
        parts = ", ".join(filter(None, one["data"]))
        shown.append(f"  {one['name']:20} {one['summary']}{f' ({parts})' if parts else ''} [{one['citation']}]")
    return shown


def _constraint_lines(rows: list[dict[str, Any]]) -> list[str]:
    return ["Constraints (--constraint NAME=TEXT)", *(f"  {one['name']:20} {one['summary']}" for one in rows)]


def _preset_lines(rows: list[dict[str, Any]]) -> list[str]:
    shown = ["Presets, with a vocabulary of 8192 (--preset NAME, or model.preset in a recipe)"]
    for shape in rows:
        fits = "" if shape["trains_here"] else ", too large to train on this device"
        sizes = f"{shape['layers']} layers of width {shape['dim']}, {shape['max_length']} positions"
        shown.append(f"  {shape['name']:20} {shape['parameters'] / 1e6:.1f}M parameters: {sizes}{fits}")
    return shown


def _checkpoint_lines(rows: list[dict[str, Any]]) -> list[str]:
    none = ["  None found. Run redraft in its checkout, or set REDRAFT_ZOO to a folder of checkpoints."]
    lines = [f"  {one['name']:20} {_size(one)}. {one.get('card', '')}" for one in rows]
    return ["Checkpoints (--model NAME)", *(lines or none)]


def _size(one: dict[str, Any]) -> str:
    return "not installed" if one["path"] is None else f"{one['megabytes']} MB"


_SHOWN: dict[str, Callable[[list[dict[str, Any]]], list[str]]] = {
    "families": _family_lines,
    "samplers": _listing("Samplers (--sampler NAME --option KEY=VALUE)"),
    "caches": _listing("Caches (--cache NAME --cache-option KEY=VALUE)"),
    "constraints": _constraint_lines,
    "guidance": _listing("Guidance (--guidance NAME --guide KEY=VALUE)"),
    "curricula": _listing("Curricula (redraft finetune --curriculum NAME --set curriculum.KEY=VALUE)"),
    "conversions": _listing(
        "Objectives of conversion (redraft finetune --family NAME --objective NAME --set objective.KEY=VALUE)"
    ),
    "rewards": _listing("Rewards (redraft finetune --objective reward --reward NAME)"),
    "tasks": _task_lines,
    "benchmarks": _benchmark_lines,
    "presets": _preset_lines,
    "checkpoints": _checkpoint_lines,
    "settings": lambda rows: table(Settings).splitlines(),
}
