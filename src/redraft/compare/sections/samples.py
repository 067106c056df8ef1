"""Generated texts side by side."""

from __future__ import annotations

from redraft.compare.record import Record
from redraft.compare.report import Sample, Samples, Section
from redraft.compare.sections.common import label_of


def samples(record: Record) -> Section | None:
    """A few test items with the reference and the text of each chosen setting."""
    if not record.samples:
        return None
    shown = [
        Sample(
            one.prompt,
            [("reference", one.references[0]), *((label_of(record, name), text) for name, text in one.texts.items())],
        )
        for one in record.samples
    ]
    lead = "Test items spread evenly from the shortest reference to the longest; they were not selected by hand."
    return Section("Samples", [Samples(shown)], lead)
