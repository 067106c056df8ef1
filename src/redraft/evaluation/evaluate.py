"""Evaluation of one model: its likelihood, and metrics of its answers, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from redraft.data.chat import forgotten, stray_markers
from redraft.data.contamination import Contamination, contamination
from redraft.data.examples import Example
from redraft.data.loader import batches
from redraft.data.tokenising import tokenise
from redraft.errors import UserError
from redraft.evaluation import stats
from redraft.evaluation.answering import Answers, Asking, answer
from redraft.evaluation.config import Evaluation
from redraft.evaluation.energy import EnergyMeter
from redraft.evaluation.frontier import Frontier, FrontierPoint
from redraft.evaluation.items import Item, fitting, make_items, sample
from redraft.evaluation.outcome import (
    EvaluationResult,
    Likelihood,
    MetricValue,
    ShortTexts,
    TaskResult,
)
from redraft.evaluation.parallelism import tokens_per_pass
from redraft.evaluation.questions import Questions
from redraft.evaluation.scores import score
from redraft.evaluation.texts import resolved
from redraft.generation.prompts import longest
from redraft.likelihood import bound
from redraft.metrics import Array, Metric
from redraft.metrics.diversity import Diversity
from redraft.metrics.mauve import Mauve
from redraft.metrics.pass_at_k import PassAtK
from redraft.metrics.perplexity import Perplexity
from redraft.metrics.shared.judge import Judged
from redraft.model import Model
from redraft.options import echo
from redraft.settings import Settings
from redraft.tasks import Choice, infer_parts

Log = Callable[[str], None]

SHORT = 20  # tokens of a reference, below which it is short
FEWEST_SHORT = 10  # items
_SCORED_TOKENS = 8192  # of one forward pass of the likelihood


def evaluate(
    model: Model, examples: Sequence[Example], wanted: Evaluation, settings: Settings, log: Log
) -> EvaluationResult:
    """Measure the likelihood of the data, and score answers by the metrics of the task.

    Each task of a mixture and each part of a benchmark is measured by itself, on ``wanted.rows`` rows of it.

    Raises:
        UserError: a task was named for a mixture, several votes or attempts at temperature 0, a question that can't be
            answered in the wanted way, or a judge that can't judge.
    """
    _check(wanted, settings)
    shared = _contamination(examples, wanted, log)
    questions = None if wanted.benchmark is None else Questions.of(model, wanted, wanted.benchmark)
    if questions is None:
        choices: Mapping[str, Choice] = infer_parts(examples, wanted.task, wanted.metric_options)
    else:
        choices, examples = questions.choices(examples), questions.asked(examples)
    for warning in (forgotten(examples, model.tokenizer), stray_markers(examples, model.tokenizer)):
        if warning:
            log(warning)
    judges = _judges(wanted, model)
    examples = fitting(model, examples, _room(questions, settings), wanted.skip_bad_rows, log)
    overall = likelihood(model, sample(examples, wanted.rows), wanted.samples, settings.seed)
    together: dict[str, list[Example]] = {}
    for example in examples:
        together.setdefault(example.task, []).append(example)
    tasks, texts = {}, []
    for name, part in together.items():
        own = overall
        if len(together) > 1:
            log(f"task {name}")
            own = likelihood(model, sample(part, wanted.rows), wanted.samples, settings.seed)
        choice = choices[name] if name in choices else choices[""]
        job = _Job(model, wanted, settings, choice, questions, judges, log)
        tasks[name], lines = job.run(part, own)
        texts += [{"task": name, **line} if len(together) > 1 else line for line in lines]
    return EvaluationResult(min(wanted.rows, len(examples)), shared, overall, tasks, texts)


def _contamination(examples: Sequence[Example], wanted: Evaluation, log: Log) -> dict[str, Contamination]:
    """What of the rows also occurs in training rows, by part of a benchmark, where training rows are known."""
    parts = ("",) if wanted.benchmark is None else wanted.benchmark.parts
    found = {}
    for part in parts:
        if training := wanted.training(part, log):
            own = [example for example in examples if wanted.benchmark is None or example.task == part]
            found[part] = contamination(training, own).brief()
            if found[part].total:
                log(f"{f'{part}: ' if part else ''}{found[part]}")
    return found


def _check(wanted: Evaluation, settings: Settings) -> None:
    for name, number in (("votes", wanted.votes), ("attempts", wanted.attempts)):
        if number > 1 and not settings.temperature:
            raise UserError(
                f"--{name} {number} needs a temperature above 0: at 0 all samples are equal.",
                f"Give --temperature, for example 0.7, or leave out --{name}.",
            )
    if wanted.temperatures and wanted.judge is None:
        raise UserError("--temperatures needs a judge, whose perplexity is drawn.", "Name one with --judge.")
    if wanted.votes > 1 and wanted.attempts > 1:
        raise UserError("--votes and --attempts can't be combined.", "Leave out one of them.")


def _room(questions: Questions | None, settings: Settings) -> int:
    """New tokens that must fit after a prompt."""
    return settings.max_new_tokens if questions is None or questions.answering == "generate" else 0


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
    continues = not model.paired and examples[0].prompt is not None
    if not model.paired and not continues and model.trained_length:
        length = min(length, model.trained_length)
    tokens = tokenise(examples, model.tokenizer, continues)
    rows = batches(tokens, model.tokenizer, length, max(_SCORED_TOKENS, length + 1))
    found = bound(model.network, rows, model.family.objective(), model.spec, samples, seed)
    return Likelihood(
        is_bound=found.is_bound,
        nats_per_token=found.nats_per_token,
        nats_per_token_error=found.nats_per_token_stderr,
        bits_per_byte=found.bits_per_byte,
        bits_per_byte_error=found.bits_per_byte_stderr,
        tokens=found.tokens,
    )


class _Job:
    """The evaluation of the rows of one task."""

    def __init__(
        self,
        model: Model,
        wanted: Evaluation,
        settings: Settings,
        chosen: Choice,
        questions: Questions | None,
        judges: Sequence[Judged],
        log: Log,
    ) -> None:
        self._model, self._wanted, self._settings, self._chosen = model, wanted, settings, chosen
        self._questions, self._judges, self._log = questions, judges, log

    def run(self, examples: Sequence[Example], own: Likelihood) -> tuple[TaskResult, list[dict[str, Any]]]:
        """The result on the rows, and their texts."""
        wanted, model, questions = self._wanted, self._model, self._questions
        paired = examples[0].prompt is not None
        items = make_items(examples, model.tokenizer, wanted.rows, paired, self._settings.max_new_tokens)
        asking = Asking(
            self._settings,
            "generate" if questions is None else questions.answering,
            None if questions is None else questions.benchmark,
            wanted.votes,
            wanted.attempts,
            wanted.samples,
            wanted.batch_size,
        )
        with EnergyMeter(model.network.device) as meter:
            found = answer(model, items, asking, self._log)
        metrics, short = self._metrics(items, found.texts)
        lines = [
            {"prompt": item.prompt, "references": item.references, "text": text, "nfe": nfe / len(texts)}
            for item, texts, nfe in zip(items, found.texts, found.nfe, strict=True)
            for text in texts
        ]
        part = examples[0].task
        result = TaskResult(
            rows=min(wanted.rows, len(examples)),
            likelihood=own,
            task=self._chosen.name,
            task_reason=self._chosen.reason,
            inputs=len(items),
            metrics=metrics,
            settings=echo(resolved(model, self._settings), "cli"),
            votes=wanted.votes,
            attempts=wanted.attempts,
            batch_size=wanted.batch_size,
            short=short,
            benchmark=None if questions is None else questions.info(part),
            energy=meter.energy(found.tokens),
            frontier=self._frontier(items, asking, found),
            **_work(found, len(lines)),
        )
        return result, lines

    def _frontier(self, items: Sequence[Item], asking: Asking, found: Answers) -> Frontier | None:
        """Perplexity and entropy at several temperatures, and those of the references."""
        if not self._wanted.temperatures:
            return None
        perplexity = next(judge for judge in self._judges if isinstance(judge, Perplexity))

        def point(temperature: float | None, texts: Sequence[str]) -> FrontierPoint:
            values = [score(metric, texts, items).value for metric in (perplexity, Diversity("entropy"))]
            return FrontierPoint(temperature, math.log(values[0]) if values[0] else math.nan, values[1])

        points = [point(self._settings.temperature, [several[0] for several in found.texts])]
        for temperature in self._wanted.temperatures:
            self._log(f"temperature {temperature:g}")
            warmer = replace(asking, settings=replace(asking.settings, temperature=temperature), attempts=1)
            points.append(point(temperature, [one[0] for one in answer(self._model, items, warmer, self._log).texts]))
        return Frontier.of(perplexity.judge, points, point(None, [item.references[0] for item in items]))

    def _metrics(
        self, items: Sequence[Item], texts: Sequence[Sequence[str]]
    ) -> tuple[dict[str, MetricValue], ShortTexts | None]:
        """All metrics with their intervals, pass@k of several attempts, and the first metric of short answers."""
        each = len(texts[0])
        flat = [text for several in texts for text in several]
        repeated = [item for item in items for _ in range(each)]
        able = [judge for judge in self._judges if len(items) >= judge.least]
        for judge in self._judges:
            if judge not in able:
                self._log(f"{judge.label} is left out: it needs {judge.least} texts, and there are {len(items)}.")
        found, short = {}, None
        for number, metric in enumerate((*self._chosen.task.metrics(), *able)):
            scores = score(metric, flat, repeated)
            statistics = scores.stats.reshape(len(items), each, -1).sum(1)
            found[metric.name] = _value(metric, statistics)
            if number == 0:
                short = _short(metric, statistics, items)
                if each > 1 and metric.decides:
                    right = scores.rows.reshape(len(items), each) > 99.9
                    for k in _ks(each):
                        found[PassAtK(k).name] = _value(PassAtK(k), PassAtK(k).of(right))
        return found, short


def _ks(attempts: int) -> list[int]:
    """The k of pass@k that are reported: 1, 10, 100 and the number of attempts."""
    return sorted({k for k in (1, 10, 100, attempts) if k <= attempts})


def _value(metric: Metric, statistics: Array) -> MetricValue:
    around = stats.interval(statistics[None], metric.combine)
    return MetricValue(around.value, around.low, around.high, metric.label, metric.signature)


def _short(metric: Metric, statistics: Array, items: Sequence[Item]) -> ShortTexts | None:
    """The metric on items with a short reference; None if these are too few, or all."""
    inside = np.array([item.tokens < SHORT for item in items])
    if inside.all() or inside.sum() < FEWEST_SHORT:
        return None
    around = stats.interval(statistics[inside][None], metric.combine)
    return ShortTexts(SHORT, int(inside.sum()), around.value, around.low, around.high)


def _work(found: Answers, texts: int) -> dict[str, Any]:
    """Forward passes, tokens and time."""
    passes = sum(found.nfe)
    return {
        "nfe": passes / max(1, texts),
        "tokens_per_pass": tokens_per_pass(found.tokens, found.ended, passes),
        "new_tokens": found.tokens,
        "seconds": found.seconds,
        "tokens_per_second": found.tokens / found.seconds,
        "answers_per_second": texts / found.seconds,
    }
