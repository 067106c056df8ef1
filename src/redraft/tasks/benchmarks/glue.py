"""Glue: sentences and pairs of sentences with a label, each task by its own metric, and their mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.data.columns import BadRow, text_of
from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.metrics.accuracy import Accuracy
from redraft.metrics.average import Average
from redraft.metrics.correlation import Correlation
from redraft.metrics.label_f1 import LabelF1
from redraft.metrics.matthews import Matthews
from redraft.tasks.benchmarks.base import Answering, Benchmark

_ENTAILMENT = ("not_entailment", "entailment")
_LABELS = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "qqp": ("not_duplicate", "duplicate"),
    "qnli": _ENTAILMENT,
    "rte": _ENTAILMENT,
    "wnli": _ENTAILMENT,
    "snli": ("contradiction", "neutral", "entailment"),
    # T5 rounds to 0.2 too (Raffel et al. 2020, arXiv:1910.10683).
    "stsb": tuple(f"{number / 5:.1f}" for number in range(26)),
}
_NAMES = {
    "cola": ("Sentence",),
    "sst2": ("Review",),
    "qqp": ("Question 1", "Question 2"),
    "qnli": ("Question", "Sentence"),
    "rte": ("Premise", "Hypothesis"),
    "wnli": ("Premise", "Hypothesis"),
    "snli": ("Premise", "Hypothesis"),
    "stsb": ("Sentence 1", "Sentence 2"),
}


class Glue(Benchmark):
    """Eight tasks of GLUE's form (Wang et al. 2019, arXiv:1804.07461): rows ``{sentence1, sentence2, label}``.

    CoLA is scored by Matthews correlation, QQP by the mean of F1 and accuracy, STS-B by the mean of Pearson and
    Spearman correlation, all others by accuracy; the benchmark's value is the mean of these. SNLI stands in for MNLI,
    and MRPC is left out (its licence), so the mean is not that of the leaderboard. The label of the highest likelihood
    is the answer.
    """

    summary = "understanding of sentences and pairs: each task's own metric, and their mean"
    citation = "Wang et al. 2019, arXiv:1804.07461"
    sources = {part: f"glue/{part}" for part in _LABELS}
    answering: Answering = "choose"  # type: ignore[misc]
    template = "{}\nLabel:"
    shots = 4
    stop = ("\n",)
    max_new_tokens = 16

    def metrics(self, part: str) -> list[Metric]:
        if part == "stsb":
            both: list[Metric] = [Correlation("pearson"), Correlation("spearman")]
            return [Average(tuple(both)), *both]
        if part == "cola":
            return [Matthews("acceptable", _LABELS[part]), Accuracy()]
        if part == "qqp":
            both = [LabelF1("duplicate", _LABELS[part]), Accuracy()]
            return [Average(tuple(both)), *both]
        return [Accuracy()]

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        """As ``Benchmark.example``.

        Raises:
            BadRow: a sentence is missing, or the label is unknown.
        """
        texts = [text_of(values, column) for column in ("sentence1", "sentence2")[: len(_NAMES[part])]]
        prompt = "\n".join(f"{name}: {text}" for name, text in zip(_NAMES[part], texts, strict=True))
        label = values.get("label")
        if part == "stsb":
            if not isinstance(label, int | float):
                raise BadRow("column 'label' is not a number")
            return Example(prompt, f"{round(label * 5) / 5:.1f}", "", references=(f"{label}",), options=_LABELS[part])
        if label not in _LABELS[part]:
            raise BadRow(f"column 'label' is not one of {', '.join(_LABELS[part])}")
        return Example(prompt, str(label), "", options=_LABELS[part])
