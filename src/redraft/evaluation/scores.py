"""Metrics applied to the answers to items."""

from __future__ import annotations

from collections.abc import Sequence

from redraft.evaluation.items import Item
from redraft.metrics import Metric, Score


def score(metric: Metric, texts: Sequence[str], items: Sequence[Item]) -> Score:
    """A metric on one text per item."""
    return metric.score(
        texts, [item.references for item in items], [item.task for item in items], [item.values for item in items]
    )
