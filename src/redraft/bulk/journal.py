"""The folder of a generation over rows: what it was begun with, which shards are complete, and the rows left out.

    rows/part-000000.parquet ...   the results: the good rows in their order, with the new columns
    bad-rows.jsonl                 file, line and reason of each row that was left out
    run.json                       what the run was begun with
    journal.jsonl                  a line for each complete shard
    result.json                    the sums, when all is done

A shard counts from the moment when its line is in the journal, which is written after its file. A process that is
killed in between writes the same file again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redraft.bulk.engine import Answered
from redraft.bulk.shards import Shards
from redraft.data.stream import Position
from redraft.errors import UserError
from redraft.files import disk_error, read_json, write_atomically

_OWN = {"rows", "bad-rows.jsonl", "run.json", "journal.jsonl", "result.json", "lock"}
_FREE = ("redraft", "model")  # of run.json: for people, and not compared


@dataclass(frozen=True)
class Done:
    """The sums over complete shards."""

    shards: int = 0
    read: int = 0
    written: int = 0
    bad: int = 0
    tokens: int = 0
    end: Position = Position()

    def plus(self, line: Mapping[str, Any]) -> Done:
        """With one more line of the journal."""
        return Done(
            self.shards + 1,
            self.read + line["read"],
            self.written + line["written"],
            self.bad + len(line["bad"]),
            self.tokens + line["tokens"],
            Position(*line["end"]),
        )


class Journal:
    """Records complete shards.

    Attributes:
        done: the sums so far.

    Raises:
        UserError: the folder can't be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.done = folder, folder / "journal.jsonl", Done()
        try:
            (folder / "rows").mkdir(exist_ok=True)
            for leftover in (folder / "rows").glob(".part-*.tmp"):  # of a process that was killed
                leftover.unlink()
            size = 0
            for line, end in _lines(self.path):
                self.done, size = self.done.plus(line), end
            self._file = self.path.open("ab")
            self._file.truncate(size)  # drops a line that a killed process began
        except OSError as error:
            raise disk_error(error, self.path) from None

    def check(self, shards: Shards, numbers: int) -> None:
        """Check that the files of all complete shards are still there.

        Args:
            numbers: how many shards there are.
        Raises:
            UserError: one is missing.
        """
        for number, (line, _) in zip(range(numbers), _lines(self.path), strict=True):
            if line["written"] and not shards.path(number).is_file():
                raise UserError(
                    f"'{shards.path(number)}', a complete part of these results, is missing.",
                    "Restore it, or choose another --out.",
                )

    def add(self, shards: Shards, found: Answered) -> None:
        """Write a shard and its line.

        Raises:
            UserError: the disk is full, or the format can't hold the rows.
            ValueError: it is not the next shard.
        """
        if found.number != self.done.shards:
            raise ValueError(f"shard {found.number} after {self.done.shards - 1}")
        if found.rows:
            shards.write(found.number, found.rows)
        line = {"read": found.read, "written": len(found.rows), "bad": found.bad, "tokens": found.tokens}
        line["end"] = [found.end.file, found.end.row]
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(error, self.path) from None
        self.done = self.done.plus(line)

    def write_bad_rows(self) -> None:
        """Write the list of the rows that were left out so far, if there are any.

        Raises:
            UserError: the disk is full.
        """
        if self.done.bad:
            lines = (json.dumps(bad, ensure_ascii=False) for line, _ in _lines(self.path) for bad in line["bad"])
            text = "".join(f"{line}\n" for line in lines)
            write_atomically(self.folder / "bad-rows.jsonl", text.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def begin(folder: Path, run: Mapping[str, Any]) -> None:
    """Record what a run is begun with, or check that it is what the run in this folder was begun with.

    A run without a complete shard has no results, and is begun anew.

    Raises:
        UserError: the folder holds other files, or a run that was begun with something else.
    """
    path, journal = folder / "run.json", folder / "journal.jsonl"
    present = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    own = _OWN if path.exists() else {"lock"}
    if others := [name for name in present if name not in own]:
        what = f"'{folder}' is not empty ({others[0]}), and holds no results to be continued."
        raise UserError(what, "Choose another --out.")
    if not any(_lines(journal)):
        for file in (folder / "rows").glob("part-*"):
            file.unlink()
        write_atomically(path, json.dumps(run, indent=2, ensure_ascii=False) + "\n")
        return
    old, new = read_json(path), json.loads(json.dumps(run))
    changed = [key for key in sorted(old.keys() | new.keys()) if key not in _FREE and old.get(key) != new.get(key)]
    if changed:
        told = "; ".join(f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}" for key in changed)
        what = f"'{folder}' holds results that were begun with something else ({told})."
        raise UserError(what, "Restore it to continue them, or choose another --out.")


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The complete lines of a journal, each with the size of the file up to its end."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            end += len(raw)
            yield json.loads(raw), end


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
