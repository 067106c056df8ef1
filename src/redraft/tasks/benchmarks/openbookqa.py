"""Openbookqa: elementary science that combines two facts."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.choice import Choice


class Openbookqa(Choice):
    """Options are scored per byte (Mihaylov et al. 2018, arXiv:1809.02789)."""

    summary = "elementary science: accuracy by likelihood"
    citation = "Mihaylov et al. 2018, arXiv:1809.02789"
    sources = {"": "qa/openbookqa"}
    measure = "byte"
    template = "{}"
