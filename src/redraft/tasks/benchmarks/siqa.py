"""Siqa: what people feel, want and do."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.choice import Choice


class Siqa(Choice):
    """Options are scored per byte (Sap et al. 2019, arXiv:1904.09728)."""

    summary = "social situations: accuracy by likelihood"
    citation = "Sap et al. 2019, arXiv:1904.09728"
    sources = {"": "qa/siqa"}
    measure = "byte"
