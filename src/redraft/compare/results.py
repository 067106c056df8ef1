"""The parts of ``results.json`` as typed values. ``docs/results-schema.md`` describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.stats import Interval

Verdict = Literal["same", "better", "worse", "undecided"]
Role = Literal["best", "fast", "both"]
Advice = Literal["switch", "keep", "trade_off", "depends", "undecided"]


@dataclass(frozen=True)
class MetricInfo:
    """A quality metric."""

    name: str
    label: str
    better: int  # +1 higher is better, -1 lower is better, 0 neither
    signature: str = ""  # how it was computed, in sacrebleu's form


@dataclass(frozen=True)
class TaskInfo:
    """The task and how it is scored."""

    name: str
    summary: str
    reason: str  # why this task was chosen
    margin: float  # of the primary metric
    primary: str  # the metric of the verdict
    metrics: tuple[MetricInfo, ...]

    @property
    def label(self) -> str:
        """Label of the primary metric."""
        return next(metric.label for metric in self.metrics if metric.name == self.primary)


@dataclass(frozen=True)
class BaselineChoice:
    """What the other settings are compared with; empty names if the baseline family was not measured."""

    family: str
    setting: str  # its best on validation rows: for quality
    speed_setting: str  # its fast one: for speed and compute


@dataclass(frozen=True)
class Difference:
    """A setting against the baseline on one metric. A positive difference is an improvement."""

    difference: float
    low: float
    high: float
    margin: float
    p_difference: float
    p_equivalence: float
    p_holm: float | None  # adjusted for all settings; primary metric only
    verdict: Verdict
    preliminary: bool  # one training seed


@dataclass(frozen=True)
class Likelihood:
    """Bits per byte of the test rows under one family."""

    family: str
    is_bound: bool
    seeds: int
    rows: int
    error: float  # Monte-Carlo standard error
    bits_per_byte: Interval
    against_baseline: Difference | None


@dataclass(frozen=True)
class BaselineTexts:
    """What a trivial system reaches on each metric."""

    name: str
    quality: dict[str, Interval]


@dataclass(frozen=True)
class Ngram:
    """Likelihood of the test rows under an n-gram model of bytes."""

    order: int
    bits_per_byte: float


@dataclass(frozen=True)
class Baselines:
    """Results without a trained network."""

    texts: tuple[BaselineTexts, ...] = ()
    human_texts: dict[str, Interval] | None = None  # other texts by people; for plain text only
    ngram: Ngram | None = None


@dataclass(frozen=True)
class Work:
    """Work per generated text on the test items, mean over texts and seeds."""

    nfe: float  # forward passes
    tokens: float
    finished: float  # share of texts that ended with end-of-text
    flops_per_token: float | None
    flops_per_text: float


@dataclass(frozen=True)
class Ratio:
    """A ratio of median latencies with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def word(self) -> Literal["faster", "slower", "equal"]:
        """``equal`` if the interval contains 1."""
        return "faster" if self.low > 1 else "slower" if self.high < 1 else "equal"


@dataclass(frozen=True)
class Speed:
    """Latency and throughput at one batch size."""

    batch: int
    calls: int
    p50: float  # seconds per request
    p95: float
    tokens_per_second: float  # completion tokens
    requests_per_second: float
    cost_per_thousand: float | None  # of requests, in the currency of the price
    speedup: Ratio | None  # of latency, against the baseline's fast setting


@dataclass(frozen=True)
class SettingResult:
    """One decoding setting that was measured."""

    id: str
    label: str
    family: str
    decoding: DecodingConfig
    chosen: tuple[Literal["best", "fast"], ...]  # by validation rows alone
    seeds: int  # with which it was measured on test items
    validation: float | None  # primary metric on validation items, mean over seeds
    quality: dict[str, Interval]  # by metric, on test items
    against_baseline: dict[str, Difference]  # by metric
    work: Work | None
    speed: tuple[Speed, ...]
    peak_memory: int | None  # bytes while generating
    memory_growth: int | None  # how much of it was new


@dataclass(frozen=True)
class EqualQuality:
    """The least cost at which a family reaches the baseline's best quality, less the margin."""

    setting: str
    cost: float
    low: float
    high: float
    reached: float  # share of resamples in which it is reached


@dataclass(frozen=True)
class SweptPoint:
    """One setting of a family."""

    tokens_per_pass: float  # of the forward pass, end-of-text counted
    quality: float  # primary metric


