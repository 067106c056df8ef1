"""Svamp: word problems whose wording varies, without solutions to learn from."""

from __future__ import annotations

from redraft.metrics import Metric
from redraft.metrics.last_number import LastNumber
from redraft.tasks.benchmarks.shared.pairs import Pairs
from redraft.tasks.reasoning import Reasoning


class Svamp(Pairs):
    """The last number of the text counts (Patel et al. 2021, arXiv:2103.07191)."""

    kind = Reasoning
    summary = "word problems of varied wording: last number"
    citation = "Patel et al. 2021, arXiv:2103.07191"
    sources = {"": "reasoning/svamp"}
    columns = ("question", "answer")
    template = "Question: {}\nAnswer:"
    stop = ("\nQuestion:", "\n\n")
    max_new_tokens = 128

    def metrics(self, part: str) -> list[Metric]:
        return [LastNumber()]
