"""Wmt24: news, literature, posts and speech, English to seven languages."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import Translations
from redraft.tasks.translation import Translation


class Wmt24(Translations):
    """For evaluation only: its authors ask not to train on it. There are no training rows, so no examples in the
    prompt."""

    kind = Translation
    summary = "translation of news, literature, posts and speech from English: BLEU and chrF"
    citation = "Kocmi et al. 2024, findings of WMT24"
    sources = {f"en-{to}": f"mt/wmt24.en-{to}" for to in ("cs", "de", "es", "ja", "ru", "uk", "zh")}
    max_new_tokens = 256
