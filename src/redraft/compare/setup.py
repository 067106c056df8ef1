"""Everything that a study needs before it can be planned: rows, tokenizer, checkpoints, items and recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from redraft.canvas import make_canvas
from redraft.compare import data
from redraft.compare.bases import Base
from redraft.compare.data import Dataset
from redraft.compare.grid import grid
from redraft.compare.measurements import DataSummary, Start
from redraft.compare.plan import LARGE, Plan, vocabulary
from redraft.compare.study import Study
from redraft.data import chat
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import Item, make_items
from redraft.families import build_family
from redraft.files import disk_error, read_json, remove, write_atomically
from redraft.registry import find
from redraft.train.recipe import Recipe
from redraft.types import Spec

PASS_ROWS = 4000  # rows from which the tokens of a pass are estimated
ADAPTED, ADAPTER_RANK = 300_000_000, 16  # checkpoints with this many weights get adapters of this rank
STEPS, BATCH_SIZES = (1, 2, 4, 8, 16), (1, 32)  # that a study tries unless it names others ...
LARGE_STEPS, LARGE_BATCH_SIZES = (4, 8, 16), (1, 8)  # ... and with large checkpoints on a CPU
COUNTED = ("tokens", "batch_tokens", "validate_every", "save_every_tokens")  # fields of [train] that count tokens


@dataclass(frozen=True)
class Reading:
    """How one family reads the texts of a study."""

    tokenizer: Tokenizer
    length: int  # its tokens of the longest row
    new_tokens: int  # limit of an output, in its tokens
    pass_tokens: int  # of one pass over the training rows, prompt and target, estimated from the first rows


@dataclass
class Setup:
    """The prepared data and models of a study.

    Families whose checkpoints have different tokenizers read the same rows. Their limits and budgets are in tokens of
    their own, so that they are the same in passes over the data. The numbers of a plan are in the baseline's tokens.
    """

    study: Study  # with the steps and batch sizes that it tries
    out: Path
    device: torch.device
    dataset: Dataset
    bases: dict[str, Base]  # checkpoints to start from, by family; empty: from scratch
    readings: dict[str, Reading]  # by family
    validation: list[Item]
    test: list[Item]

    @classmethod
    def prepare(cls, study: Study, raw: Dataset, device: torch.device) -> Setup:
        """Train the tokenizer, leave out rows that are too long, write the rows for training, and make the items.

        Raises:
            UserError: unsuitable checkpoints, rows that can't be used, a full disk.
        """
        out = Path(study.out)
        bases = _bases(study)
        own = None if bases else _tokenizer(study, raw, out)
        tokenizers = {family: own or bases[family].tokenizer for family in study.families}
        for tokenizer in tokenizers.values():
            chat.adopt(tokenizer, raw.train)
        readers = _readers(tokenizers, raw)
        limits = [(tokenizers[each[0]], min(_limit(study, bases.get(family)) for family in each)) for each in readers]
        fitted, lengths = data.fit_length(raw, limits)
        parts = {"train": fitted.train, "validation": fitted.validation, "test": fitted.test}
        try:
            for name, rows in parts.items():
                data.write_rows(rows, out / "data" / f"{name}.jsonl")
        except OSError as error:
            raise disk_error(error, out) from None
        readings: dict[str, Reading] = {}
        for each, length in zip(readers, lengths, strict=True):
            one = _reading(study, fitted, tokenizers[each[0]], length)
            readings |= {family: replace(one, tokenizer=tokenizers[family]) for family in each}
        first = readings[study.baseline]
        made = fitted.paired, first.new_tokens
        return cls(
            study=_with_defaults(study, device, bases),
            out=out,
            device=device,
            dataset=fitted,
            bases=bases,
            readings=readings,
            validation=make_items(fitted.validation, first.tokenizer, study.validation_rows, *made),
            test=make_items(fitted.test, first.tokenizer, study.test_rows, *made),
        )

    @property
    def first(self) -> Reading:
        """How the baseline reads the texts."""
        return self.readings[self.study.baseline]

    @cached_property
    def hash(self) -> str:
        """Hash of all rows."""
        return self.dataset.hash

    @property
    def pass_tokens(self) -> int:
        """Tokens of the baseline in one pass over the training rows."""
        return self.first.pass_tokens

    def scale(self, family: str) -> float:
        """Tokens of a family for each token of the baseline: 1 with the same tokenizer."""
        return self.readings[family].pass_tokens / self.first.pass_tokens

    @property
    def large(self) -> bool:
        """Large checkpoints are trained on a CPU: an update takes seconds."""
        return _large(self.device, self.bases)

    @property
    def lora_rank(self) -> int:
        """Rank of the adapters that are trained on checkpoints; 0: all weights are trained, or there are none."""
        if self.study.lora_rank is not None:
            return self.study.lora_rank
        return ADAPTER_RANK if _largest(self.bases) >= ADAPTED or self.study.base_dtype != "auto" else 0

    def curriculum(self, family: str) -> dict[str, Any]:
        """How the attention of a family changes in its conversion; empty: at once, or no conversion."""
        wanted = self.study.curriculum
        return dict(wanted) if wanted.get("name") in self.bases[family].curricula else {}

    def objective(self, family: str) -> dict[str, Any]:
        """How a family learns from the checkpoint that it is converted from; empty: by its own objective alone."""
        wanted = self.study.objective
        return dict(wanted) if wanted and self.bases[family].suits(wanted) else {}

    def starts(self) -> tuple[Start, ...]:
        """What a record says about the checkpoints."""
        return tuple(
            Start(
                family=family,
                checkpoint=self.study.bases[family],
                was=base.was,
                curriculum=self.curriculum(family),
                lora_rank=self.lora_rank,
                parameters=base.parameters,
                tokenizer=reading.tokenizer.fingerprint,
                vocabulary=reading.tokenizer.vocab_size,
                added=tuple(reading.tokenizer.added),
                separated=bool(reading.tokenizer.around_prompt[1]),
                length=reading.length,
                new_tokens=reading.new_tokens,
                tokens_per_token=self.scale(family),
                objective=self.objective(family),
            )
            for family, reading in self.readings.items()
            if (base := self.bases.get(family)) is not None
        )

    def summary(self, plan: Plan) -> DataSummary:
        """What a record says about the data."""
        dataset, found = self.dataset, self.dataset.contamination
        return DataSummary(
            source=self.study.data,
            hash=self.hash,
            columns=dataset.columns,
            rows={"train": len(dataset.train), "validation": len(dataset.validation), "test": len(dataset.test)},
            notes=tuple(dataset.notes),
            leaks=0 if found is None else found.duplicates + found.same_input,
            paired=dataset.paired,
            validation_items=len(self.validation[: plan.validation_rows]),
            test_items=len(self.test[: plan.test_rows]),
            contamination=found,
        )

    def family(self, name: str) -> dict[str, Any]:
        """A family's table: that of its checkpoint, if there is one, with the study's options on top."""
        if name in self.bases:
            return dict(self.bases[name].table)
        return {"name": name, **self.study.family_options.get(name, {})}

    def spec(self, name: str) -> Spec:
        """The specification of a family's models."""
        spec: Spec = build_family(self.family(name))[1].spec(self.readings[name].tokenizer)
        return spec

    def recipe(self, plan: Plan, family: str, seed: int, dropout: float | None = None) -> Recipe:
        """The recipe of one model. All families have the same recipe, apart from the family and its tokens.

        Args:
            dropout: None takes the plan's.
        """
        folder, base = self.out.resolve(), self.study.bases.get(family)
        columns = {"input": "input", "target": "target"} if self.dataset.paired else {"text": "text"}
        if self.dataset.train[0].turns:
            columns = {}  # ``messages`` are recognised by their name
        reading = self.readings[family]
        tables: dict[str, Any] = {
            "data": {
                "source": str(folder / "data" / "train.jsonl"),
                "validation": str(folder / "data" / "validation.jsonl"),
                "length": reading.length,
                **columns,
            },
            "tokenizer": {"kind": "file", "path": str(folder / "tokenizer")},
            "model": {"from": base} if base else {"network": self.study.network, "preset": plan.preset},
            "family": self.family(family),
            "train": {**self._train(plan, family), "seed": seed, **({} if dropout is None else {"dropout": dropout})},
        }
        if base:
            tables["lora"] = self._lora()
            tables["curriculum"] = self.curriculum(family)
            tables["objective"] = self.objective(family)
        return Recipe.of(tables, f"recipe of {family}", folder=str(folder))

    def _lora(self) -> dict[str, Any] | None:
        """The recipe's [lora]; None: all weights are trained."""
        rank = self.lora_rank
        return {"rank": rank, "alpha": 2.0 * rank, "base_dtype": self.study.base_dtype} if rank else None

    def _train(self, plan: Plan, family: str) -> dict[str, Any]:
        """The plan's [train] in a family's own tokens."""
        scale, table = self.scale(family), dict(plan.train)
        if scale == 1:
            return table
        table |= {name: max(1, round(scale * table[name])) for name in COUNTED if table.get(name)}
        longest = self.readings[family].length + (not self.dataset.paired)
        return {**table, "batch_tokens": max(table["batch_tokens"], longest)}

    def key(self, plan: Plan, family: str, seed: int, dropout: float | None = None) -> dict[str, Any]:
        """Everything that a trained model depends on, independent of where its files are."""
        tables = self.recipe(plan, family, seed, dropout).tables()
        tables["data"] = {"hash": self.hash, "length": self.readings[family].length}
        tables["tokenizer"] = self.readings[family].tokenizer.fingerprint
        key = {"family": family, "seed": seed, "recipe": tables}
        if not self.study.post_training:
            return key
        names = ("post_training", "post_prompts", "post_lr")
        return {**key, **{name: getattr(self.study, name) for name in names}}

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
                longest=self.readings[family].new_tokens,
                drafts=_drafts(spec),
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


