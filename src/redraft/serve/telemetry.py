"""Prometheus metrics, and a log of one JSON line per request."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from redraft.serve.model_pool import ModelPool

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
# Entries of ``Engine.counts`` that are exported, with their descriptions.
_ENGINE_COUNTS = {
    "forward_passes": "Forward passes of the network",
    "rows": "Canvas rows in these passes",
    "positions": "Positions computed in these passes",
    "padding": "Padding positions computed in addition",
    "reused": "Positions read from the cache instead of computed",
    "tokens": "Tokens of finished sequences",
    "finished": "Sequences finished",
    "refused": "Sequences refused because the queue was full",
    "cancelled": "Sequences whose client closed the connection",
    "deadline_exceeded": "Sequences that were not finished before their deadline",
    "internal_error": "Sequences that failed because of an internal error",
}


class Metrics:
    """The metrics of one server. Several servers in one process do not share them."""

    def __init__(self, pool: ModelPool) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("redraft_requests", "HTTP requests answered", ["route", "status"], **common)
        self.seconds = Histogram(
            "redraft_request_seconds",
            "Seconds from the arrival of a request to the last byte of its response",
            ["route"],
            buckets=_SECONDS,
            **common,
        )
        self.first_text = Histogram(
            "redraft_first_text_seconds",
            "Seconds from the arrival of a request to its first final text",
            ["route"],
            buckets=_SECONDS,
            **common,
        )
        self.registry.register(_EngineCollector(pool))


class _EngineCollector:
    """Reads the engines' counts when the metrics are requested."""

    def __init__(self, pool: ModelPool) -> None:
        self.pool = pool

    def collect(self) -> Iterator[Metric]:
        engines = {name: entry.engine for name, entry in self.pool.entries.items() if entry.engine is not None}
        waiting = GaugeMetricFamily("redraft_waiting", "Sequences in the queue", labels=["model"])
        active = GaugeMetricFamily("redraft_active", "Sequences being generated", labels=["model"])
        for name, engine in engines.items():
            waiting.add_metric([name], engine.waiting)
            active.add_metric([name], engine.active)
        yield waiting
        yield active
        for key, description in _ENGINE_COUNTS.items():
            family = CounterMetricFamily(f"redraft_{key}", description, labels=["model"])
            for name, engine in engines.items():
                family.add_metric([name], engine.counts[key])
            yield family


def logger() -> logging.Logger:
    """The server's log: JSON lines on stderr."""
    log = logging.getLogger("redraft.serve")
    if not log.handlers:
        handler = _Stderr(sys.stderr)
        handler.setFormatter(_JsonLines())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to stderr as long as it can. A full disk must not end requests."""

    def handleError(self, record: logging.LogRecord) -> None:  # the name of logging
        """A line that can't be written is lost."""


class _JsonLines(logging.Formatter):
    """One JSON object per record. The message is either a dict of fields or the text of ``event``."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        fields = record.msg if isinstance(record.msg, dict) else {"event": record.getMessage()}
        if record.exc_info:
            fields = {**fields, "traceback": self.formatException(record.exc_info)}
        return json.dumps({**line, **fields}, default=str)
