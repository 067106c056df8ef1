"""Evaluation of one model: its likelihood, and metrics of the texts that it generates, with intervals."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from statistics import fmean
from typing import Any

from redraft.data.chat import forgotten, stray_markers
from redraft.data.examples import Example
from redraft.data.loader import batches, tokenise
from redraft.errors import UserError
from redraft.evaluation import stats
from redraft.evaluation.config import Evaluation
from redraft.evaluation.items import fitting, make_items, sample
from redraft.evaluation.texts import resolved
from redraft.evaluation.votes import majority_vote
from redraft.generation.prompts import longest, prompt_ids
from redraft.likelihood import bound
from redraft.metrics.mauve import Mauve
from redraft.metrics.perplexity import Perplexity
from redraft.metrics.shared.judge import Judged
from redraft.model import Model
from redraft.options import echo
from redraft.settings import Settings
from redraft.tasks import Choice, infer_parts

Log = Callable[[str], None]

_SCORED_TOKENS = 8192  # of one forward pass of the likelihood
_LOG_SECONDS = 5.0  # between two lines of progress


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
    nfe: float  # forward passes per answer
    tokens_per_pass: float
    new_tokens: int
    seconds: float
    tokens_per_second: float
    answers_per_second: float
    batch_size: int

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON, with the settings beside the other fields."""
        found = dataclasses.asdict(self)
        return {**found.pop("settings"), **found}


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation."""

    rows: int
    likelihood: Likelihood  # on all rows
    tasks: dict[str, TaskResult]  # by task of a mixture; otherwise one, without a name
    texts: list[dict[str, Any]] = field(repr=False)  # prompt, references, text and forward passes of each item

    @property
    def mean(self) -> float:
        """The mean over tasks of the first metric of each."""
        return fmean(next(iter(found.metrics.values())).value for found in self.tasks.values())

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON. A mixture has ``tasks`` and ``mean``; a single task stands at the top."""
        if set(self.tasks) == {""}:
            return self.tasks[""].to_mapping()
        tasks = {name: found.to_mapping() for name, found in self.tasks.items()}
        own = {"rows": self.rows, "likelihood": dataclasses.asdict(self.likelihood)}
        return {**own, "tasks": tasks, "mean": self.mean}


def evaluate(
    model: Model, examples: Sequence[Example], wanted: Evaluation, settings: Settings, log: Log
) -> EvaluationResult:
    """Measure the likelihood of the data, and score generated texts by the metrics of the task.

    Each task of a mixture is measured by itself, on ``wanted.rows`` rows of it.

    Raises:
        UserError: a task was named for a mixture, votes at temperature 0, or a judge that can't judge.
    """
    if wanted.votes > 1 and not settings.temperature:
        raise UserError(
            f"--votes {wanted.votes} needs a temperature above 0: at 0 all samples are equal.",
            "Give --temperature, for example 0.7, or leave out --votes.",
        )
    together: dict[str, list[Example]] = {}
    for example in examples:
        together.setdefault(example.task, []).append(example)
    choices = infer_parts(examples, wanted.task, wanted.metric_options)
    for warning in (forgotten(examples, model.tokenizer), stray_markers(examples, model.tokenizer)):
        if warning:
            log(warning)
    judges = _judges(wanted, model)
    examples = fitting(model, examples, settings.max_new_tokens, wanted.skip_bad_rows, log)
    rows = min(wanted.rows, len(examples))
    overall = likelihood(model, sample(examples, wanted.rows), wanted.samples, settings.seed)
    if len(together) < 2:
        result, lines = _one_task(model, examples, wanted, choices[""], settings, overall, judges, log)
        return EvaluationResult(rows, overall, {"": result}, lines)
    tasks, texts = {}, []
    for name, part in together.items():
        log(f"task {name}")
        own = likelihood(model, sample(part, wanted.rows), wanted.samples, settings.seed)
        tasks[name], lines = _one_task(model, part, wanted, choices[name], settings, own, judges, log)
        texts += [{"task": name, **line} for line in lines]
    return EvaluationResult(rows, overall, tasks, texts)