def _drafts(spec: Spec) -> tuple[str, dict[str, int]] | None:
    """How a model writes with the drafts or blocks of its own network; None: it has none."""
    if spec.family.drafter is None:
        return None
    if suits("draft_verify", spec):
        return "draft_verify", {}
    return "renoising", {"block": spec.family.drafter.network.attention.block}


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
    if not _is_made_from(mark, made_from):
        try:
            if folder.exists():
                remove(folder)
            Tokenizer.train((text for e in raw.train for text in (e.prompt, e.target) if text), size).save(folder)
        except OSError as error:
            raise disk_error(error, out) from None
        write_atomically(mark, json.dumps(made_from) + "\n")
    return Tokenizer.load(folder)


def _is_made_from(mark: Path, expected: dict[str, Any]) -> bool:
    """Does the file exist, and hold this? A damaged one does not."""
    try:
        return bool(read_json(mark) == expected)
    except UserError:
        return False


def _bases(study: Study) -> dict[str, Base]:
    """The checkpoints of a study, by family.

    Raises:
        UserError: a family has none, or one that can't become a model of the family.
    """
    unnamed = [family for family in study.families if study.bases and family not in study.bases]
    if unnamed:
        raise UserError(
            f"There is no checkpoint to fine-tune for '{unnamed[0]}'.",
            "Name one for each family, or an autoregressive one, from which the others are converted.",
        )
    options = study.family_options
    return {family: Base.read(path, family, options.get(family, {})) for family, path in study.bases.items()}


