"""How the study was measured: what is needed to check the numbers or to reproduce them."""

from __future__ import annotations

from redraft.compare.measurements import Place
from redraft.compare.record import Record
from redraft.compare.report import Block, Command, Facts, Listing, Section

GLOSSARY = {
    "Interval": "95 % percentile bootstrap over test items, and over training seeds if there are several.",
    "Same": "Two one-sided tests at 5 % rule out a difference as large as the margin (the 90 % interval lies inside).",
    "Better, worse": "The 95 % interval of the paired difference excludes zero, and the setting is not the same.",
    "Undecided": "Neither of these. It is not evidence that two systems are equal.",
    "p (Holm)": "Paired approximate randomisation over test items, adjusted for all settings in the table.",
    "Forward passes": "Passes of the network that a text took part in, mean over texts (NFE).",
    "Inconclusive": "The baseline does not beat a trivial system such as copying the input, so it learnt too little.",
}


def method(record: Record) -> Section:
    """Command, data, models, machine, and pieces that are missing."""
    study, plan, data = record.study, record.plan, record.data
    rows = ", ".join(f"{count:,} {name}" for name, count in data.rows.items())
    tried = {"dropout": " or ".join(f"{rate:g}" for rate in study.dropouts)} if study.dropouts else {}
    facts = {
        "task": f"{record.task.name}: {record.task.reason}",
        "metric of the verdict": f"{record.task.label}, margin ±{record.task.margin:g}",
        "metrics": "; ".join(metric.signature for metric in record.task.metrics if metric.signature),
        "data": f"{data.source} ({rows} rows), hash {data.hash}",
        "network": f"preset {plan.preset or 'of the checkpoints'}, vocabulary {plan.vocab_size:,}",
        "checkpoints": ", ".join(f"{family}: {path}" for family, path in study.bases.items()),
        "training": ", ".join(f"{key} {value}" for key, value in {**plan.train, **tried}.items()),
        "seeds": ", ".join(str(study.seed + i) for i in range(study.seeds)),
        "decoding": f"at most {plan.new_tokens} new tokens; chosen on {data.validation_items} validation items",
        "machine": _machine(record),
        "times": "; ".join(map(_place, record.timed_on)),
        "software": f"redraft {record.redraft}, torch {record.machine.torch}, Python {record.machine.python}",
    }
    blocks: list[Block] = [Command(record.command)] if record.command else []
    blocks.append(Facts({name: text for name, text in facts.items() if text}))
    if record.missing:
        blocks.append(Listing("Missing", [f"{one.what}: {one.why}" for one in record.missing]))
    return Section("How this was measured", blocks)


def _machine(record: Record) -> str:
    machine = record.machine
    parts = [machine.gpu or "", machine.cpu, f"{machine.cores} cores", f"{machine.threads} threads"]
    if machine.matmul_gflops:
        parts.append(f"matrix product {machine.matmul_gflops:,.0f} GFLOP/s when the study began")
    return ", ".join(part for part in parts if part)


def _place(place: Place) -> str:
    """Where times were measured, and what kept other work away."""
    how = {
        "local": "in the process of the study, one piece at a time",
        "ray": "in a task of Ray that held all cores of its node, so that no other task ran there",
    }
    parts = [place.gpu or "", place.cpu, f"{place.threads} of {place.cores} cores"]
    machine = ", ".join(part for part in parts if part)
    return f"on '{place.node}' ({machine}), {how.get(place.executor, place.executor)}"


def glossary(record: Record) -> Section:
    """What the words of the report mean."""
    return Section("", [Facts(GLOSSARY, summary="What the words mean")])
