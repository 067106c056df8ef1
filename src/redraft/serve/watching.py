"""What an operator sees: Prometheus metrics and one line of JSON a request, without its text."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from redraft.serve.shelf import Shelf

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_COUNTED = {
    "passes": "Passes of the network",
    "rows": "Canvas rows in those passes",
    "positions": "Positions run",
    "padding": "Padding run beside them",
    "reused": "Positions read from the cache instead of run",
    "tokens": "Tokens of finished texts",
    "finished": "Texts finished",
    "refused": "Texts refused because the queue was full",
    "cancelled": "Texts whose client went away",
    "late": "Texts that missed their deadline",
    "bug": "Texts that failed by an error of the server",
}


class Metrics:
    """Of one server; nothing is shared between servers in a process."""

    def __init__(self, shelf: Shelf) -> None:
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("redraft_requests", "HTTP requests answered", ["route", "status"], **make)
        self.seconds = Histogram(
            "redraft_request_seconds", "From arrival to the last byte", ["route"], buckets=_SECONDS, **make
        )
        self.first = Histogram(
            "redraft_first_text_seconds", "From arrival to the first final text", ["route"], buckets=_SECONDS, **make
        )
        self.registry.register(_Engines(shelf))


class _Engines:
    """Reads the engines when somebody asks."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def collect(self) -> Iterator[Metric]:
        engines = {name: entry.engine for name, entry in self.shelf.entries.items() if entry.engine is not None}
        waiting = GaugeMetricFamily("redraft_waiting", "Texts waiting for a seat", labels=["model"])
        active = GaugeMetricFamily("redraft_active", "Texts under way", labels=["model"])
        for name, engine in engines.items():
            waiting.add_metric([name], engine.waiting)
            active.add_metric([name], engine.active)
        yield waiting
        yield active
        for key, what in _COUNTED.items():
            family = CounterMetricFamily(f"redraft_{key}", what, labels=["model"])
            for name, engine in engines.items():
                family.add_metric([name], engine.counts[key])
            yield family


def logger() -> logging.Logger:
    """The server's log: JSON lines on stderr."""
    log = logging.getLogger("redraft.serve")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Lines())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        fields = record.msg if isinstance(record.msg, dict) else {"event": record.getMessage()}
        if record.exc_info:
            fields = {**fields, "traceback": self.formatException(record.exc_info)}
        return json.dumps({**line, **fields}, default=str)
