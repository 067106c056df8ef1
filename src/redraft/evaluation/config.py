"""Settings of an evaluation: its data, and what is measured on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from redraft.data.examples import SPLITS, Columns, Example, RowFormat, Splits, load, read, read_split, resolve
from redraft.errors import UserError, suggest
from redraft.options import REQUIRED, check, setting

if TYPE_CHECKING:
    from redraft.model import Model
    from redraft.tasks.benchmarks import SelectedBenchmark


_UNASKED = 1 << 27  # bytes of training data that are read to look for duplicates


@dataclass(frozen=True)
class DataSource:
    """A source of examples, and its columns. Columns that are not named are recognised by their names."""

    data: str = setting(REQUIRED, "File, folder, data set by name, or hub:owner/name.")
    data_root: str | None = setting(None, "Folder in which data sets are looked up by name.", envvar="REDRAFT_DATA")
    text: str | None = setting(None, "Column of plain text.", metavar="COLUMN")
    input: str | None = setting(None, "Column of the prompt.", metavar="COLUMN")
    target: str | None = setting(None, "Column of the answer to the prompt.", metavar="COLUMN")
    skip_bad_rows: bool = setting(False, "Leave out rows that can't be read, and list them.")

    def __post_init__(self) -> None:
        check(self)

    @property
    def columns(self) -> Columns | None:
        """The columns that were named, if any."""
        named = Columns(text=self.text, input=self.input, target=self.target)
        return named if str(named) else None

    def splits(self, fractions: tuple[float, float, float] | None = None) -> Splits:
        """Training, validation and test rows. If the source has no splits of its own, its rows are split by
        ``fractions``, or else by the rule of ``data.examples.shares_of``.

        Raises:
            UserError: the source or one of its rows can't be read.
        """
        return load(
            self.data,
            self.columns,
            data_root=self.data_root,
            fractions=fractions,
            skip_bad_rows=self.skip_bad_rows,
        )


@dataclass(frozen=True)
class Scoring:
    """How generated texts are scored, in ``evaluate``, ``tune`` and ``compare``."""

    task: str | None = setting(None, "Task, such as translation. Unset: inferred from the data.", metavar="NAME")
    metric_options: dict[str, Any] = setting(
        {},
        "An option of a metric, such as bleu.tokenize=zh. Unset: as the script of the references needs.",
        flag="--metric-option",
        metavar="METRIC.KEY=VALUE",
    )


@dataclass(frozen=True)
class Evaluation(Scoring, DataSource):
    """What ``redraft evaluate`` measures, besides the generation settings."""

    data: str = setting("", "File, folder, data set by name, or hub:owner/name. A benchmark has its own.")
    split: str = setting(
        "test", "Split to evaluate on, for data with splits. Without splits, all rows count.", metavar="NAME"
    )
    shots: int | None = setting(
        None, "Examples in the prompt of a benchmark. Unset: its own for models of plain text, else none.", least=0
    )
    answering: Literal["auto", "generate", "choose"] = setting(
        "auto", "How a benchmark's questions are answered: by a text, or by the option of the highest likelihood."
    )
    attempts: int = setting(
        1, "Texts per prompt, for pass@k. More than one needs a temperature above 0.", least=1, most=1000
    )
    against: str = setting(
        "",
        "Training data, to count duplicates of them among the rows. Unset: the train split of the data.",
        metavar="DATA",
    )
    rows: int = setting(
        500, "Limit: largest number of rows, sampled from all; the same rows in every run.", least=1, unit="rows"
    )
    votes: int = setting(
        1, "Solutions per prompt; the majority's final answer counts. Needs a temperature above 0.", least=1
    )
    batch_size: int = setting(32, "Number of prompts in a batch.", least=1)
    samples: int = setting(4, "Noise samples per row for the likelihood bound.", least=2)
    temperatures: tuple[float, ...] = setting(
        (), "Further temperatures, for the curve of perplexity against entropy. Needs a judge.", above=0
    )
    judge: str | None = setting(
        None, "Model that judges the texts by their perplexity and by MAUVE, such as smollm2-135m.", metavar="MODEL"
    )
    out: Path | None = setting(None, "File for every prompt, its references and the text, as JSON lines.")

    @property
    def benchmark(self) -> SelectedBenchmark | None:
        """The benchmark that ``task`` names, if it names one.

        Raises:
            UserError: it has no such part, or data are given for several parts.
        """
        from redraft.tasks.benchmarks import select_benchmark

        selected = select_benchmark(self.task) if self.task is not None else None
        if selected is not None and self.data and len(selected.parts) > 1:
            name, parts = selected.benchmark.name, ", ".join(selected.parts)
            what = f"The benchmark '{name}' has several parts, and --data is one set."
            raise UserError(what, f"Name the part, --task {name}:{selected.parts[0]}. Parts: {parts}.")
        return selected

    @property
    def sources(self) -> tuple[str, ...]:
        """The data sets that are read."""
        selected = self.benchmark
        return (self.data,) if self.data or selected is None else selected.sources

    def defaults(self, model: Model, name: str, examples: Sequence[Example]) -> dict[str, Any]:
        """Generation settings for what is asked, where the user gives none.

        Args:
            name: of the model, for an error.
        Raises:
            UserError: the model is of another kind than the data. A benchmark can ask both kinds.
        """
        from redraft.evaluation.items import check_kind

        selected, found = self.benchmark, dict[str, Any]()
        asks = selected is not None and examples[0].prompt is not None
        if not asks:
            check_kind(model, name, examples)
        if selected is not None:
            found["max_new_tokens"] = selected.benchmark.max_new_tokens
        if not model.paired:
            found["temperature"] = 0.0 if asks else 1.0
        return found

    def examples(self, log: Callable[[str], None]) -> Sequence[Example]:
        """The rows of the split, or all rows of a source without splits; for a benchmark, those of its parts.

        Args:
            log: receives a line for each row that is left out, and one if the source has no splits.
        Raises:
            UserError: an unknown split, a split without rows, or a source or row that can't be read.
        """
        if self.split not in SPLITS:
            raise UserError(f"There is no split '{self.split}'.", suggest(self.split, SPLITS))
        selected = self.benchmark
        if selected is not None:
            return [
                example
                for part in selected.parts
                for example in self._rows(self.data or selected.benchmark.sources[part], selected.rows(part), log)
            ]
        if not self.data:
            raise UserError("No data are given.", "Name them with --data, or a benchmark with --task.")
        return self._rows(self.data, None, log)

    def training(self, part: str, log: Callable[[str], None]) -> Sequence[Example]:
        """The training rows with which the rows of a part of a benchmark, or of other data, are compared; may be none.

        Args:
            log: is told if they are too many to be read unasked.
        Raises:
            UserError: ``against`` can't be read.
        """
        selected = self.benchmark
        form = selected.rows(part) if selected is not None else None
        how: dict[str, Any] = {"data_root": self.data_root, "skip_bad_rows": True, "rows": form}
        if self.against:
            return read(self.against, self.columns, **how)
        data = self.data or (selected.benchmark.sources[part] if selected is not None else "")
        files = () if self.split == "train" else resolve(data, self.data_root).get("train", ())
        if sum(os.path.getsize(file) for file in files if os.path.isfile(file)) > _UNASKED:
            log(f"'{data}' has a large train split, which was not searched for the rows. Name it with --against.")
            return ()
        if not files:
            return ()
        return read_split(data, "train", self.columns, **how)

    def _rows(self, data: str, form: RowFormat | None, log: Callable[[str], None]) -> Sequence[Example]:
        how: dict[str, Any] = {"data_root": self.data_root, "skip_bad_rows": self.skip_bad_rows, "rows": form}
        if set(resolve(data, self.data_root)) <= {""}:
            found = read(data, self.columns, **how)
            log(
                f"'{data}' has no splits, so all of its {len(found)} rows count. A model that was trained on "
                "this file has seen most of them: give rows that it has not seen."
            )
        else:
            found = read_split(data, self.split, self.columns, **how)
        for remark in found.remarks():
            log(remark)
        if not found:
            raise UserError(f"'{data}' has no rows in its {self.split} split.", "Name another one with --split.")
        return found
