"""The base class of analyses: what they ask for, and how they decide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from redraft.registry import Registered
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding


@dataclass(frozen=True)
class Analysis(Registered, ABC):
    """From the cells of a claim to a verdict. The fields are the decision rule, which the recipe sets beforehand."""

    @abstractmethod
    def rule(self) -> str:
        """The decision rule in words, with the numbers of its fields: when a claim holds, in part, or is not seen."""

    @abstractmethod
    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        """The cells that are needed, given those that are known. It is asked again until it names nothing new, so that
        what is measured may depend on what was measured: the best setting on validation rows, for example.
        """

    @abstractmethod
    def conclude(self, of: Experiment, found: Found) -> Finding:
        """The verdict, when all cells are known.

        Raises:
            UserError: a cell could not be computed.
        """
