"""Benchmarks whose rows are an input and one or several right answers, scored as a kind of task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from redraft.data.columns import filled, text_of
from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.tasks import Task
from redraft.tasks.benchmarks.base import Benchmark, pair, texts_of


class Pairs(Benchmark):
    """Two columns of text.

    Attributes:
        kind: the kind of task whose metrics score it (``tasks``).
        columns: of the input and of the answer.
        several: the column of all right answers, a list of texts; empty: there is one.
    """

    kind: ClassVar[type[Task]]
    columns: ClassVar[tuple[str, str]]
    several: ClassVar[str] = ""
    stop: ClassVar[tuple[str, ...]] = ("\n",)

    def metrics(self, part: str) -> list[Metric]:
        return self.kind().metrics()

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        found = pair(values, *self.columns)
        if not self.several:
            return found
        return Example(found.prompt, found.target, "", references=texts_of(values, self.several))


class PlainText(Benchmark):
    """Rows of plain text: their likelihood, and texts that continue their beginning."""

    kind: ClassVar[type[Task]]
    max_new_tokens = 128

    def metrics(self, part: str) -> list[Metric]:
        return self.kind().metrics()

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        return Example(None, filled(text_of(values, "text"), "text"), "")


LANGUAGES = {
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "ja": "Japanese",
    "ru": "Russian",
    "uk": "Ukrainian",
    "zh": "Chinese",
}


class Translations(Pairs):
    """Rows ``{src, ref}``. A part is named by its languages, ``en-de``; a benchmark without parts sets ``pair``."""

    columns = ("src", "ref")
    pair: ClassVar[str] = ""
    max_new_tokens = 128

    def template_of(self, part: str) -> str:
        source, _, target = (self.pair or part).partition("-")
        return f"{LANGUAGES[source]}: {{}}\n{LANGUAGES[target]}:"
