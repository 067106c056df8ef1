"""Dialogsum: summaries of dialogues."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import Pairs
from redraft.tasks.summarization import Summarization


class Dialogsum(Pairs):
    """Test rows have three references (Chen et al. 2021, arXiv:2105.06762). Not for commercial use."""

    kind = Summarization
    summary = "summaries of dialogues: ROUGE"
    citation = "Chen et al. 2021, arXiv:2105.06762; CC BY-NC-SA 4.0"
    sources = {"": "summarization/dialogsum"}
    columns = ("document", "summary")
    several = "references"
    template = "{}\nSummary:"
    max_new_tokens = 96
