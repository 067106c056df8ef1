"""Translation: input and target have similar lengths and few words in common."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.bleu import Bleu
from redraft.metrics.chrf import Chrf
from redraft.tasks import DataProfile


@dataclass(frozen=True)
class Translation:
    """Translations, scored by BLEU and chrF."""

    summary = "translation: BLEU and chrF"
    margin = 1.0  # BLEU points; people seldom notice smaller differences (Mathur et al. 2020, arXiv:2006.06264)

    def metrics(self) -> list[Metric]:
        return [Bleu(), Chrf()]

    def match(self, data: DataProfile) -> tuple[float, str]:
        if not data.paired or data.shared > 0.25 or not data.prompt_words:
            return 0.0, ""
        alike = 0.4 < data.target_words / data.prompt_words < 2.5
        reason = f"input and target have similar lengths and share {data.shared:.0%} of their words"
        return (0.7, reason) if alike else (0.0, "")
