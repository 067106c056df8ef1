"""Latency, throughput, forward passes, compute, memory and cost of every setting."""

from __future__ import annotations

from collections.abc import Sequence

from redraft.compare.format import flops, memory, seconds
from redraft.compare.measurements import same_tokens
from redraft.compare.record import Record
from redraft.compare.report import Cell, Content, Row, Section, Table
from redraft.compare.results import SettingResult, Speed, Work
from redraft.compare.sections.common import by_family, label_of, row_kind, setting_cell


def table(record: Record) -> Section | None:
    """A row for each setting; what was timed at each batch size is a line of it."""
    rows = [row for row in by_family(record) if row.speed or row.work is not None]
    if not rows:
        return None
    sizes = sorted({speed.batch for row in rows for speed in row.speed})
    priced = any(speed.cost_per_thousand is not None for row in rows for speed in row.speed)
    columns = ["setting", "forward\npasses", "tokens\nper text", "compute\nper token", "peak\nmemory"]
    columns += ["batch", "p50", "p95", "tokens/s", "speed-up, 95 %"] if sizes else []
    columns += ["cost per\n1000 requests"] if priced else []
    body = []
    for row in rows:
        timed = {speed.batch: speed for speed in row.speed}
        lines = [_timed(timed.get(batch), batch, priced) for batch in sizes]
        stacked = [list(column) for column in zip(*lines, strict=True)]
        body.append(Row([setting_cell(record, row), *_work(row.work), _peak(row), *stacked], row_kind(record, row.id)))
    return Section("Speed, compute and memory", [Table(columns, body)], _lead(record, priced))


def _lead(record: Record, priced: bool) -> str:
    reference = label_of(record, record.baseline.speed_setting)
    process = "" if record.machine.device.startswith("cuda") else " of the whole process (Python, torch and all models)"
    text = (
        "Settings were timed in turns on the same requests, so other load on the machine affects all of them. Tokens "
        "are completion tokens; prompts are not counted. Compute is counted: matrix products and attention, per "
        f"completion token. Memory is the peak{process} while generating; beside it is how much of it was new. "
        f"Speed-up is the ratio of median latencies to {reference}."
    )
    if not same_tokens(record.starts):
        text += (
            " The families have different tokenizers, so tokens per text and per second and compute per token can't "
            "be compared between them; latencies can."
        )
    if priced:
        price = record.study.price_per_hour
        text += f" Cost assumes a machine at {price:g} per hour that is always busy."
    return text


def _work(work: Work | None) -> Sequence[Content]:
    if work is None:
        return [""] * 3
    return [f"{work.nfe:.1f}", f"{work.tokens:.1f}", flops(work.flops_per_token)]


def _peak(row: SettingResult) -> Cell:
    return Cell(memory(row.peak_memory), f"+{memory(row.memory_growth)}" if row.memory_growth else "")


def _timed(speed: Speed | None, batch: int, priced: bool) -> list[Cell | str]:
    """The batch size and what was timed at it."""
    if speed is None:
        return [f"{batch}", *[""] * (5 if priced else 4)]
    up, cost = speed.speedup, speed.cost_per_thousand
    ratio = Cell(f"{up.ratio:.2f}x", f"{up.low:.2f} to {up.high:.2f}") if up else Cell()
    cells: list[Cell | str] = [f"{batch}", seconds(speed.p50), seconds(speed.p95)]
    cells += [f"{speed.tokens_per_second:,.0f}", ratio]
    return cells + (["" if cost is None else f"{cost:.3g}"] if priced else [])
