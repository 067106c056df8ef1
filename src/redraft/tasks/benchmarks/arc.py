"""Arc: questions of school science, easy and hard."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.choice import Choice


class Arc(Choice):
    """Options are scored per byte (Clark et al. 2018, arXiv:1803.05457)."""

    summary = "questions of school science: accuracy by likelihood"
    citation = "Clark et al. 2018, arXiv:1803.05457"
    sources = {"easy": "qa/arc-easy", "challenge": "qa/arc-challenge"}
    measure = "byte"
