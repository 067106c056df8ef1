"""Everything that a study needs before it can be planned: rows, tokenizer, checkpoints, items and recipes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from redraft.canvas import make_canvas
from redraft.compare import data
from redraft.compare.data import Dataset
from redraft.compare.grid import grid
from redraft.compare.measurements import DataSummary
from redraft.compare.plan import Plan, vocabulary
from redraft.compare.study import Study
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import Item, make_items
from redraft.families import build_family
from redraft.files import disk_error, read_json, write_atomically
from redraft.gguf_file import is_gguf
from redraft.loading import family_of, load, resolve
from redraft.registry import find
from redraft.train.recipe import Recipe
from redraft.types import Spec

PASS_ROWS = 4000  # rows from which the tokens of a pass are estimated


@dataclass(frozen=True)
class Base:
    """Facts about a checkpoint to fine-tune. Its weights are not kept."""

    family: str
    table: Mapping[str, Any]  # of the family, as the checkpoint's own file has it
    parameters: int
    width: int
    longest: int  # positions
    tokenizer: Tokenizer

    @classmethod
    def read(cls, name_or_path: str) -> Base:
        """Load the checkpoint once and keep the facts."""
        model = load(name_or_path, "cpu")
        shape = model.network.config
        folder = resolve(name_or_path)
        own = {} if is_gguf(folder) else read_json(folder / "config.json")
        table = own.get("family") or family_of(name_or_path)  # a public checkpoint has no family of its own
        return cls(
            model.family_name, table, model.network.parameter_count, shape.dim, shape.max_length, model.tokenizer
        )


@dataclass
class Setup:
    """The prepared data and models of a study."""

    study: Study
    out: Path
    device: torch.device
    dataset: Dataset
    bases: dict[str, Base]  # checkpoints to fine-tune, by family; empty: from scratch
    tokenizer: Tokenizer
    length: int  # tokens of the longest row
    new_tokens: int  # limit of an output
    validation: list[Item]
    test: list[Item]

    @classmethod
    def prepare(cls, study: Study, raw: Dataset, device: torch.device) -> Setup:
        """Train the tokenizer, leave out rows that are too long, write the rows for training, and make the items.

        Raises:
            UserError: unsuitable checkpoints, rows that can't be used, a full disk.
        """
        out = Path(study.out)
        bases = {family: Base.read(path) for family, path in study.bases.items()}
        tokenizer = _shared_tokenizer(study, bases) if bases else _tokenizer(study, raw, out)
        fitted, length = data.fit_length(raw, tokenizer, study.length or _longest(bases))
        parts = {"train": fitted.train, "validation": fitted.validation, "test": fitted.test}
        try:
            for name, rows in parts.items():
                data.write_rows(rows, out / "data" / f"{name}.jsonl")
        except OSError as error:
            raise disk_error(error, out) from None
        new_tokens = study.max_new_tokens or data.answer_length(fitted, tokenizer, length)
        return cls(
            study=study,
            out=out,
            device=device,
            dataset=fitted,
            bases=bases,
            tokenizer=tokenizer,
            length=length,
            new_tokens=new_tokens,
            validation=make_items(fitted.validation, tokenizer, study.validation_rows, fitted.paired, new_tokens),
            test=make_items(fitted.test, tokenizer, study.test_rows, fitted.paired, new_tokens),
        )

    @cached_property
    def hash(self) -> str:
        """Hash of all rows."""
        return self.dataset.hash

    @cached_property
    def pass_tokens(self) -> int:
        """Tokens of one pass over the training rows, prompt and target, estimated from the first rows."""
        rows = self.dataset.train[:PASS_ROWS]
        texts = [text for e in rows for text in (e.prompt, e.target) if text is not None]
        count = len(texts) + sum(map(len, self.tokenizer.encode_batch(texts)))
        return max(1, count * len(self.dataset.train) // len(rows))

    def summary(self, plan: Plan) -> DataSummary:
        """What a record says about the data."""
        dataset = self.dataset
        return DataSummary(
            source=self.study.data,
            hash=self.hash,
            columns=dataset.columns,
            rows={"train": len(dataset.train), "validation": len(dataset.validation), "test": len(dataset.test)},
            notes=tuple(dataset.notes),
            leaks=dataset.leaks,
            paired=dataset.paired,
            validation_items=len(self.validation[: plan.validation_rows]),
            test_items=len(self.test[: plan.test_rows]),
        )

    def family(self, name: str) -> dict[str, Any]:
        """A family's table: that of the checkpoint, if there is one, with the study's options on top."""
        own = self.bases[name].table if name in self.bases else {"name": name}
        return {**own, **self.study.family_options.get(name, {})}

    def spec(self, name: str) -> Spec:
        """The specification of a family's models."""
        spec: Spec = build_family(self.family(name))[1].spec(self.tokenizer)
        return spec

    def recipe(self, plan: Plan, family: str, seed: int, dropout: float | None = None) -> Recipe:
        """The recipe of one model. All families have the same recipe, apart from the family itself.

        Args:
            dropout: None takes the plan's.
        """
        folder, base = self.out.resolve(), self.study.bases.get(family)
        columns = {"input": "input", "target": "target"} if self.dataset.paired else {"text": "text"}
        tables = {
            "data": {
                "source": str(folder / "data" / "train.jsonl"),
                "validation": str(folder / "data" / "validation.jsonl"),
                "length": plan.length,
                **columns,
            },
            "tokenizer": {"kind": "file", "path": str(folder / "tokenizer")},
            "model": {"from": base} if base else {"network": self.study.network, "preset": plan.preset},
            "family": self.family(family),
            "train": {**plan.train, "seed": seed, **({} if dropout is None else {"dropout": dropout})},
        }
        return Recipe.of(tables, f"recipe of {family}", folder=str(folder))

    def key(self, plan: Plan, family: str, seed: int, dropout: float | None = None) -> dict[str, Any]:
        """Everything that a trained model depends on, independent of where its files are."""
        tables = self.recipe(plan, family, seed, dropout).tables()
        tables["data"] = {"hash": self.hash, "length": plan.length}
        tables["tokenizer"] = self.tokenizer.fingerprint
        return {"family": family, "seed": seed, "recipe": tables}

    def settings(self) -> list[DecodingConfig]:
        """The decoding grid of every family."""
        found: list[DecodingConfig] = []
        for family in self.study.families:
            spec = self.spec(family)
            found += grid(
                self.study,
                family,
                causal=spec.network.attention.kind == "causal",
                predicts_length=spec.network.length_head,
                paired=self.dataset.paired,
                longest=self.new_tokens,
                drafts=spec.family.drafter is not None,
                block=spec.network.attention.block,
                samplers=self._samplers(family, spec),
            )
        return found

    def _samplers(self, family: str, spec: Spec) -> tuple[str, ...]:
        """The study's samplers that suit this family. If none does, or noise is not masks: the family's own."""
        if (spec.family.process is None or spec.masks) and not spec.scores and not self.study.samplers:
            return ()
        suiting = tuple(name for name in self.study.samplers if suits(name, spec))
        own = build_family(self.family(family))[1].sampler().name
        return suiting or (own,)


