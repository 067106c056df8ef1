"""Answers to items: generated texts, the option of the highest likelihood, or the filling of a gap."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter

from redraft.evaluation.items import Item
from redraft.evaluation.votes import majority_vote
from redraft.generation import infill as infilling
from redraft.generation.holes import Hole
from redraft.generation.prompts import prompt_ids
from redraft.model import Model
from redraft.settings import Settings
from redraft.tasks.benchmarks import Benchmark
from redraft.tasks.benchmarks.base import Answering

Log = Callable[[str], None]
_LOG_SECONDS = 5.0  # between two lines of progress


@dataclass(frozen=True)
class Answers:
    """Texts for items, and the work that they took."""

    texts: list[list[str]]  # of each item, one for each attempt, as they are scored
    nfe: list[int]  # forward passes of each item
    tokens: int  # new tokens, without end-of-text
    ended: int  # texts that ended with end-of-text
    generations: int  # texts that were generated, or options that were scored
    seconds: float


@dataclass(frozen=True)
class Asking:
    """How items are answered."""

    settings: Settings
    answering: Answering = "generate"
    benchmark: Benchmark | None = None
    votes: int = 1
    attempts: int = 1
    samples: int = 4  # noise samples of a likelihood
    batch_size: int = 32

    def scored(self, text: str, item: Item) -> str:
        """What of a generated text is scored."""
        return text if self.benchmark is None else self.benchmark.extract(text, item.values)


def answer(model: Model, items: Sequence[Item], asking: Asking, log: Log) -> Answers:
    """Answer all items.

    Raises:
        UserError: an item that doesn't fit the model's context.
    """
    progress = _Progress(len(items), log)
    if asking.answering == "choose":
        return _choose(model, items, asking, progress)
    if asking.answering == "infill":
        return _infill(model, items, asking, progress)
    return _generate(model, items, asking, progress)


def _generate(model: Model, items: Sequence[Item], asking: Asking, progress: _Progress) -> Answers:
    each = asking.votes * asking.attempts
    heads = [prompt_ids(model, item.asked) for item in items]  # as ids, because a row may have an empty prompt
    prompts = [head for head in heads for _ in range(each)]
    found = model.generate(
        prompts, asking.batch_size, on_batch=lambda done: progress(done // each), **asdict(asking.settings)
    )
    seconds = progress.seconds
    texts, nfe = [], []
    for number, item in enumerate(items):
        own = found[number * each : (number + 1) * each]
        nfe.append(sum(one.nfe for one in own))  # all votes count
        if asking.votes > 1:
            own = [majority_vote(own, attrgetter("text"))]
        texts.append([asking.scored(one.text, item) for one in own])
    ended = sum(one.finish == "stop" for one in found)
    return Answers(texts, nfe, sum(len(one.ids) for one in found), ended, len(found), seconds)


def _choose(model: Model, items: Sequence[Item], asking: Asking, progress: _Progress) -> Answers:
    """The option of the highest likelihood, or of the highest lower bound of it, under the same noise."""
    assert asking.benchmark is not None
    before = "" if model.paired else asking.benchmark.separator
    each = 1 if model.spec.family.schedule is None else asking.samples
    texts, nfe, tokens = [], [], 0
    for number, item in enumerate(items):
        options = {before + option: option for option in item.options}
        ranked = model.rank(item.prompt, list(options), asking.benchmark.measure, asking.samples, asking.settings.seed)
        texts.append([options[ranked[0].option]])
        nfe.append(each * len(options))
        tokens += sum(len(model.tokenizer.encode(option)) for option in options)
        progress(number + 1)
    return Answers(texts, nfe, tokens, 0, sum(len(item.options) for item in items), progress.seconds)


def _infill(model: Model, items: Sequence[Item], asking: Asking, progress: _Progress) -> Answers:
    """Gaps of as many tokens as the reference has, between the text before and after them."""
    texts, nfe, tokens = [], [], 0
    for number, item in enumerate(items):
        size = max(1, item.tokens - 1)  # without end-of-text
        hole = Hole(size, size)
        own = []
        for attempt in range(asking.attempts):
            settings = replace(asking.settings, seed=asking.settings.seed + number * asking.attempts + attempt)
            found = infilling.fill(model, [item.prompt, hole, item.suffix], "", settings)
            filled = found.text[len(item.prompt) : len(found.text) - len(item.suffix)]
            own.append((asking.scored(filled, item), found.nfe, len(found.ids)))
        texts.append([one[0] for one in own])
        nfe.append(sum(one[1] for one in own))
        tokens += sum(one[2] for one in own)
        progress(number + 1)
    return Answers(texts, nfe, tokens, 0, len(items) * asking.attempts, progress.seconds)


class _Progress:
    """Logs from time to time how many items are done, and measures the time since it was made."""

    def __init__(self, total: int, log: Log) -> None:
        self._total, self._log = total, log
        self._begun = self._last = time.perf_counter()

    def __call__(self, done: int) -> None:
        if time.perf_counter() - self._last > _LOG_SECONDS:
            self._last = time.perf_counter()
            self._log(f"{done} of {self._total} items answered")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begun
