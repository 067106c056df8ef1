"""A study: what is compared, on what, at which budget, and the grid of settings it is measured at."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redraft import config
from redraft.compare.rival import Rival
from redraft.errors import UserError
from redraft.files import write_atomically
from redraft.registry import find

VERSION = 2  # of a cell's content: raise it when cells written before can't be used any more


@dataclass(frozen=True)
class Study:
    """Everything a comparison depends on besides the machine. Zero and empty mean: planned from data and budget.

    The first family is the baseline that the others are compared with.
    """

    data: str = ""
    text: str | None = None
    input: str | None = None
    target: str | None = None
    data_root: str = ""
    skip_bad_rows: bool = False

    families: tuple[str, ...] = ("autoregressive", "masked")
    family_options: dict[str, dict[str, Any]] = field(default_factory=dict)  # fields of a family, by its name
    bases: dict[str, str] = field(default_factory=dict)  # family -> checkpoint to fine-tune; empty: from scratch

    budget_tokens: int = 0  # training tokens of each model, prompt and target
    passes: float = 0.0  # instead: passes over the training rows
    minutes: float = 0.0  # instead: wall-clock of the whole study
    seeds: int = 1  # trainings of each family
    seed: int = 0  # the first of them
    network: str = "transformer"  # a file of models/, for all families
    preset: str = ""
    vocab_size: int = 0
    length: int = 0  # tokens of the longest row
    train: dict[str, Any] = field(default_factory=dict)  # fields of a recipe's [train], the same for all families
    dropouts: tuple[float, ...] = ()  # each model is trained at all of them; a family's best on validation rows is kept

    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    samplers: tuple[str, ...] = ()  # of diffusion families; empty: what suits the task
    blocks: tuple[int, ...] = (0,)
    candidates: tuple[int, ...] = (1, 4)  # output lengths tried, for families that predict the length
    max_new_tokens: int = 0
    constraint: dict[str, str] = field(default_factory=dict)  # kind -> text: chosen settings are also measured under it

    task: str | None = None
    margin: float = 0.0  # largest difference that doesn't matter, in units of the task's first metric
    test_rows: int = 500
    validation_rows: int = 200
    batch_sizes: tuple[int, ...] = (1, 32)
    timed_calls: int = 12  # of each setting at each batch size
    price_per_hour: float = 0.0  # of the machine, in any currency; 0: no cost is reported
    rival: Rival | None = None  # a service to compare with
    device: str = "auto"
    out: str = "comparison"

    def __post_init__(self) -> None:
        if not self.data:
            raise UserError("a comparison needs data.", "Name a file, a folder or a set with --data.")
        if len(set(self.families)) != len(self.families) or len(self.families) < 2:
            raise UserError("a comparison needs two different families or more.", "For example autoregressive,masked.")
        if sum(bool(b) for b in (self.budget_tokens, self.passes, self.minutes)) > 1:
            raise UserError("more than one budget.", "Give one of --budget-tokens, --passes and --minutes.")
        for name, low in (("seeds", 1), ("test_rows", 2), ("validation_rows", 2), ("timed_calls", 2)):
            if getattr(self, name) < low:
                raise UserError(f"{name} = {getattr(self, name)} must be at least {low}.")
        for name in ("steps", "batch_sizes", "candidates"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise UserError(f"{name} must be one or more numbers of at least 1.")
        for name in ("budget_tokens", "passes", "minutes", "margin", "price_per_hour"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} = {getattr(self, name)} can't be negative.")
        if len(set(self.dropouts)) != len(self.dropouts) or not all(0 <= rate < 1 for rate in self.dropouts):
            raise UserError("dropouts must be different numbers of at least 0 and below 1.", "For example 0.1,0.3.")
        if self.dropouts and "dropout" in self.train:
            raise UserError("dropout is set twice.", "Give --dropout or --set dropout=, not both.")
        for kind, text in self.constraint.items():
            find("constraints", kind).of(text).automaton()  # a mistake in it shows now, not after training
        for name in (*self.family_options, *self.bases):
            if name not in self.families:
                raise UserError(f"options for the family '{name}', which is not compared.")

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any]) -> Study:
        """Read a study from TOML; ``overrides`` are fields that win over the file's (None: not given)."""
        given = {key: value for key, value in overrides.items() if value is not None}
        return config.build(cls, {**config.read_toml(Path(path)), **given}, str(path))

    @property
    def baseline(self) -> str:
        return self.families[0]

    @property
    def runs(self) -> int:
        """Trainings of each family."""
        return self.seeds * max(1, len(self.dropouts))

    @property
    def unlimited(self) -> bool:
        """No budget was given."""
        return not (self.budget_tokens or self.passes or self.minutes)