def suits(sampler: str, spec: Spec) -> bool:
    """True if a sampler accepts models of this kind; it raises an error at its start otherwise."""
    built, canvas = find("samplers", sampler)(), make_canvas([[None] * 64], [0], spec, seeds=[0])
    try:
        built.start(canvas, spec)
    except UserError:
        return False
    return True


def _tokenizer(study: Study, raw: Dataset, out: Path) -> Tokenizer:
    """The tokenizer in ``out``; trained on the training rows unless that was done before."""
    size, folder = vocabulary(study, raw), out / "tokenizer"
    mark, made_from = folder / "made_from.json", {"hash": raw.hash, "vocab_size": size}
    if not (mark.exists() and json.loads(mark.read_text(encoding="utf-8")) == made_from):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            Tokenizer.train((text for e in raw.train for text in (e.prompt, e.target) if text), size).save(folder)
        except OSError as error:
            raise disk_error(error, out) from None
        write_atomically(mark, json.dumps(made_from) + "\n")
    return Tokenizer.load(folder)


def _shared_tokenizer(study: Study, bases: Mapping[str, Base]) -> Tokenizer:
    """The tokenizer of the checkpoints to fine-tune.

    Raises:
        UserError: a family has no checkpoint or one of another family, or tokenizers differ.
    """
    unnamed = [family for family in study.families if family not in study.bases]
    if unnamed:
        raise UserError(f"There is no checkpoint to fine-tune for '{unnamed[0]}'.", "Name one for each family.")
    for family, base in bases.items():
        if base.family != family:
            raise UserError(
                f"'{study.bases[family]}' is a model of family '{base.family}', not '{family}'.",
                "Name a checkpoint of the right family.",
            )
    if len({base.tokenizer.fingerprint for base in bases.values()}) > 1:
        raise UserError("The checkpoints to fine-tune have different tokenizers.", "Use a pair with one tokenizer.")
    return bases[study.baseline].tokenizer


def _longest(bases: Mapping[str, Base]) -> int:
    """The longest row that every checkpoint accepts; 0 without checkpoints."""
    return min(data.LONGEST, min(base.longest for base in bases.values()) - 1) if bases else 0
