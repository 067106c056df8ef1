"""Tanaka: short sentences, English to Japanese."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import Translations
from redraft.tasks.translation import Translation


class Tanaka(Translations):
    """Sentences of 4 to 16 words, tokenised by their authors (Tanaka 2001; small_parallel_enja)."""

    kind = Translation
    summary = "translation of short sentences, English to Japanese: BLEU and chrF"
    citation = "Tanaka corpus, CC BY 2.0 FR"
    sources = {"": "mt/tanaka.en-ja"}
    pair = "en-ja"
    shots = 4
