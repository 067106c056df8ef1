"""Multi30k: captions of pictures, English to German and French."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import Translations
from redraft.tasks.translation import Translation


class Multi30k(Translations):
    """The Flickr test set of 2016 (Elliott et al. 2016, arXiv:1605.00459). Not for commercial use."""

    kind = Translation
    summary = "translation of captions, English to German and French: BLEU and chrF"
    citation = "Elliott et al. 2016, arXiv:1605.00459; non-commercial"
    sources = {"en-de": "mt/multi30k.en-de", "en-fr": "mt/multi30k.en-fr"}
    shots = 4
