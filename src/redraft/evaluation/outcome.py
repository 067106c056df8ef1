"""The results of an evaluation as typed values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from redraft.data.contamination import Contamination
from redraft.evaluation.energy import Energy
from redraft.evaluation.frontier import Frontier


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of the data, exact or an upper bound; errors are standard errors of the bound."""

    is_bound: bool
    nats_per_token: float
    nats_per_token_error: float
    bits_per_byte: float
    bits_per_byte_error: float
    tokens: int


@dataclass(frozen=True)
class MetricValue:
    """A metric with its 95 % bootstrap interval over rows."""

    value: float
    low: float
    high: float
    label: str
    signature: str  # how it was computed, in sacrebleu's form


@dataclass(frozen=True)
class ShortTexts:
    """The first metric on the items whose reference is short."""

    below: int  # tokens of the reference
    items: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchmarkInfo:
    """Which benchmark was run, and how: what two scores must share to be comparable."""

    name: str
    version: int
    part: str
    citation: str
    answering: str  # generate, choose or infill
    shots: int
    template: str  # empty: the input was asked as it is


@dataclass(frozen=True)
class TaskResult:
    """What was measured on the rows of one task."""

    rows: int
    likelihood: Likelihood
    task: str
    task_reason: str
    inputs: int
    metrics: dict[str, MetricValue]
    settings: dict[str, Any]  # generation settings, with the sampler's options
    votes: int
    attempts: int
    nfe: float  # forward passes per answer
    tokens_per_pass: float  # with end-of-text, see ``parallelism.tokens_per_pass``
    new_tokens: int
    seconds: float
    tokens_per_second: float
    answers_per_second: float
    batch_size: int
    short: ShortTexts | None
    benchmark: BenchmarkInfo | None
    energy: Energy | None  # None: this machine does not report it
    frontier: Frontier | None  # over --temperatures

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON, with the settings beside the other fields."""
        found = dataclasses.asdict(self)
        return {**found.pop("settings"), **found}


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation."""

    rows: int
    contamination: dict[str, Contamination] = field(repr=False)  # by part, with the training rows that are known
    likelihood: Likelihood  # on all rows
    tasks: dict[str, TaskResult]  # by task of a mixture or part of a benchmark; otherwise one, without a name
    texts: list[dict[str, Any]] = field(repr=False)  # prompt, references, text and forward passes of each item

    @property
    def mean(self) -> float:
        """The mean over tasks of the first metric of each."""
        return fmean(next(iter(found.metrics.values())).value for found in self.tasks.values())

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON. A mixture has ``tasks`` and ``mean``; a single task stands at the top."""
        known = {part: dataclasses.asdict(found) for part, found in self.contamination.items()}
        if len(self.tasks) == 1:
            return {**next(iter(self.tasks.values())).to_mapping(), "contamination": next(iter(known.values()), None)}
        tasks = {name: found.to_mapping() for name, found in self.tasks.items()}
        own = {"rows": self.rows, "likelihood": dataclasses.asdict(self.likelihood)}
        return {**own, "contamination": known, "tasks": tasks, "mean": self.mean}
