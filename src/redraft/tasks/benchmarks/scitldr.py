"""Scitldr: abstracts of papers to one sentence."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import Pairs
from redraft.tasks.summarization import Summarization


class Scitldr(Pairs):
    """Test rows have several references (Cachola et al. 2020, arXiv:2004.15011)."""

    kind = Summarization
    summary = "summaries of abstracts in one sentence: ROUGE"
    citation = "Cachola et al. 2020, arXiv:2004.15011"
    sources = {"": "summarization/scitldr"}
    columns = ("document", "summary")
    several = "references"
    template = "{}\nTL;DR:"
    max_new_tokens = 64
