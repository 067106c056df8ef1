"""The rows of a benchmark as a model is asked them, and how its answers are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from redraft.data.examples import Example, read_split, resolve
from redraft.errors import UserError
from redraft.evaluation.config import Evaluation
from redraft.evaluation.outcome import BenchmarkInfo
from redraft.metrics import Metric
from redraft.model import Model
from redraft.tasks import Choice, DataProfile, fitted
from redraft.tasks.benchmarks import Benchmark, SelectedBenchmark
from redraft.tasks.benchmarks.base import Answering, in_prompt


@dataclass(frozen=True)
class PartTask:
    """A part of a benchmark as a task."""

    benchmark: Benchmark
    part: str
    margin: float = 1.0

    @property
    def summary(self) -> str:
        """That of the benchmark."""
        return self.benchmark.summary

    def metrics(self) -> list[Metric]:
        """Those of the part."""
        return self.benchmark.metrics(self.part)

    def match(self, data: DataProfile) -> tuple[float, str]:
        """It is never inferred from data."""
        return 0.0, ""


@dataclass(frozen=True)
class Questions:
    """How one model is asked the questions of a benchmark."""

    model: Model
    wanted: Evaluation
    selected: SelectedBenchmark
    answering: Answering

    @classmethod
    def of(cls, model: Model, wanted: Evaluation, selected: SelectedBenchmark) -> Questions:
        """Decide how its questions are answered.

        Raises:
            UserError: its questions have no options to choose from, or there are several attempts at a choice.
        """
        benchmark, how = selected.benchmark, selected.benchmark.answering
        if wanted.answering != "auto":
            if benchmark.answering != "choose":
                what = f"The questions of '{benchmark.name}' have no options to choose from."
                raise UserError(what, "Leave out --answering.")
            how = wanted.answering
        if how == "infill" and model.spec.network.attention.kind == "causal":
            how = "generate"  # it can't read what stands after a gap
        if how == "choose" and (wanted.attempts > 1 or wanted.votes > 1):
            raise UserError("A choice among options is the same in every attempt.", "Leave out --attempts and --votes.")
        return cls(model, wanted, selected, how)

    @property
    def benchmark(self) -> Benchmark:
        """The benchmark."""
        return self.selected.benchmark

    @cached_property
    def shots(self) -> int:
        """Examples in the prompt."""
        given = self.wanted.shots
        return given if given is not None else 0 if self.model.paired else self.benchmark.shots

    @property
    def _templated(self) -> bool:
        """Is the template used? A model of pairs is asked the input as it is, unless the user wants examples."""
        return not self.model.paired or self.shots > 0

    def asked(self, examples: Sequence[Example]) -> list[Example]:
        """The examples as this model is asked.

        Raises:
            UserError: there are no training rows for the examples in the prompt.
        """
        if not self._templated or examples[0].prompt is None:
            return list(examples)
        parts: dict[str, list[Example]] = {}
        for example in examples:
            parts.setdefault(example.task, []).append(example)
        found = []
        for part, own in parts.items():
            training = self._training(part) if self.shots else []
            found += in_prompt(self.benchmark, part, own, training, self.shots)
        return found

    def _training(self, part: str) -> Sequence[Example]:
        """Training rows of the given data, or else of the benchmark's own."""
        root, own = self.wanted.data_root, self.benchmark.sources[part]
        source = self.wanted.data if self.wanted.data and "train" in resolve(self.wanted.data, root) else own
        if "train" not in resolve(source, root):
            what = f"There are no training rows for {self.shots} examples in the prompt."
            raise UserError(what, "Give --shots 0, or data with a train split.")
        return read_split(source, "train", data_root=root, rows=self.selected.rows(part)).rows

    def choices(self, examples: Sequence[Example]) -> Mapping[str, Choice]:
        """The task of each part, with the options of its metrics.

        Raises:
            UserError: a metric option is wrong, or a metric needs something that is not installed.
        """
        given: Mapping[str, Any] = self.wanted.metric_options
        return {
            part: fitted(
                Choice(self.benchmark.name, PartTask(self.benchmark, part), self.benchmark.citation),
                [example for example in examples if example.task == part],
                given,
                strict=len(self.selected.parts) == 1,
            )
            for part in self.selected.parts
        }

    def info(self, part: str) -> BenchmarkInfo:
        """What was asked, for the results."""
        benchmark = self.benchmark
        return BenchmarkInfo(
            name=benchmark.name,
            version=benchmark.version,
            part=part,
            citation=benchmark.citation,
            answering=self.answering,
            shots=self.shots,
            template=benchmark.template_of(part) if self._templated else "",
        )
