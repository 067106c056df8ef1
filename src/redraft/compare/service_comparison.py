"""An external service beside the chosen settings: quality on the items that it answered, latency and price."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from redraft.compare.external_service import Replies
from redraft.compare.measurements import Measurements
from redraft.compare.results import Failure, ServiceComparison, ServiceResult, ShortDifference, Verdict
from redraft.compare.select import Selected, selected_names
from redraft.evaluation import stats
from redraft.evaluation.scores import score
from redraft.evaluation.stats import Interval
from redraft.metrics import Array

FEWEST_ANSWERED = 0.9  # share of items that must be answered for a verdict


def summarise(measured: Measurements, selected: Mapping[str, Selected]) -> ServiceResult | None:
    """The service's quality, speed and price, and the selected settings against it; None if there is no service.

    What the service failed to answer is counted and reported, not scored as a wrong answer.
    """
    found = measured.service
    if found is None:
        return None
    service, replies = found.service, found.replies
    answered = [number for number, reply in enumerate(replies) if reply.text is not None]
    failures = Counter(reply.failure for reply in replies if reply.text is None)
    quality, against = _quality(measured, found, answered, selected)
    prices = [(one.tokens_in * service.price_in + one.tokens_out * service.price_out) / 1e6 for one in replies]
    priced = answered and (service.price_in or service.price_out)
    return ServiceResult(
        endpoint=service.endpoint,
        model=service.model,
        shots=service.shots,
        asked=len(replies),
        answered=len(answered),
        tries=sum(reply.tries for reply in replies),
        failures=tuple(Failure(why, count) for why, count in failures.most_common()),
        quality=quality,
        p50=float(np.percentile(found.single, 50)) if found.single else None,
        p95=float(np.percentile(found.single, 95)) if found.single else None,
        calls=len(found.single),
        concurrency=service.concurrency,
        requests_per_second=found.requests_per_second,
        tokens_in=float(np.mean([replies[n].tokens_in for n in answered])) if answered else None,
        tokens_out=float(np.mean([replies[n].tokens_out for n in answered])) if answered else None,
        cost_per_thousand=1000 * sum(prices) / len(answered) if priced else None,
        against=tuple(against),
    )


def _quality(
    measured: Measurements, found: Replies, answered: Sequence[int], selected: Mapping[str, Selected]
) -> tuple[dict[str, Interval], list[ServiceComparison]]:
    """The service's quality by metric, and the selected settings against it on the primary metric."""
    texts = [found.replies[number].text or "" for number in answered]
    items = [measured.test[number] for number in answered]
    enough = len(answered) >= FEWEST_ANSWERED * len(found.replies)
    quality: dict[str, Interval] = {}
    against: list[ServiceComparison] = []
    for metric in measured.metrics if answered else []:
        theirs: Array = score(metric, texts, items).stats[None]
        quality[metric.name] = stats.interval(theirs, metric.combine)
        if metric is not measured.primary:
            continue
        for name in selected_names(selected):
            ours = measured.statistics("test", name, metric)
            if ours is None:
                continue
            tested = stats.compare(ours[:, answered], theirs, metric.combine, measured.margin, metric.better)
            around, verdict = tested.difference, cast(Verdict, tested.verdict if enough else "undecided")
            difference = ShortDifference(around.value, around.low, around.high, verdict)
            against.append(ServiceComparison(name, measured.settings[name].label, difference))
    return quality, against
