"""Tatoeba: short everyday sentences, English to German."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import Translations
from redraft.tasks.translation import Translation


class Tatoeba(Translations):
    """One English sentence can have several German references (tatoeba.org)."""

    kind = Translation
    summary = "translation of everyday sentences, English to German: BLEU and chrF"
    citation = "tatoeba.org, CC BY 2.0 FR"
    sources = {"": "mt/tatoeba.en-de"}
    pair = "en-de"
    shots = 4
