"""QuestionGeneration: a question about a sentence."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import Pairs
from redraft.tasks.generation import Generation


class QuestionGeneration(Pairs):
    """Sentences of SQuAD in lower case (Du et al. 2017, arXiv:1705.00106)."""

    kind = Generation
    summary = "questions about a sentence: chrF, ROUGE-L, BLEU, diversity"
    citation = "Du et al. 2017, arXiv:1705.00106"
    sources = {"": "question-generation/squad-nqg"}
    columns = ("context", "question")
    template = "Sentence: {}\nQuestion:"
    shots = 4
