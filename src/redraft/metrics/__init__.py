"""Quality metrics: one file = one metric, named like the file.

A metric reduces each row to a few sufficient statistics that add up over rows; ``combine`` turns a sum into the corpus
value. BLEU is not the mean of sentence BLEUs, but its n-gram counts add up: a bootstrap resample costs one matrix
product, and no text is scored twice (Koehn 2004, "Statistical significance tests for machine translation evaluation").
Speed, memory and cost are measured in ``evaluation``, operations are counted in ``models.parts.flops``.
"""

from __future__ import annotations

import dataclasses
import importlib
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from redraft.errors import UserError, suggest
from redraft.registry import field_names

Array = np.ndarray
References = Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True)
class Score:
    """A metric's value on a set of rows."""

    value: float  # corpus value
    rows: Array  # [rows] value of each row alone
    stats: Array  # [rows, k] sufficient statistics; ``combine(stats.sum(0)) == value``


class Metric(ABC):
    """A corpus-level quality metric with additive sufficient statistics.

    Attributes:
        name: its name in results.
        label: its name in reports, with the unit.
        better: +1 higher is better, -1 lower is better, 0 neither (a property, to be compared with human text).
        decides: a row is either right, 100, or wrong, 0, so that pass@k can be computed of several attempts.
    """

    name: str
    label: str
    better: int = 1
    decides: bool = False

    @property
    def signature(self) -> str:
        """How the metric was computed, in sacrebleu's form: what two values must share to be comparable."""
        return "|".join((self.name, *self.details(), "norm:nfc"))

    def details(self) -> list[str]:
        """The parts of the signature, ``KEY:VALUE``: by default the fields of the metric."""
        return [f"{name}:{vars(self)[name]}" for name in field_names(self)]

    def fitted(self, references: Sequence[str]) -> Self:
        """The metric for the language of these references, where it depends on one."""
        return self

    def ready(self) -> None:  # noqa: B027 (most metrics have nothing to check)
        """Check that the metric can be computed, before hours are spent on texts for it."""

    @abstractmethod
    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        """Sufficient statistics of each row, [rows, k] float64."""

    @abstractmethod
    def combine(self, total: Array) -> Array:
        """Values of summed statistics, vectorised over the leading dimensions: ``total`` [..., k] -> [...]."""

    def row_values(self, stats: Array) -> Array:
        """Value of each row alone, for tables and samples: [rows, k] -> [rows]."""
        return self.combine(stats)

    def score(
        self,
        hypotheses: Sequence[str],
        references: References,
        tasks: Sequence[str] = (),
        values: Sequence[Mapping[str, Any]] = (),
    ) -> Score:
        """Score texts against one or several references each. All texts are normalised to Unicode's NFC.

        Args:
            tasks: task of each row, for metrics of a mixture (``tasks.mixture``).
            values: all columns of each row, for metrics that run or check something (``metrics.rewarded``).
        Raises:
            ValueError: different numbers of hypotheses and references, or none.
        """
        several = [[nfc(one) for one in ([r] if isinstance(r, str) else r)] for r in references]
        if len(several) != len(hypotheses):
            raise ValueError(f"{len(hypotheses)} hypotheses but {len(several)} references")
        if not several or not all(several):
            raise ValueError("every row needs a hypothesis and at least one reference")
        stats = np.asarray(self.statistics([nfc(text) for text in hypotheses], several), dtype=np.float64)
        return Score(float(self.combine(stats.sum(0))), self.row_values(stats), stats)


class Mean(Metric):
    """A metric that is 100 times the mean of a value per row. Statistics: (value, 1)."""

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        values = [self.row(h, r) for h, r in zip(hypotheses, references, strict=True)]
        return np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)

    def combine(self, total: Array) -> Array:
        return 100.0 * divide(total[..., 0], total[..., 1])

    @abstractmethod
    def row(self, hypothesis: str, references: Sequence[str]) -> float:
        """Value of one row, in [0, 1]."""


def nfc(text: str) -> str:
    """A text in Unicode's composed form: ``e`` and an accent become one character."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def with_options(metrics: Sequence[Metric], options: Mapping[str, Any]) -> list[Metric]:
    """Metrics with other fields: ``{"bleu.tokenize": "zh"}``. A metric that no option names is unchanged.

    Raises:
        UserError: an option that is not METRIC.FIELD, no metric of that name, or no such field or value.
    """
    found = {metric.name: metric for metric in metrics}
    for key, value in options.items():
        name, _, field = key.partition(".")
        if name not in found:
            raise UserError(f"Metric option '{key}': the task has no metric '{name}'.", suggest(name, found))
        metric = found[name]
        fields = field_names(metric)
        if field not in fields:
            known = suggest(field, fields) if fields else "It has no options."
            raise UserError(f"Metric option '{key}': '{name}' has no option '{field}'.", known)
        if type(value) is not type(vars(metric)[field]) and not (
            isinstance(value, int) and isinstance(vars(metric)[field], float)
        ):
            example = vars(metric)[field]
            raise UserError(f"Metric option '{key}' = {value!r} is of the wrong type.", f"For example {key}={example}.")
        changed: Any = metric
        found[name] = dataclasses.replace(changed, **{field: value})
    return list(found.values())


def divide(a: Array, b: Array) -> Array:
    """Element-wise a / b, and 0 where b is 0: [...], [...] -> [...]."""
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=np.asarray(b) != 0)


def need(module: str, package: str) -> Any:
    """Import an optional library.

    Raises:
        UserError: it is not installed; the error has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"This needs the package '{package}', which is not installed.", "Run: pip install 'redraft[eval]'"
        ) from None
