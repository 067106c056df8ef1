"""How long the answers of the training data were, for prompts of each length: kept with the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.errors import UserError

_GROUPS, _FEWEST, _QUANTILES = 16, 32, 16  # most groups of prompts, fewest rows of one, lengths kept of each


@dataclass(frozen=True)
class AnswerLengths:
    """p(length of the answer | length of the prompt), both in tokens, end-of-text included, as observed in training.

    Prompts are divided by their length into at most 16 groups of about as many rows. Each group keeps 16 quantiles of
    the length of its answers, at (i + 1/2) / 16, which count as equally likely. A length that was never seen, such as
    the empty answer, therefore has no probability.
    """

    prompts: tuple[int, ...]  # longest prompt of each group, ascending; longer ones belong to the last group
    answers: tuple[tuple[int, ...], ...]  # of each group

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.prompts, self.prompts[1:], strict=False))
        if not self.prompts or len(self.prompts) != len(self.answers) or not ascending:
            raise UserError("answer_lengths: prompts must ascend, with answers for each.", "Remove answer_lengths.")
        if not all(group and min(group) >= 1 for group in self.answers):
            raise UserError("answer_lengths: every group needs lengths of at least 1.", "Remove answer_lengths.")

    @classmethod
    def of(cls, prompts: Sequence[int] | np.ndarray, answers: Sequence[int] | np.ndarray) -> AnswerLengths:
        """The lengths of rows, from the prompt lengths [n] and the answer lengths [n], n > 0."""
        of_prompt, of_answer = np.asarray(prompts), np.asarray(answers)
        groups = min(_GROUPS, max(1, len(of_prompt) // _FEWEST))
        levels = np.arange(1, groups + 1) / groups
        edges = np.unique(np.quantile(of_prompt, levels, method="inverted_cdf"))
        group = np.searchsorted(edges, of_prompt)
        kept = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        found = [np.quantile(of_answer[group == i], kept, method="inverted_cdf") for i in range(len(edges))]
        return cls(tuple(edges.tolist()), tuple(tuple(lengths.tolist()) for lengths in found))

    def given(self, prompt: int) -> dict[int, float]:
        """Probability by length of the answer, for a prompt of this length."""
        group = min(int(np.searchsorted(self.prompts, prompt)), len(self.prompts) - 1)
        counts = Counter(self.answers[group])
        return {length: counts[length] / len(self.answers[group]) for length in sorted(counts)}
