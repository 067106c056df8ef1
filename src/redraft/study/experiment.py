"""From a claim to its cells: which data, models, texts and times its analysis may ask for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from redraft import config
from redraft.data.locate import resolve
from redraft.errors import UserError
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.result_cache import digest
from redraft.files import file_marks
from redraft.loading import resolve as resolve_model
from redraft.registry import find
from redraft.study.cells.base import Cell, ModelCell
from redraft.study.cells.checkpoint import Checkpoint
from redraft.study.cells.data import Data, Source
from redraft.study.cells.likelihood import Likelihood
from redraft.study.cells.texts import Texts
from redraft.study.cells.timing import Timing
from redraft.study.cells.train import Train
from redraft.study.cells.trivial import Trivial
from redraft.study.claim import Claim, DecodeTable, TaskTable

_OUTSIDE = ("candidates", "new_tokens", "cache")  # keys of a sweep that are no options of the sampler


@dataclass(frozen=True)
class Way:
    """One model, and one way of decoding it."""

    model: str
    decode: str  # name of its table
    config: DecodingConfig
    new_tokens: int

    @property
    def label(self) -> str:
        """A name for reports."""
        return self.config.label

    @property
    def steps(self) -> int:
        """Denoising steps; the tokens of the longest answer for samplers without that option."""
        return self.config.steps or self.new_tokens


@dataclass(frozen=True)
class Experiment:
    """The cells of one claim."""

    claim: Claim
    data_root: str | None = None
    _marks: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def seeds(self) -> range:
        """The seeds of every training run."""
        return range(self.claim.seeds)

    @property
    def tasks(self) -> list[str]:
        """The tasks of the claim."""
        return list(self.claim.tasks)

    def models(self, task: str) -> list[str]:
        """The models that are trained on a task."""
        return [name for name, one in self.claim.models.items() if not one.tasks or task in one.tasks]

    def others(self, task: str) -> list[str]:
        """The models of a task that are compared with the reference."""
        return [name for name in self.models(task) if name != self.claim.reference]

    # ---- data and models

    def data(self, task: str, **changes: Any) -> Data:
        """The data of a task.

        Args:
            changes: fields of ``Data`` that differ, such as ``train_rows``.
        Raises:
            UserError: its files can't be found or read.
        """
        table = self.claim.tasks[task]
        parts = [self.claim.tasks[name] for name in table.mix] or [table]
        names = ("vocab_size", "length", "new_tokens", "train_rows", "train_bytes", "validation_rows", "test_rows")
        values: dict[str, Any] = {name: vars(table)[name] for name in (*names, "kind")}
        if table.tokenizer in ("bpe", "bytes"):
            values["tokenizer"] = table.tokenizer
        else:
            values["tokenizer_of"] = self.data(table.tokenizer)
        return Data(sources=tuple(map(self._source, parts)), task=task, **{**values, **changes})

    def _source(self, table: TaskTable) -> Source:
        if table.source not in self._marks:
            self._marks[table.source] = _marks(table.source, self.data_root)
        return Source(
            self._marks[table.source], table.source, table.text, table.input, table.target, prompt=table.prompt
        )

    def trained(self, model: str, task: str, seed: int, data: Data | None = None, **train: Any) -> ModelCell:
        """A model trained on a task, or its checkpoint.

        Args:
            data: other data of the task. train: fields of a recipe's [train] that differ.
        """
        table, rows = self.claim.models[model], data or self.data(task)
        if task in table.checkpoint:
            name = table.checkpoint[task]
            if name not in self._marks:
                path = resolve_model(name)
                files = sorted(path.glob("*.*")) if path.is_dir() else [path]
                self._marks[name] = digest(file_marks(files[0].parent, files))
            return Checkpoint(rows, self._marks[name], name, model)
        start = self.trained(table.start, task, seed, data) if table.start else None
        return Train(
            data=rows,
            family=dict(table.family),
            network=table.network,
            preset=table.preset or self.claim.preset,
            train={**self.claim.train, **table.train, **train},
            seed=seed,
            start=start,
            model=model,
        )

    def of_all_seeds(self, model: str, task: str, **more: Any) -> tuple[ModelCell, ...]:
        """A model trained on a task with every seed."""
        return tuple(self.trained(model, task, seed, **more) for seed in self.seeds)

    # ---- decoding

    def ways(self, model: str, task: str) -> list[Way]:
        """All ways of decoding a model on a task, in the order of the recipe. Steps beyond the answer are left out.

        Raises:
            UserError: there is none, or the sampler has no such option.
        """
        found = []
        for name, table in self.claim.decode.items():
            if model in table.models and (not table.tasks or task in table.tasks):
                found += list(self._expanded(name, table, model, task))
        if not found:
            what = f"The claim '{self.claim.id}' decodes '{model}' in no way on '{task}'."
            raise UserError(what, "Add a table [decode.NAME] to its recipe.")
        return found

    def _expanded(self, name: str, table: DecodeTable, model: str, task: str) -> Iterator[Way]:
        known = {each.name for each in fields(find("samplers", table.sampler))}
        for values in itertools.product(*table.sweep.values()):
            point: dict[str, Any] = dict(zip(table.sweep, values, strict=True))
            new = int(point.pop("new_tokens", self.claim.tasks[task].new_tokens))
            outside = {key: point.pop(key) for key in _OUTSIDE if key in point}
            options = {**table.options, **point}
            if any(options.get(key, 0) > new for key in ("steps", "block")):
                continue
            unknown = sorted(options.keys() - known)
            if unknown:
                what = f"The sampler '{table.sampler}' of [decode.{name}] has no option '{unknown[0]}'."
                raise UserError(what, f"Known: {', '.join(sorted(known))}.")
            yield Way(
                model,
                name,
                DecodingConfig(
                    table.sampler,
                    {key: value for key, value in options.items() if not (key == "block" and not value)},
                    temperature=table.temperature,
                    top_p=table.top_p,
                    family=model,
                    more=table.more,
                    **{"candidates": 1, **outside},
                ),
                new,
            )

    def texts(
        self, way: Way, task: str, part: str = "test", trained: Sequence[ModelCell] | None = None
    ) -> tuple[Texts, ...]:
        """The texts of every seed."""
        runs = trained or self.of_all_seeds(way.model, task)
        return tuple(Texts(one, self.data(task), part, way.config, way.new_tokens) for one in runs)

    def likelihoods(self, model: str, task: str, **more: Any) -> tuple[Likelihood, ...]:
        """The likelihoods of the test rows under the models of every seed."""
        return tuple(Likelihood(one, self.data(task)) for one in self.of_all_seeds(model, task, **more))

    def trivial(self, task: str) -> Trivial:
        """What trivial systems achieve on a task."""
        return Trivial(self.data(task))

    def timing(self, ways: Sequence[Way], task: str, batch: int, calls: int = 8) -> Timing:
        """The times of several ways, with the models of the first seed."""
        return Timing(
            self.data(task),
            tuple(self.trained(way.model, task, self.seeds[0]) for way in ways),
            tuple(way.config for way in ways),
            tuple(way.new_tokens for way in ways),
            batch,
            calls,
        )


class Found:
    """The values of computed cells, and why others have none."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}
        self.why: dict[str, str] = {}
        self.kept: dict[tuple[str, ...], Any] = {}  # what analyses made of values, and may ask for again

    def has(self, *cells: Cell) -> bool:
        """Do all of these have a value?"""
        return all(cell.id in self.values for cell in cells)

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """The value of a cell.

        Raises:
            UserError: it has none; the message says why.
        """
        if cell.id not in self.values:
            why = self.why.get(cell.id, "it was not computed")
            raise UserError(f"{cell.label}: {why}", "Run the claim again when that is corrected.")
        return self.values[cell.id]


def analysis_of(claim: Claim) -> Any:
    """The analysis of a claim, with the decision rule of its recipe.

    Raises:
        UserError: no such analysis, or a wrong field.
    """
    values: Mapping[str, Any] = claim.analysis
    kind = find("study.analyses", values.get("name", ""))
    fields_of = {key: value for key, value in values.items() if key != "name"}
    return config.build(kind, fields_of, f"{claim.id} [analysis]")


def _marks(source: str, data_root: str | None) -> str:
    """What identifies the content of a source."""
    found = []
    for part, names in sorted(resolve(source, data_root).items()):
        for name in names:
            path = Path(name)
            marks = file_marks(path.parent, [path])[0][1:] if path.is_file() else name
            found.append((part, marks))
    return digest(found)
