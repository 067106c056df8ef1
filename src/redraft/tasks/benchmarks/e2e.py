"""E2e: descriptions of restaurants from their attributes."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import Pairs
from redraft.tasks.generation import Generation


class E2e(Pairs):
    """Rows with the same attributes are one question with several references (Novikova et al. 2017,
    arXiv:1706.09254)."""

    kind = Generation
    summary = "data to text, restaurants: chrF, ROUGE-L, BLEU, diversity"
    citation = "Novikova et al. 2017, arXiv:1706.09254"
    sources = {"": "data-to-text/e2e"}
    columns = ("mr", "text")
    template = "Data: {}\nText:"
    shots = 3
    max_new_tokens = 96
