"""The base class of benchmarks, and how their rows are read and put into prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from redraft.data.columns import BadRow, Columns, text_of
from redraft.data.examples import Example
from redraft.data.rows import Row
from redraft.errors import UserError, suggest
from redraft.metrics import Metric
from redraft.registry import Registered

Answering = Literal["generate", "choose", "infill"]


class Benchmark(Registered, ABC):
    """Data, prompt and metrics of a benchmark. Subclasses have no fields: a changed prompt is another version.

    A model of pairs is asked the input as it is, which is what it was trained on. A model of plain text continues
    ``template``, after ``shots`` examples in the same form from the training rows, as few-shot prompts are made
    (Brown et al. 2020, arXiv:2005.14165).

    Attributes:
        version: raised by every change after which scores can't be compared with older ones.
        summary, citation: what it measures, and who made it.
        sources: data set of each part. A benchmark without parts has one, with the empty name.
        split: the rows that are scored.
        template: the prompt of a model of plain text; ``{}`` is replaced by the input.
        separator: what stands between such a prompt and its answer, the answer of the examples too.
        shots: examples before the input, the first training rows.
        stop: an answer ends before any of these.
        answering: the answer is generated, chosen by its likelihood among options, or fills a gap.
        measure: which likelihood chooses: of the whole option, per token, or per byte.
        max_new_tokens: of an answer, unless the user sets it.
    """

    version: ClassVar[int] = 1
    summary: ClassVar[str]
    citation: ClassVar[str]
    sources: ClassVar[Mapping[str, str]]
    split: ClassVar[str] = "test"
    template: ClassVar[str] = "{}"
    separator: ClassVar[str] = " "
    shots: ClassVar[int] = 0
    stop: ClassVar[tuple[str, ...]] = ()
    answering: ClassVar[Answering] = "generate"
    measure: ClassVar[Literal["sum", "token", "byte"]] = "sum"
    max_new_tokens: ClassVar[int] = 64

    @abstractmethod
    def metrics(self, part: str) -> list[Metric]:
        """The metrics of a part; the first one is the primary metric."""

    @abstractmethod
    def example(self, values: Mapping[str, Any], part: str) -> Example:
        """What a row asks, without ``where`` and ``task``.

        Raises:
            BadRow: a column is missing or of the wrong kind.
        """

    def examples(self, row: Row, part: str) -> list[Example]:
        """The examples of a row: one, unless a subclass makes several.

        Raises:
            BadRow: the row can't be used.
        """
        found = self.example(row.values, part)
        return [replace(found, where=row.where, task=part, values=found.values or row.values)]

    def template_of(self, part: str) -> str:
        """The template of a part; the same for all by default."""
        return self.template

    def chosen_shots(self, training: Sequence[Example], count: int, example: Example) -> list[Example]:
        """``count`` training rows for the prompt of an example: the first ones."""
        return list(training[:count])

    def extract(self, text: str, values: Mapping[str, Any]) -> str:
        """The answer within a generated text, as it is scored. ``values`` are those of the example."""
        return cut(text, self.stop).strip()

    def parts(self, name: str) -> list[str]:
        """The parts that ``name`` selects; the empty name selects all.

        Raises:
            UserError: there is no such part.
        """
        if not name:
            return list(self.sources)
        if name not in self.sources:
            known = [part for part in self.sources if part]
            raise UserError(
                f"The benchmark '{self.name}' has no part '{name}'.",
                suggest(name, known) if known else f"Write --task {self.name}.",
            )
        return [name]


@dataclass(frozen=True)
class BenchmarkRows:
    """How the rows of a part become examples (``data.examples.RowFormat``)."""

    benchmark: Benchmark
    part: str

    def choose(self, wanted: Columns, row: Row) -> Columns:
        """No columns: the benchmark knows them.

        Raises:
            UserError: the user named some.
        """
        if wanted != Columns():
            raise UserError(
                f"The benchmark '{self.benchmark.name}' knows its columns.", "Leave out --text, --input and --target."
            )
        return wanted

    def reader(self, columns: Columns) -> Callable[[Row], list[Example]]:
        """As ``RowFormat.reader``."""
        return lambda row: self.benchmark.examples(row, self.part)


def in_prompt(
    benchmark: Benchmark, part: str, examples: Sequence[Example], training: Sequence[Example] = (), shots: int = 0
) -> list[Example]:
    """The examples as a model of plain text is asked: in the template, after ``shots`` training rows.

    What is right does not change: ``references`` and ``options`` remain as they are without the template.
    """
    template, between = benchmark.template_of(part), benchmark.separator
    found = []
    for example in examples:
        chosen = benchmark.chosen_shots(training, shots, example) if shots else []
        shown = [template.replace("{}", one.prompt or "") + between + one.target for one in chosen]
        found.append(
            replace(
                example,
                prompt="\n\n".join([*shown, template.replace("{}", example.prompt or "")]),
                target=between + example.target,
                references=example.references or (example.target,),
                turns=(),
            )
        )
    return found


def cut(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of some marks."""
    ends = [at for mark in stop if (at := text.find(mark)) >= 0]
    return text[: min(ends)] if ends else text


def texts_of(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A column that is a list of texts.

    Raises:
        BadRow: it is something else, or empty.
    """
    found = values.get(name)
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise BadRow(f"column '{name}' is not a list of texts")
    return tuple(found)


def pair(values: Mapping[str, Any], prompt: str, target: str) -> Example:
    """An example of two columns.

    Raises:
        BadRow: one is missing or no text.
    """
    return Example(text_of(values, prompt), text_of(values, target), "")