def _largest(bases: Mapping[str, Base]) -> int:
    """Weights of the largest checkpoint; 0 without checkpoints."""
    return max((base.parameters for base in bases.values()), default=0)


def _large(device: torch.device, bases: Mapping[str, Base]) -> bool:
    return device.type == "cpu" and _largest(bases) >= LARGE


def _with_defaults(study: Study, device: torch.device, bases: Mapping[str, Base]) -> Study:
    """The study with the steps and batch sizes that it tries if it names none."""
    large = _large(device, bases)
    return replace(
        study,
        steps=study.steps or (LARGE_STEPS if large else STEPS),
        batch_sizes=study.batch_sizes or (LARGE_BATCH_SIZES if large else BATCH_SIZES),
    )


def _limit(study: Study, base: Base | None) -> int:
    """The longest row that a family accepts; 0: every row."""
    limits = [study.length] if study.length else [data.LONGEST] if base is not None else []
    return min([*limits, *([] if base is None else [base.longest])], default=0)


def _readers(tokenizers: Mapping[str, Tokenizer], raw: Dataset) -> list[list[str]]:
    """The families in groups that read texts alike: with the same ids, whatever special tokens were added."""
    texts = [text for e in raw.train[:PASS_ROWS] for text in (e.prompt, e.target) if text is not None]
    found: list[tuple[Tokenizer, list[list[int]], list[str]]] = []
    for family, tokenizer in tokenizers.items():
        same = next((each for first, _, each in found if first.fingerprint == tokenizer.fingerprint), None)
        if same is None:
            ids = tokenizer.encode_batch(texts)
            same = next((each for _, theirs, each in found if theirs == ids), [])
            if not same:
                found.append((tokenizer, ids, same))
        same.append(family)
    return [each for _, _, each in found]


def _reading(study: Study, fitted: Dataset, tokenizer: Tokenizer, length: int) -> Reading:
    """How a tokenizer reads the rows."""
    rows = fitted.train[:PASS_ROWS]
    texts = [text for e in rows for text in (e.prompt, e.target) if text is not None]
    count = len(texts) + sum(map(len, tokenizer.encode_batch(texts)))
    pass_tokens = max(1, count * len(fitted.train) // len(rows))
    new_tokens = study.max_new_tokens or data.answer_length(fitted, tokenizer, length)
    return Reading(tokenizer, length, new_tokens, pass_tokens)
