"""A reward as a metric: programs are run, puzzles are checked, by the same code that post-training uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redraft.metrics import Array, Metric, References, Score, divide
from redraft.rewards.base import Answer, Reward


@dataclass(frozen=True)
class Rewarded(Metric):
    """100 times the mean of a reward between 0 and 1 (``rewards``). Statistics: (reward, 1).

    Fields:
        reward: what judges a text by its row.
        name, label: of the metric.
        decides: the reward is 0 or 1.
    """

    reward: Reward
    name: str
    label: str
    decides: bool = True

    def details(self) -> list[str]:
        """The name of the reward and its options."""
        return [f"{key}:{value}" for key, value in {"reward": self.reward.name, **vars(self.reward)}.items()]

    def ready(self) -> None:
        """Check that the reward can be computed on this machine.

        Raises:
            UserError: it can't.
        """
        self.reward.ready()

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        raise NotImplementedError("a reward needs the columns of each row: use score")

    def combine(self, total: Array) -> Array:
        return 100.0 * divide(total[..., 0], total[..., 1])

    def score(
        self,
        hypotheses: Sequence[str],
        references: References,
        tasks: Sequence[str] = (),
        values: Sequence[Mapping[str, Any]] = (),
    ) -> Score:
        """As ``Metric.score``; ``values`` holds the columns of each row.

        Raises:
            ValueError: other numbers of texts, references and rows.
        """
        answers = [
            Answer(prompt="", text=text, reference=known if isinstance(known, str) else known[0], row=row)
            for text, known, row in zip(hypotheses, references, values, strict=True)
        ]
        found = np.asarray(self.reward.scores(answers), dtype=np.float64)
        stats = np.stack([found, np.ones(len(found))], axis=1)
        return Score(float(self.combine(stats.sum(0))), self.row_values(stats), stats)
