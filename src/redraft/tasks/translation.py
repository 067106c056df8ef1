"""Translation: the target says the same in other words, about as long."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.bleu import Bleu
from redraft.metrics.chrf import Chrf
from redraft.tasks import Shape


@dataclass(frozen=True)
class Translation:
    summary = "translation: BLEU and chrF"
    margin = 1.0  # BLEU points; smaller differences are seldom seen by people (Mathur et al. 2020, arXiv:2006.06264)

    tokenize: str = "13a"  # sacrebleu's tokenizer: zh, ja-mecab, char ... for languages written without spaces

    def metrics(self) -> list[Metric]:
        return [Bleu(self.tokenize), Chrf()]

    def claim(self, shape: Shape) -> tuple[float, str]:
        if not shape.paired or shape.shared > 0.25 or not shape.prompt_words:
            return 0.0, ""
        alike = 0.4 < shape.target_words / shape.prompt_words < 2.5
        reason = f"input and target are about as long and share {shape.shared:.0%} of their words"
        return (0.7, reason) if alike else (0.0, "")