def _judges(wanted: Evaluation, model: Model) -> list[Judged]:
    """The metrics of the judge, if there is one. It is loaded before texts are generated."""
    if wanted.judge is None:
        return []
    judges: list[Judged] = [kind(wanted.judge, str(model.network.device)) for kind in (Perplexity, Mauve)]
    _ = judges[0].model
    return judges


def likelihood(model: Model, examples: Sequence[Example], samples: int, seed: int) -> Likelihood:
    """Likelihood of the targets given their prompts, or of plain texts in windows as long as those of the training.

    Args:
        samples: noise samples per row, for models whose likelihood is a bound.
    """
    length = longest(model) - 1  # a window begins with <bos>
    if not model.paired and model.trained_length:
        length = min(length, model.trained_length)
    rows = batches(tokenise(examples, model.tokenizer), model.tokenizer, length, max(_SCORED_TOKENS, length + 1))
    found = bound(model.network, rows, model.family.objective(), model.spec, samples, seed)
    return Likelihood(
        is_bound=found.is_bound,
        nats_per_token=found.nats_per_token,
        nats_per_token_error=found.nats_per_token_stderr,
        bits_per_byte=found.bits_per_byte,
        bits_per_byte_error=found.bits_per_byte_stderr,
        tokens=found.tokens,
    )


def _one_task(
    model: Model,
    examples: Sequence[Example],
    wanted: Evaluation,
    chosen: Choice,
    settings: Settings,
    own: Likelihood,
    judges: Sequence[Judged],
    log: Log,
) -> tuple[TaskResult, list[dict[str, Any]]]:
    """The result on the rows of one task, and its texts."""
    items = make_items(examples, model.tokenizer, wanted.rows, model.paired, settings.max_new_tokens)
    heads = [prompt_ids(model, item.asked) for item in items]  # as ids, because a row may have an empty prompt
    prompts = [head for head in heads for _ in range(wanted.votes)]
    progress = _Progress(len(prompts), log)
    generated = model.generate(prompts, batch_size=wanted.batch_size, on_batch=progress, **dataclasses.asdict(settings))
    seconds = progress.seconds
    starts = range(0, len(generated), wanted.votes)
    answers = [majority_vote(generated[at : at + wanted.votes], attrgetter("text")) for at in starts]
    lines = [
        {"prompt": item.prompt, "references": item.references, "text": answer.text, "nfe": answer.nfe}
        for item, answer in zip(items, answers, strict=True)
    ]
    metrics = {}
    able = [judge for judge in judges if len(items) >= judge.least]
    for judge in judges:
        if judge not in able:
            log(f"{judge.label} is left out: it needs {judge.least} texts, and there are {len(items)}.")
    for metric in (*chosen.task.metrics(), *able):
        score = metric.score([answer.text for answer in answers], [item.references for item in items])
        around = stats.interval(score.stats[None], metric.combine)
        metrics[metric.name] = MetricValue(around.value, around.low, around.high, metric.label, metric.signature)
    tokens, passes = sum(len(one.ids) for one in generated), sum(one.nfe for one in generated)
    result = TaskResult(
        rows=min(wanted.rows, len(examples)),
        likelihood=own,
        task=chosen.name,
        task_reason=chosen.reason,
        inputs=len(items),
        metrics=metrics,
        settings=echo(resolved(model, settings), "cli"),
        votes=wanted.votes,
        nfe=passes / len(answers),
        tokens_per_pass=tokens / max(1, passes),
        new_tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        answers_per_second=len(answers) / seconds,
        batch_size=wanted.batch_size,
    )
    return result, lines


class _Progress:
    """Logs from time to time how many texts are done, and measures the time since it was made."""

    def __init__(self, total: int, log: Log) -> None:
        self._total, self._log = total, log
        self._begun = self._last = time.perf_counter()

    def __call__(self, done: int) -> None:
        if time.perf_counter() - self._last > _LOG_SECONDS:
            self._last = time.perf_counter()
            self._log(f"{done} of {self._total} texts generated")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begun
