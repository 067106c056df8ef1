"""Majority vote over several solutions of one problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from redraft.metrics.final_answer import final_answer

T = TypeVar("T")


def majority_vote(solutions: Sequence[T], text_of: Callable[[T], str] = str) -> T:
    """The first solution whose final answer is the most frequent one (self-consistency, Wang et al. 2022,
    arXiv:2203.11171). Of equally frequent answers the one given first wins; a solution without an answer has no vote.

    Raises:
        ValueError: no solutions.
    """
    if not solutions:
        raise ValueError("a vote needs at least one solution")
    answers = [final_answer(text_of(solution)) for solution in solutions]
    counts = Counter(answer for answer in answers if answer)
    return solutions[answers.index(counts.most_common(1)[0][0])] if counts else solutions[0]
