"""The record of a study: everything that ``results.json`` holds, written and read back with its types."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from redraft.compare.measurements import DataSummary, Machine, Missing, Place, Start, TrainingRun
from redraft.compare.plan import Plan
from redraft.compare.results import (
    BaselineChoice,
    Baselines,
    ConstraintStudy,
    FamilySummary,
    LengthBucket,
    Likelihood,
    Outcome,
    Sample,
    ServiceResult,
    SettingResult,
    TaskInfo,
)
from redraft.compare.study import Study
from redraft.errors import UserError
from redraft.files import write_atomically

SCHEMA_VERSION = 2  # raise it when a field is removed or changes its meaning
_NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}


@dataclass(frozen=True)
class Record:
    """The results of a study."""

    schema_version: int
    created: str  # UTC
    redraft: str  # version
    command: str
    complete: bool
    missing: tuple[Missing, ...]
    study: Study
    plan: Plan
    machine: Machine
    data: DataSummary
    task: TaskInfo
    baseline: BaselineChoice
    verdict: Outcome
    caveats: tuple[str, ...]
    training: tuple[TrainingRun, ...]
    likelihood: tuple[Likelihood, ...]
    baselines: Baselines
    settings: tuple[SettingResult, ...]
    buckets: tuple[LengthBucket, ...]
    references: dict[str, float]  # metrics without better or worse, of the reference texts
    samples: tuple[Sample, ...]
    service: ServiceResult | None
    constraint_study: ConstraintStudy | None
    starts: tuple[Start, ...] = ()  # checkpoints, one for each family; empty: trained from scratch
    timed_on: tuple[Place, ...] = ()  # where times were measured; more than one only if a study was continued elsewhere
    families: tuple[FamilySummary, ...] = ()  # over all of their settings

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read a ``results.json``.

        Raises:
            UserError: the file can't be read, has another schema version, or lacks a field.
        """
        loaded: Record = load_typed(cls, Path(path))
        return loaded

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        write_atomically(Path(path), json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def setting(self, name: str) -> SettingResult | None:
        """The result of a setting by its id."""
        return next((row for row in self.settings if row.id == name), None)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``results.json``, made from the types. Numbers that are not finite are written as strings."""
    made = _simplified(_adapter(Record).json_schema())
    made["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    made["$defs"]["Number"] = _NUMBER
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "results.json of redraft compare"}
    return {**head, **made}


def load_typed(cls: Any, path: Path) -> Any:
    """Read a dataclass with a ``schema_version`` from JSON.

    Raises:
        UserError: the file can't be read, has another schema version, or lacks a field.
    """
    from pydantic import ValidationError

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Can't read '{path}': {error.strerror}.", "Name a folder of redraft compare.") from None
    except (ValueError, RecursionError):
        raise UserError(f"'{path}' is not valid JSON.", "Run the comparison again to write it anew.") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        found = "no schema version" if version is None else f"schema version {version}"
        raise UserError(
            f"'{path}' has {found}; this version of redraft reads version {SCHEMA_VERSION}.",
            "Run the comparison again with this version.",
        )
    try:
        return _adapter(cls).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"'{path}': '{where}' is not valid: {first['msg'].lower()}.", "Run the comparison again to write it anew."
        ) from None


def to_plain(value: Any) -> Any:
    """A dataclass as plain values for JSON; numbers that are not finite become strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


@cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _simplified(schema: Any) -> Any:
    """The schema without titles, and with a reference to ``Number`` for every number."""
    if isinstance(schema, dict):
        kept = {key: _simplified(one) for key, one in schema.items() if not (key == "title" and isinstance(one, str))}
        return {"$ref": "#/$defs/Number"} if kept.get("type") == "number" else kept
    return [_simplified(one) for one in schema] if isinstance(schema, list) else schema


if __name__ == "__main__":
    sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")