@dataclass(frozen=True)
class FamilySummary:
    """A family over all of its settings. Costs: ``passes``, ``operations`` and ``seconds`` (batch 1) of a text."""

    family: str
    settings: int
    low: float  # primary metric of the worst setting, of the median, and of the best
    median: float
    high: float
    factor: str  # the option of the sampler that explains most of the differences; empty: none can be told
    explained: float  # share of their variance
    points: tuple[SweptPoint, ...]
    parallelism: Interval | None  # accuracy under parallelism; None where the metric has no such use
    at_equal_quality: dict[str, EqualQuality | None]  # by cost; None: not reached
    at_equal_cost: dict[str, Interval | None]  # quality within the cost of the baseline's best setting
    matched: int  # settings with as many passes as one of the baseline, times seeds
    better: float | None  # share of them that are better than the baseline's
    better_everywhere: bool  # they are in 95 % of them, and the median is above the baseline's seed band


@dataclass(frozen=True)
class LengthBucket:
    """The primary metric on test items whose reference has a certain number of tokens."""

    above: int
    to: int
    rows: int
    values: dict[str, Interval]  # by setting


@dataclass(frozen=True)
class Sample:
    """A test item and what each chosen setting generates for it."""

    prompt: str
    references: tuple[str, ...]
    texts: dict[str, str]


@dataclass(frozen=True)
class Failure:
    """Why an external service did not answer."""

    why: str
    count: int


@dataclass(frozen=True)
class ShortDifference:
    """A difference in the primary metric with its 95 % interval; positive is better."""

    difference: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class ServiceComparison:
    """One of our settings against the service, on the items that it answered."""

    setting: str
    label: str
    difference: ShortDifference  # positive: ours is better


@dataclass(frozen=True)
class ServiceResult:
    """An external service on the test items."""

    endpoint: str
    model: str
    shots: int
    asked: int
    answered: int
    tries: int
    failures: tuple[Failure, ...]
    quality: dict[str, Interval]
    p50: float | None  # seconds of single requests, network included
    p95: float | None
    calls: int
    concurrency: int
    requests_per_second: float | None
    tokens_in: float | None  # mean per request
    tokens_out: float | None
    cost_per_thousand: float | None
    against: tuple[ServiceComparison, ...]


@dataclass(frozen=True)
class ConstrainedSpeed:
    """Latency under the constraint at one batch size."""

    batch: int
    p50: float
    p95: float
    slowdown: Ratio  # latency with the constraint as a multiple of the latency without


@dataclass(frozen=True)
class BothWays:
    """The same value without the constraint and under it."""

    without: Interval
    under: Interval


@dataclass(frozen=True)
class ConstrainedSetting:
    """A chosen setting without and with the constraint."""

    setting: str
    label: str
    family: str
    seeds: int
    valid: BothWays  # per cent of texts that satisfy the constraint
    quality: BothWays  # primary metric
    nfe_without: float
    nfe_under: float
    change: ShortDifference | None  # of quality, under the constraint against without
    against_baseline: ShortDifference | None  # both under the constraint
    speed: tuple[ConstrainedSpeed, ...]


@dataclass(frozen=True)
class ConstraintStudy:
    """The chosen settings under the study's constraint."""

    constraint: dict[str, str]
    references: float  # per cent of test items whose first reference satisfies it
    inconclusive: bool  # too few do: verdicts under the constraint mean nothing
    settings: tuple[ConstrainedSetting, ...]


@dataclass(frozen=True)
class Alternative:
    """A setting of the baseline family that scores no lower than another setting and is at least as fast."""

    batch: int
    setting: str
    quality: Verdict  # of this setting against the other: better, same or undecided
    speedup: Ratio  # how many times as fast as the other


@dataclass(frozen=True)
class VerdictLine:
    """The verdict on one chosen setting of another family than the baseline."""

    setting: str
    role: Role
    quality: Verdict
    compute: float | None  # operations per token as a multiple of the baseline's
    faster_at: tuple[int, ...]  # batch sizes at which it is faster than the baseline and has no alternative
    alternatives: tuple[Alternative, ...]  # at batch sizes where it is faster than the baseline; one at each at most
    advice: Advice
    text: str  # the numbers in one sentence
    advice_text: str


@dataclass(frozen=True)
class Outcome:
    """The verdict of a study."""

    inconclusive: tuple[str, ...]  # reasons why nothing can be concluded; empty if it can
    preliminary: bool  # one training seed
    headline: str
    advice: Advice | None  # of the first line
    advice_text: str
    lines: tuple[VerdictLine, ...]  # the most useful setting first; empty if inconclusive
