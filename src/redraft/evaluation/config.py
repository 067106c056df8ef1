"""Settings of an evaluation: its data, and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.data.examples import SPLITS, Columns, Example, Splits, load, read, resolve
from redraft.errors import UserError, suggest
from redraft.options import REQUIRED, check, setting


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

    split: str = setting(
        "test", "Split to evaluate on, for data with splits. Without splits, all rows count.", metavar="NAME"
    )
    rows: int = setting(
        500, "Limit: largest number of rows, sampled from all; the same rows in every run.", least=1, unit="rows"
    )
    votes: int = setting(
        1, "Solutions per prompt; the majority's final answer counts. Needs a temperature above 0.", least=1
    )
    batch_size: int = setting(32, "Number of prompts in a batch.", least=1)
    samples: int = setting(4, "Noise samples per row for the likelihood bound.", least=2)
    judge: str | None = setting(
        None, "Model that judges the texts by their perplexity and by MAUVE, such as smollm2-135m.", metavar="MODEL"
    )
    out: Path | None = setting(None, "File for every prompt, its references and the text, as JSON lines.")

    def examples(self, log: Callable[[str], None]) -> Sequence[Example]:
        """The rows of the split, or all rows of a source without splits.

        Args:
            log: receives a line for each row that is left out, and one if the source has no splits.
        Raises:
            UserError: an unknown split, a split without rows, or a source or row that can't be read.
        """
        if self.split not in SPLITS:
            raise UserError(f"There is no split '{self.split}'.", suggest(self.split, SPLITS))
        if set(resolve(self.data, self.data_root)) <= {""}:
            found = read(self.data, self.columns, data_root=self.data_root, skip_bad_rows=self.skip_bad_rows)
            log(
                f"'{self.data}' has no splits, so all of its {len(found)} rows count. A model that was trained on "
                "this file has seen most of them: give rows that it has not seen."
            )
        else:
            found = dict(self.splits().items())[self.split]
        for remark in found.remarks():
            log(remark)
        if not found:
            raise UserError(f"'{self.data}' has no rows in its {self.split} split.", "Name another one with --split.")
        return found
