"""Metrics that ask a model about texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from redraft.errors import UserError
from redraft.metrics import Metric

if TYPE_CHECKING:
    from redraft.model import Model


@dataclass(frozen=True)
class Judged(Metric):
    """A metric that reads texts with an independent model, the judge.

    Fields:
        judge: name or folder of an autoregressive model of plain text, such as ``smollm2-135m``.
    """

    judge: str
    device: str = "auto"

    least = 0  # texts that the metric needs

    @property
    def model(self) -> Model:
        """The judge, loaded at the first use.

        Raises:
            UserError: there is no such model, or its likelihood is not exact or not of plain text.
        """
        return _load(self.judge, self.device)


@lru_cache(maxsize=1)  # several metrics have the same judge
def _load(name: str, device: str) -> Model:
    from redraft.loading import load

    found = load(name, device)
    if found.paired or found.spec.family.schedule is not None:
        kind = "pairs" if found.paired else f"family {found.family_name}"
        what = f"'{name}', a model of {kind}, can't judge texts: it has no exact likelihood of plain text."
        raise UserError(what, "Use an autoregressive model of plain text, for example smollm2-135m.")
    return found
