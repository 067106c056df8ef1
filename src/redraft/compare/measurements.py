"""What a study measures: trained models, likelihoods, generated texts and timed calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from redraft.compare.external_service import Replies
from redraft.compare.plan import Plan
from redraft.compare.study import Study
from redraft.data.contamination import Contamination
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import Item
from redraft.evaluation.scores import score
from redraft.evaluation.texts import GenerationRun
from redraft.evaluation.timing import TimedCalls
from redraft.metrics import Array, Metric
from redraft.tasks import Choice

Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Missing:
    """A piece of the study that was not measured."""

    what: str
    why: str


@dataclass(frozen=True)
class Machine:
    """What the numbers were measured on."""

    device: str
    gpu: str | None = None
    cpu: str = ""
    cores: int | None = None
    threads: int | None = None
    load: float | None = None  # load average of the last minute
    system: str = ""
    python: str = ""
    torch: str = ""
    redraft: str = ""
    matmul_gflops: float | None = None  # measured speed of a matrix product


@dataclass(frozen=True)
class DataSummary:
    """The data that were used."""

    source: str
    hash: str  # of all rows
    columns: dict[str, str]
    rows: dict[str, int]  # train, validation, test
    notes: tuple[str, ...]  # which rows were left out, and why
    leaks: int  # test rows whose input also occurs in the training rows
    paired: bool  # prompts and answers; else plain text
    validation_items: int
    test_items: int
    contamination: Contamination | None = None  # of the test rows by training rows, with examples


@dataclass(frozen=True)
class Start:
    """The checkpoint that a family's models were trained from, and how the family reads the texts."""

    family: str
    checkpoint: str
    was: str  # family of the checkpoint; if it is another one, the checkpoint was converted
    curriculum: dict[str, Any]  # how attention changed in a conversion; empty: at once
    lora_rank: int  # 0: all weights were trained
    parameters: int
    tokenizer: str  # fingerprint
    vocabulary: int
    added: tuple[str, ...]  # special tokens that the checkpoint lacked
    separated: bool  # a token stands between prompt and answer
    length: int  # its tokens of the longest row
    new_tokens: int  # limit of an output, in its tokens
    tokens_per_token: float  # its tokens of a training row for each token of the baseline; the budget has this factor
    objective: dict[str, Any] = field(default_factory=dict)  # how it learned from the checkpoint; empty: only from data

    @property
    def converted(self) -> bool:
        """Its family changed."""
        return self.was != self.family


def same_tokens(starts: Sequence[Start]) -> bool:
    """Do all families read texts with the same tokens, so that counts of tokens can be compared?"""
    return all(start.tokens_per_token == 1 for start in starts)


@dataclass(frozen=True)
class Validation:
    """Validation loss of a model."""

    bits_per_byte: float
    bits_error: float  # Monte-Carlo standard error; 0 for exact values
    is_bound: bool


@dataclass(frozen=True)
class CurvePoint:
    """One validation during training."""

    tokens: int
    bits_per_byte: float
    bits_error: float | None
    passes: float | None


@dataclass(frozen=True)
class LossPoint:
    """The loss of one training update."""

    tokens: int
    loss: float


@dataclass(frozen=True)
class Curve:
    """Learning curves of a training run."""

    validation: tuple[CurvePoint, ...] = ()
    update: tuple[LossPoint, ...] = ()


@dataclass(frozen=True)
class PostTrainingRun:
    """How a model was trained further on rewards, after the training of its ``TrainingRun``."""

    prompts: int
    texts: int  # that the model wrote and learned from
    steps: int
    flops: float  # of writing the texts, and of learning from them
    seconds: float
    first_reward: float  # mean of the texts of the first quarter of the updates ...
    last_reward: float  # ... and of the last


@dataclass(frozen=True)
class TrainingRun:
    """One trained model."""

    family: str
    seed: int
    dropout: float
    kept: bool  # False: trained at a dropout rate that is not its family's best
    parameters: int
    steps: int
    tokens: int
    passes: float  # over the training rows
    flops: float
    seconds: float
    tokens_per_second: float | None
    peak_memory: int  # bytes
    validation: Validation | None  # of the model that was kept
    curve: Curve
    model: str  # folder under the folder of the study
    post: PostTrainingRun | None = None  # None: measured as it was after this training


