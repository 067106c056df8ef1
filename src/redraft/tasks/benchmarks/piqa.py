"""Piqa: which of two ways reaches a goal."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.choice import Choice


class Piqa(Choice):
    """Options are scored per byte (Bisk et al. 2020, arXiv:1911.11641)."""

    summary = "everyday physics: accuracy by likelihood"
    citation = "Bisk et al. 2020, arXiv:1911.11641"
    sources = {"": "qa/piqa"}
    measure = "byte"
