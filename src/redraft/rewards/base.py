"""The base class of rewards, and what they are computed from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redraft.registry import Registered


@dataclass(frozen=True)
class Answer:
    """A generated text, and the row of the data that its prompt is from."""

    prompt: str
    text: str  # without the end-of-text token
    reference: str = ""  # the target of the row; empty if it has none
    row: Mapping[str, Any] = field(default_factory=dict)  # all columns of the row
    where: str = ""  # file:line of the row
    truncated: bool = False  # generation stopped at its longest text, before an end-of-text token


class Reward(Registered, ABC):
    """A number for every text, higher is better. Subclasses are frozen dataclasses whose fields are their options.

    A reward is total: no text makes it raise an exception or run for long. What it needs of a row is checked before
    training begins (``problem``).
    """

    def ready(self) -> None:
        """Check that the reward can be computed on this machine.

        Raises:
            UserError: it can't.
        """

    def problem(self, reference: str, row: Mapping[str, Any]) -> str:
        """Why answers to a row can't be scored, such as a column that it lacks; empty if they can."""
        return ""

    @abstractmethod
    def score(self, answer: Answer) -> float:
        """The reward of one text."""

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """The rewards of several texts; a reward that waits for other processes overrides this method."""
        return [self.score(answer) for answer in answers]


def needs_reference(reference: str) -> str:
    """The problem of a row without a reference, for rewards that compare with one."""
    return "" if reference.strip() else "it has no reference answer (--target names its column)"
