"""Settings of a generation for every row of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from redraft.options import check, setting


@dataclass(frozen=True)
class Bulk:
    """What is read and written, and in which portions. ``docs/bulk.md`` describes the results."""

    data: str | None = setting(
        None,
        "Generate for every row of this data: a file, a folder, a data set by name, or hub:owner/name. Needs --out.",
        metavar="SOURCE",
    )
    data_root: str | None = setting(
        None, "With --data: folder in which data sets are looked up by name.", metavar="FOLDER", envvar="REDRAFT_DATA"
    )
    input: str | None = setting(
        None,
        "With --data: column of the prompt, or of conversations. Unset: recognised by its name.",
        metavar="COLUMN",
    )
    out: Path | None = setting(
        None,
        "With --data: folder of the results. The same command continues what was interrupted.",
        metavar="FOLDER",
    )
    column: str = setting(
        "generated",
        "With --data: new column of the texts. COLUMN_tokens and COLUMN_finish hold their numbers of tokens, and why "
        "they end.",
        metavar="COLUMN",
    )
    format: Literal["auto", "parquet", "jsonl"] = setting(
        "auto", "With --data: format of the results. auto: Parquet if the data are Parquet, else JSON lines."
    )
    batch_size: int = setting(32, "With --data: prompts in a batch.", least=1)
    shard_rows: int = setting(
        1000,
        "With --data: rows of the data for each file of results. An interruption costs at most the work on one file.",
        least=1,
        unit="rows",
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def columns(self) -> tuple[str, str, str]:
        """The new columns: text, number of tokens, and why the text ends (``stop`` or ``length``)."""
        return self.column, f"{self.column}_tokens", f"{self.column}_finish"
