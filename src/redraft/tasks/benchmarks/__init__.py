"""Benchmarks: one file = one set of data with its prompt, examples in the prompt, and metrics, under a version.

``redraft evaluate --task gsm8k`` runs one, and ``--task glue:cola`` one part of one. A kind of task in ``tasks`` says
how any data of that kind are scored; a benchmark also says which data, what a model is asked, and what of its text is
the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from redraft.errors import UserError, suggest
from redraft.registry import find, names
from redraft.tasks.benchmarks.base import Benchmark, BenchmarkRows

__all__ = ["Benchmark", "BenchmarkRows", "SelectedBenchmark", "select_benchmark"]


@dataclass(frozen=True)
class SelectedBenchmark:
    """A benchmark and the parts of it that are run."""

    benchmark: Benchmark
    parts: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """The data sets of the parts."""
        return tuple(self.benchmark.sources[part] for part in self.parts)

    def rows(self, part: str) -> BenchmarkRows:
        """How the rows of a part are read."""
        return BenchmarkRows(self.benchmark, part)


def select_benchmark(name: str) -> SelectedBenchmark | None:
    """``"glue:cola"`` -> the benchmark and its part; ``"module:Class"`` -> one from outside. None: a kind of task.

    Raises:
        UserError: there is no such task, benchmark or part.
    """
    head, _, part = name.partition(":")
    if head in names("tasks"):
        return None
    if head in names("tasks.benchmarks"):
        benchmark: Benchmark = find("tasks.benchmarks", head)()
        return SelectedBenchmark(benchmark, tuple(benchmark.parts(part)))
    if part[:1].isupper():  # a class of a module
        outside: Benchmark = find("tasks.benchmarks", name)()
        return SelectedBenchmark(outside, tuple(outside.parts("")))
    known = (*names("tasks"), *names("tasks.benchmarks"))
    raise UserError(f"There is no task or benchmark '{head}'.", suggest(head, known))
