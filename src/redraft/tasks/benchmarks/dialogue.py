"""Dialogue: replies to instructions and in conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.data.columns import BadRow, Columns, reader
from redraft.data.examples import Example
from redraft.data.rows import Row
from redraft.metrics import Metric
from redraft.tasks.benchmarks.base import Benchmark
from redraft.tasks.generation import Generation


class Dialogue(Benchmark):
    """Rows ``{messages}``: each message of the assistant is the answer to the messages before it. The texts are
    compared with those of people (self-instruct; Wang et al. 2023, arXiv:2212.10560) and of GPT-4 (gpteacher)."""

    summary = "replies to instructions: chrF, ROUGE-L, BLEU, diversity"
    citation = "Wang et al. 2023, arXiv:2212.10560; gpteacher"
    sources = {"self-instruct": "chat/self-instruct", "gpteacher": "chat/gpteacher"}
    template = "User: {}\nAssistant:"
    stop = ("\nUser:",)
    max_new_tokens = 256

    def metrics(self, part: str) -> list[Metric]:
        return Generation().metrics()

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        return self.examples(Row(values, "", 0), part)[0]

    def examples(self, row: Row, part: str) -> list[Example]:
        """As ``Benchmark.examples``.

        Raises:
            BadRow: there are no messages.
        """
        if not isinstance(row.values.get("messages"), list):
            raise BadRow("column 'messages' is not a list of messages")
        found = reader(Columns(messages="messages"))(row.values)
        return [Example(prompt, target, row.where, part, turns, values=row.values) for prompt, target, turns in found]
