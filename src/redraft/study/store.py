"""What a study has computed, in one SQLite file that notebooks and SQL read.

SQLite, not Parquet: cells come one at a time, each must survive ``kill -9`` (a transaction), it needs no package, and
``pandas.read_sql`` and DuckDB read it. The driver is its only writer.

    cell      id, kind, label, key, value, record (JSON), seconds, made
    used      claim, budget, cell: which cells a claim rests on
    finding   claim, budget, verdict, text, record (JSON), made
    number    claim, budget, task, model, setting, metric, value, low, high, seeds
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.evaluation.result_cache import digest
from redraft.study.cells.base import Cell
from redraft.study.claim import BUDGETS
from redraft.study.finding import StudyRecord

FILE = "study.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS cell (
    id TEXT PRIMARY KEY, kind TEXT, label TEXT, key TEXT, value TEXT, digest TEXT, record TEXT, seconds REAL, made TEXT
);
CREATE TABLE IF NOT EXISTS used (claim TEXT, budget TEXT, cell TEXT, PRIMARY KEY (claim, budget, cell));
CREATE TABLE IF NOT EXISTS finding (
    claim TEXT, budget TEXT, verdict TEXT, text TEXT, record TEXT, made TEXT, PRIMARY KEY (claim, budget)
);
CREATE TABLE IF NOT EXISTS number (
    claim TEXT, budget TEXT, task TEXT, model TEXT, setting TEXT, metric TEXT,
    value REAL, low REAL, high REAL, seeds INTEGER
);
"""


class Store:
    """The file ``study.sqlite`` of a study's folder.

    Raises:
        UserError: the file can't be written, or is not such a file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        try:
            with self._open() as base:
                base.executescript(_SCHEMA)
        except sqlite3.Error as error:
            what = f"'{self.path}' can't be used: {error}."
            raise UserError(what, "Name another folder with --out, or move the file away.") from None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is written, or nothing."""
        with closing(sqlite3.connect(self.path)) as base, base:
            yield base

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The value of a cell; None if it must be computed. A damaged value counts as missing."""
        with self._open() as base:
            row = base.execute("SELECT value, digest FROM cell WHERE id = ?", (cell.id,)).fetchone()
        if row is None or digest(row[0]) != row[1]:
            return None
        found: dict[str, Any] = json.loads(row[0])
        return found

    def put(self, cell: Cell, value: dict[str, Any], record: dict[str, Any]) -> None:
        """Keep a finished cell."""
        text = json.dumps(value, ensure_ascii=False)
        row = (
            cell.id,
            cell.name,
            cell.label,
            json.dumps(cell.key, ensure_ascii=False),
            text,
            digest(text),
            json.dumps(record, ensure_ascii=False),
            record["seconds"],
            _now(),
        )
        with self._open() as base:
            base.execute(f"INSERT OR REPLACE INTO cell VALUES ({', '.join('?' * len(row))})", row)

    def record(self, cell: Cell) -> dict[str, Any]:
        """How a finished cell was made; empty if it isn't there."""
        with self._open() as base:
            row = base.execute("SELECT record FROM cell WHERE id = ?", (cell.id,)).fetchone()
        found: dict[str, Any] = json.loads(row[0]) if row else {}
        return found

    def conclude(self, found: StudyRecord, cells: Sequence[Cell]) -> None:
        """Keep the finding of a claim, its numbers, and which cells it rests on."""
        claim, budget, finding = found.id, found.budget, found.finding
        with self._open() as base:
            for table in ("used", "finding", "number"):
                base.execute(f"DELETE FROM {table} WHERE claim = ? AND budget = ?", (claim, budget))
            base.executemany("INSERT INTO used VALUES (?, ?, ?)", [(claim, budget, cell.id) for cell in cells])
            row = (claim, budget, finding.verdict, finding.text, found.to_json(), found.made)
            base.execute("INSERT INTO finding VALUES (?, ?, ?, ?, ?, ?)", row)
            base.executemany(
                "INSERT INTO number VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (claim, budget, n.task, n.model, n.setting, n.metric, n.value, n.low, n.high, n.seeds)
                    for n in finding.numbers
                ],
            )

    def findings(self) -> list[StudyRecord]:
        """The findings of all claims; of each that of its largest budget."""
        with self._open() as base:
            rows = base.execute("SELECT record FROM finding").fetchall()
        records = [StudyRecord.of_json(text, str(self.path)) for (text,) in rows]
        records.sort(key=lambda one: (one.id, BUDGETS.index(one.budget)))
        return list({one.id: one for one in records}.values())


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
