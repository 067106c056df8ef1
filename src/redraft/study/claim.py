"""A claim as a recipe: its words, data, models, budgets, ways of decoding, and the rule that decides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from redraft import config
from redraft.errors import UserError, suggest
from redraft.options import check, setting

BUDGETS = ("shipped", "small", "medium", "full")
_OWN = "own"  # name of the task of a user's data
_OF_DATA = ("source", "text", "input", "target", "mix", "kind")  # fields of a task that a user's data replace


@dataclass(frozen=True)
class Wanted:
    """What a user chooses about the claims that are run."""

    budget: str = setting(
        "small",
        "Size of models and training. shipped: the checkpoints that come with redraft, in minutes.",
        choices=BUDGETS,
        reach=("cli",),
    )
    seeds: int = setting(0, "Training runs of each model. Unset: the recipe's number.", least=0, reach=("cli",))
    data: str = setting("", "Your data in place of the claim's.", metavar="SOURCE", reach=("cli",))
    text: str | None = setting(None, "Column of plain text.", metavar="COLUMN", reach=("cli",))
    input: str | None = setting(None, "Column of the prompt.", metavar="COLUMN", reach=("cli",))
    target: str | None = setting(None, "Column of the answer.", metavar="COLUMN", reach=("cli",))
    data_root: str | None = setting(
        None,
        "Folder in which data sets are looked up by name.",
        metavar="FOLDER",
        envvar="REDRAFT_DATA",
        reach=("cli",),
    )

    def __post_init__(self) -> None:
        check(self)
        if self.columns and not self.data:
            raise UserError("Columns were named without data.", "Give --data, too.")

    @property
    def columns(self) -> dict[str, str]:
        """The columns that were named."""
        named = {"text": self.text, "input": self.input, "target": self.target}
        return {name: column for name, column in named.items() if column}

    def claim(self, name: str) -> Claim:
        """A claim as it is wanted.

        Raises:
            UserError: as ``Claim.load``.
        """
        own = {"source": self.data, **self.columns} if self.data else None
        return Claim.load(name, self.budget, self.seeds, own)


@dataclass(frozen=True)
class TaskTable:
    """Data of a claim, and how they are read. The same data and tokenizer serve all models of the task."""

    source: str = ""  # as for redraft train --data
    text: str | None = None  # columns
    input: str | None = None
    target: str | None = None
    prompt: str = "{}"  # around every input, to name the task
    mix: tuple[str, ...] = ()  # in place of a source: the tasks whose rows are joined
    kind: str = ""  # a file of tasks/; empty: inferred from the data
    tokenizer: str = "bpe"  # bpe, bytes, or the name of the task whose tokenizer is used
    vocab_size: int = 1000  # of bpe
    length: int = 128  # longest row in tokens; windows of plain text have this length
    new_tokens: int = 48  # longest answer in tokens
    train_rows: int = 0  # at most; 0: all
    train_bytes: int = 0  # at most, of targets; 0: all
    validation_rows: int = 100
    test_rows: int = 200

    def __post_init__(self) -> None:
        if bool(self.source) == bool(self.mix):
            raise UserError("A task needs either a source or a mix of other tasks.", "Set one of the two.")


@dataclass(frozen=True)
class ModelTable:
    """A model of a claim: trained once for each of its tasks and each seed."""

    family: dict[str, Any]  # name, and fields of the family
    network: str = "transformer"
    preset: str = ""  # empty: the claim's
    train: dict[str, Any] = field(default_factory=dict)  # what differs from the claim's [train]
    tasks: tuple[str, ...] = ()  # empty: all
    start: str = ""  # another model of the claim, which is converted
    checkpoint: dict[str, str] = field(default_factory=dict)  # by task: a model in place of training


@dataclass(frozen=True)
class DecodeTable:
    """Ways of decoding some models; one for each combination of the values in ``sweep``."""

    models: tuple[str, ...]
    sampler: str
    options: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # options, or: candidates, new_tokens, cache
    temperature: float = 0.0
    top_p: float = 1.0
    more: dict[str, Any] = field(default_factory=dict)  # further fields of the generation settings
    tasks: tuple[str, ...] = ()  # empty: all


_TABLES: dict[str, type] = {"tasks": TaskTable, "models": ModelTable, "decode": DecodeTable}


@dataclass(frozen=True)
class Claim:
    """One claim with everything that its experiment depends on, at one budget.

    A budget is a table ``[budgets.NAME]`` of the recipe. It overrides any of its keys; the tables that it names in
    ``replaces`` are replaced as a whole.
    """

    id: str
    claim: str  # in words
    source: str  # who says so
    compares: str  # what is compared with what, as a sentence
    analysis: dict[str, Any]  # name of a file in analyses/, and its fields: the decision rule
    tasks: dict[str, TaskTable] = field(default_factory=dict)
    models: dict[str, ModelTable] = field(default_factory=dict)
    decode: dict[str, DecodeTable] = field(default_factory=dict)
    preset: str = "1m"
    train: dict[str, Any] = field(default_factory=dict)  # as in a recipe of training
    seeds: int = 3
    reference: str = "autoregressive"  # the model that others are compared with
    earlier: str = ""  # what experiments outside of this program showed, at other sizes
    needs: str = ""  # hardware without which the claim stays open: cuda, or nothing
    budget: str = "small"
    minutes: float = 0.0  # expected on two CPU cores, all seeds together

    @classmethod
    def load(cls, name: str, budget: str = "small", seeds: int = 0, data: Mapping[str, Any] | None = None) -> Self:
        """A claim by its id, or the path of a recipe.

        Args:
            budget: shipped, small, medium or full. seeds: 0 takes the recipe's.
            data: a source and its columns in place of the claim's own.
        Raises:
            UserError: no such claim or budget, or an unknown or wrong value in the recipe.
        """
        path = path_of(name)
        if budget not in BUDGETS:
            raise UserError(f"There is no budget '{budget}'.", suggest(budget, BUDGETS))
        values = config.read_toml(path)
        budgets = values.pop("budgets", {})
        if budget not in budgets:
            raise UserError(f"{path}: the claim has no budget '{budget}'.", suggest(budget, budgets))
        changes = dict(budgets[budget])
        replaced = changes.pop("replaces", [])
        values = config.merge({key: one for key, one in values.items() if key not in replaced}, changes)
        values = {**values, "id": path.stem, "budget": budget}
        if data:
            values = _with_own_data(values, data)
        if seeds:
            values["seeds"] = seeds
        for name, kind in _TABLES.items():
            tables = values.get(name, {}).items()
            values[name] = {key: config.build(kind, one, f"{path} [{name}.{key}]") for key, one in tables}
        found = config.build(cls, values, str(path))
        found._check(str(path))
        return found

    def _check(self, where: str) -> None:
        """Check the names that the tables of a recipe use of each other.

        Raises:
            UserError: a name that is not there.
        """
        for name, task in self.tasks.items():
            _known(task.mix, self.tasks, f"{where} [tasks.{name}] mix")
            if task.tokenizer not in ("bpe", "bytes"):
                _known((task.tokenizer,), self.tasks, f"{where} [tasks.{name}] tokenizer")
        for name, model in self.models.items():
            _known(model.tasks, self.tasks, f"{where} [models.{name}] tasks")
            _known((model.start,) if model.start else (), self.models, f"{where} [models.{name}] start")
            _known(tuple(model.checkpoint), self.tasks, f"{where} [models.{name}] checkpoint")
        for name, way in self.decode.items():
            _known(way.models, self.models, f"{where} [decode.{name}] models")
            _known(way.tasks, self.tasks, f"{where} [decode.{name}] tasks")
        if self.models:
            _known((self.reference,), self.models, f"{where} reference")


def _known(used: tuple[str, ...], known: Mapping[str, Any], where: str) -> None:
    for name in used:
        if name not in known:
            raise UserError(f"{where}: there is no '{name}'.", suggest(name, known))


def _with_own_data(values: dict[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with one task of the user's data. It keeps the lengths and limits of the recipe's first task, and
    each model's first checkpoint.
    """
    tasks = values.get("tasks", {})
    if not tasks:
        raise UserError(f"The claim '{values['id']}' uses no data.", "Leave out --data.")
    if any("mix" in task for task in tasks.values()):
        what = f"The claim '{values['id']}' is about several tasks together."
        raise UserError(what, "Write a recipe with your tasks, and name its file in place of the claim.")
    first = {key: value for key, value in next(iter(tasks.values())).items() if key not in _OF_DATA}
    models = {}
    for name, model in values.get("models", {}).items():
        known = list(model.get("checkpoint", {}).values())[:1]
        models[name] = {**model, "tasks": [], "checkpoint": dict(zip([_OWN], known, strict=False))}
    decode = {name: {**way, "tasks": []} for name, way in values.get("decode", {}).items()}
    return {**values, "tasks": {_OWN: {**first, **data}}, "models": models, "decode": decode}


def folder() -> Path:
    """The folder of the recipes.

    Raises:
        UserError: not in a checkout.
    """
    found = Path(__file__).parents[3] / "recipes" / "study"
    if not found.is_dir():
        raise UserError("The recipes of the claims are not here.", "Run it in a checkout, or name a recipe's file.")
    return found


def names() -> list[str]:
    """The ids of all claims, in alphabetical order."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def path_of(name: str) -> Path:
    """The recipe of a claim.

    Raises:
        UserError: there is no such claim; the message suggests a similar one.
    """
    if name.endswith(".toml"):
        return Path(name)
    if name not in names():
        raise UserError(f"Unknown claim '{name}'.", suggest(name, names()))
    return folder() / f"{name}.toml"