@dataclass(frozen=True)
class Setting:
    """One way of decoding one family's models."""

    family: str
    sampler: str
    options: dict[str, Any] = field(default_factory=dict)  # fields of the sampler, steps among them
    candidates: int = 1
    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def id(self) -> str:
        """A short name, unique in a study, such as ``masked/confidence/steps=8/candidates=4``."""
        parts = [self.family, self.sampler, *(f"{key}={value}" for key, value in sorted(self.options.items()))]
        parts += [f"candidates={self.candidates}"] if self.candidates > 1 else []
        parts += [f"temperature={self.temperature:g}"] if self.temperature else []
        parts += [f"top_p={self.top_p:g}"] if self.top_p < 1 else []
        return "/".join(parts)

    @property
    def steps(self) -> int | None:
        value = self.options.get("steps")
        return int(value) if value is not None else None

    @property
    def label(self) -> str:
        """For people: ``masked, 8 steps, 4 lengths``."""
        words = [self.family]
        if self.sampler == "autoregressive":
            beams = self.options.get("beams", 1)
            words.append(f"beam {beams}" if beams > 1 else "greedy" if not self.temperature else "sampled")
        elif self.sampler != "confidence":
            words.append(self.sampler.replace("_", " "))
        if self.steps is not None:
            words.append(f"{self.steps} step{'s' if self.steps > 1 else ''}")
        for key, value in self.options.items():
            if key not in ("steps", "beams") and not (key == "block" and value == 0):
                words.append(f"{key} {value}")
        if self.candidates > 1:
            words.append(f"{self.candidates} lengths")
        if self.top_p < 1:
            words.append(f"top-p {self.top_p:g}")
        return ", ".join(words)

    def generation(self) -> dict[str, Any]:
        """Keyword arguments for ``Model.settings``."""
        return {
            "sampler": self.sampler,
            "options": dict(self.options),
            "candidates": self.candidates,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }


def grid(
    study: Study,
    family: str,
    *,
    causal: bool,
    predicts_length: bool,
    paired: bool,
    longest: int,
    samplers: tuple[str, ...] = (),
    drafts: bool = False,
    block: int = 0,
) -> list[Setting]:
    """The decoding settings of a family: steps x sampler x block x length candidates, or AR's own best ways.

    With a right answer to find, texts are the likeliest ones; for open-ended text they are drawn, because the likeliest
    text repeats itself (Holtzman et al. 2020, arXiv:1904.09751).

    Args:
        longest: tokens an answer may have; settings with more steps than that are left out.
        samplers: of this family; empty: the study's, or what suits the task where noise is masks.
        drafts: it can draft for itself. block: it writes in blocks of so many positions, and steps are steps a block.
    """
    draws = [(0.0, 1.0)] if paired else [(1.0, 1.0), (1.0, 0.9)]
    if causal:
        beams = [1, 4] if paired else [1]
        settings = [("autoregressive", {"beams": b} if b > 1 else {}, 1) for b in beams]
        settings += [("draft_verify", {}, 1)] if drafts else []
    else:
        settings = []
        for sampler in samplers or study.samplers or (("confidence",) if paired else ("ancestral",)):
            fields = getattr(find("samplers", sampler), "__dataclass_fields__", {})
            steps = [s for s in study.steps if s <= (block or longest)] if "steps" in fields else [None]
            own = "block" in fields and not block
            blocks = [b for b in study.blocks if b < longest] if own else [None]
            tried = study.candidates if predicts_length and paired else (1,)
            for step in steps:
                for size in blocks:
                    options = {"steps": step, "block": size or None}
                    kept = {key: value for key, value in options.items() if value is not None}
                    settings += [(sampler, kept, c) for c in tried]
    return [Setting(family, name, options, c, t, p) for name, options, c in settings for t, p in draws]


class Cells:
    """Finished pieces of work, one JSON file each under ``OUT/cells``, named by a hash of what they depend on.

    A file is there whole or not at all, so a study that was interrupted goes on where it stopped, and one that changes
    in one respect computes only what this touches.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cells"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"can't write to '{folder}': {error.strerror}."
            raise UserError(what, "Name another folder with --out.") from None

    def path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{digest({'version': VERSION, **key})}.json"

    def get(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The content of a finished cell; None where it must be (re)computed. A damaged file counts as not there."""
        try:
            content = json.loads(self.path(key).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None
        return content["value"] if isinstance(content, dict) and "value" in content else None

    def put(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Write a finished cell, its key beside its value."""
        write_atomically(self.path(key), json.dumps({"key": key, "value": value}, ensure_ascii=False) + "\n")


def digest(value: Any) -> str:
    """A short hash of plain values, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no place in a cell's key")
