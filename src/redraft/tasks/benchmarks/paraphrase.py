"""Paraphrase: questions of Quora in other words."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import Pairs
from redraft.tasks.generation import Generation


class Paraphrase(Pairs):
    """The test rows of DiffuSeq (Gong et al. 2023, arXiv:2210.08933). Not for commercial use."""

    kind = Generation
    summary = "paraphrases of questions: chrF, ROUGE-L, BLEU, diversity"
    citation = "Quora question pairs; Gong et al. 2023, arXiv:2210.08933; non-commercial"
    sources = {"": "paraphrase/qqp"}
    columns = ("src", "ref")
    template = "Question: {}\nThe same question in other words:"
    shots = 4
