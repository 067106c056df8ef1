"""Results of a tuning, as ``tune.json`` stores them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redraft import config
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.stats import Interval
from redraft.files import read_json, write_atomically

SCHEMA_VERSION = 2  # of tune.json; raise it when a field is removed or changes its meaning


@dataclass(frozen=True)
class Timing:
    """Speed at one batch size."""

    batch: int
    p50: float  # median seconds of a batch
    tokens_per_second: float


@dataclass(frozen=True)
class TriedConfig:
    """One decoding configuration and what was measured of it."""

    id: str
    config: DecodingConfig
    rows: int  # rows that it was scored on
    quality: Interval
    nfe: float  # forward passes per text
    tokens_per_pass: float
    flops_per_token: float
    speed: list[Timing]  # empty: not timed
    eliminated: str  # why it left the race; empty: it was scored on every row
    front: dict[str, bool] = field(default_factory=dict)  # is it on the Pareto front? by axis: nfe, or a batch size

    def timing(self, batch: int) -> Timing | None:
        """Its speed at a batch size, if it was timed."""
        return next((one for one in self.speed if one.batch == batch), None)

    def cost(self, axis: str) -> float | None:
        """Forward passes per text (``nfe``), or median seconds at a batch size, if it was timed."""
        if axis == "nfe":
            return self.nfe
        timing = self.timing(int(axis))
        return None if timing is None else timing.p50


@dataclass(frozen=True)
class HeldOutResult:
    """Scores on rows that had no part in the choice."""

    rows: int
    current: Interval
    winner: Interval
    difference: Interval  # of the winner to the current configuration; positive is better


@dataclass(frozen=True)
class TuneResults:
    """The choice, the evidence for it, and every configuration that was tried."""

    model: str
    data: str
    family: str
    parameters: int
    task: str
    metric: str
    label: str  # of the metric
    better: int  # +1: higher is better; -1: lower is better
    within: float
    rows: int
    texts_generated: int
    batches: list[int]
    max_new_tokens: int
    temperature: float
    current: str  # id of the model's own configuration
    best: str  # ... of the one with the best quality
    winner: str  # ... of the one that was chosen
    generation: dict[str, Any]  # the winner as a model's generation_config.json holds it
    against: dict[str, Interval]  # difference of the winner to ``best`` and to ``current``; positive is better
    speedup: dict[str, Interval]  # of the winner against the current one, by batch size
    settings: list[TriedConfig]
    machine: dict[str, Any]
    seconds: float
    written: str | None = None  # folder of the model whose settings were changed
    test: HeldOutResult | None = None
    signature: str = ""  # how the metric was computed, in sacrebleu's form
    schema_version: int = SCHEMA_VERSION

    def find(self, name: str) -> TriedConfig:
        """The configuration with this id."""
        return next(one for one in self.settings if one.id == name)

    def with_changes(self, **changed: Any) -> TuneResults:
        """A copy with some fields changed."""
        return replace(self, **changed)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return config.to_mapping(self)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "tune.json") -> TuneResults:
        """The results from plain values.

        Raises:
            UserError: an unknown field or a value of the wrong type.
        """
        return config.build(cls, values, where)

    def write(self, folder: Path) -> None:
        """Write ``tune.json``."""
        text = json.dumps(self.to_mapping(), ensure_ascii=False, indent=1)
        write_atomically(folder / "tune.json", text + "\n")

    @classmethod
    def read(cls, folder: Path) -> TuneResults:
        """Read ``tune.json``.

        Raises:
            UserError: the file can't be read, or holds something else.
        """
        path = folder / "tune.json"
        return cls.of(read_json(path), str(path))