@dataclass(frozen=True)
class RowLikelihoods:
    """Negative log-likelihood of every test row under one model."""

    family: str
    seed: int
    nats: tuple[float, ...]
    bytes: tuple[int, ...]
    is_bound: bool
    error: float  # standard error of the bits per byte
    samples: int  # noise draws per row


@dataclass(frozen=True)
class GeneratedTexts:
    """What one model generated with one setting for all items of a part."""

    setting: str  # id
    part: Part
    seed: int
    run: GenerationRun
    constrained: bool = False  # under the study's constraint

    @property
    def texts(self) -> list[str]:
        """The texts, one for each item."""
        return self.run.texts


@dataclass(frozen=True)
class Place:
    """Where times were measured. No other piece of the study ran on this machine at the time."""

    executor: str  # local: in the study's own process; ray: in a task that held all cores of its node
    node: str  # host name
    gpu: str | None
    cpu: str
    cores: int | None
    threads: int | None


@dataclass(frozen=True)
class Timing:
    """Settings timed in turns at one batch size."""

    batch: int
    entries: tuple[TimedCalls, ...]
    constrained: bool = False  # settings without the study's constraint and under it
    place: Place | None = None  # None: measured by a version that did not record it

    def of(self, setting: str) -> TimedCalls | None:
        """The calls of a setting by its id."""
        return next((entry for entry in self.entries if entry.id == setting), None)


@dataclass(frozen=True)
class BaselineAnswers:
    """Texts of trivial systems for the test items, and the likelihood of an n-gram model."""

    texts: Mapping[str, tuple[str, ...]]  # by name of the system
    human_texts: tuple[str, ...]  # other texts by people, for plain text only
    order: int
    bits_per_byte: float


@dataclass
class Measurements:
    """Everything that a study has measured so far. The analysis works on this alone."""

    study: Study
    plan: Plan
    choice: Choice
    data: DataSummary
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    machine: Machine
    command: str = ""
    starts: tuple[Start, ...] = ()  # one for each family; empty: trained from scratch
    missing: list[Missing] = field(default_factory=list)
    training: list[TrainingRun] = field(default_factory=list)
    likelihoods: list[RowLikelihoods] = field(default_factory=list)
    texts: list[GeneratedTexts] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    baselines: BaselineAnswers | None = None
    service: Replies | None = None
    _statistics: dict[tuple[str, str, str], Array] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> list[Metric]:
        """Metrics of the task; the first is the primary one."""
        return self.choice.task.metrics()

    @property
    def primary(self) -> Metric:
        """The metric of the verdict."""
        return self.metrics[0]

    @property
    def margin(self) -> float:
        """Largest difference in the primary metric that counts as equal."""
        return self.study.margin or self.choice.task.margin

    @property
    def settings(self) -> dict[str, DecodingConfig]:
        """The planned settings by id."""
        return {setting.id: setting for setting in self.plan.settings}

    def texts_of(self, part: Part, setting: str, constrained: bool = False) -> list[GeneratedTexts]:
        """The texts of a setting, one entry for each seed."""
        return [
            one for one in self.texts if one.part == part and one.setting == setting and one.constrained == constrained
        ]

    @property
    def places(self) -> tuple[Place, ...]:
        """Where times were measured, as far as it is known."""
        return tuple(dict.fromkeys(one.place for one in self.timings if one.place is not None))

    def timings_by_batch(self, constrained: bool = False) -> list[Timing]:
        """Timings, the smallest batch size first."""
        return sorted((one for one in self.timings if one.constrained == constrained), key=lambda one: one.batch)

    def statistics(self, part: Part, setting: str, metric: Metric) -> Array | None:
        """Sufficient statistics [seeds, rows, k] of a setting's texts; None if there are none."""
        key = (part, setting, metric.name)
        if key not in self._statistics:
            found = self.texts_of(part, setting)
            if not found:
                return None
            items = self.test if part == "test" else self.validation
            self._statistics[key] = np.stack([score(metric, one.texts, items).stats for one in found])
        return self._statistics[key]
