"""Training runs, learning curves and the likelihood of the test rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.compare import plots
from redraft.compare.format import clock, flops, memory
from redraft.compare.measurements import Start, TrainingRun, same_tokens
from redraft.compare.record import Record
from redraft.compare.report import Block, Cell, Content, Panel, Panels, Row, Section, Table
from redraft.compare.sections.common import colour, family_label, verdict_cell, verdict_word


def runs(record: Record) -> Section | None:
    """A row for each training run, the learning curves and the likelihood."""
    if not record.training:
        return None
    columns = ["family", "seed", "parameters", "tokens", "passes", "compute", "time", "tokens/s", "peak\nmemory"]
    columns.append("validation,\nbits per byte")
    blocks: list[Block] = [Table(columns, [Row(_cells(record, run)) for run in record.training])]
    found = starts(record), plots.learning(record), rewarded(record), likelihood(record)
    panels = [panel for panel in found if panel is not None]
    blocks += [Panels(panels)] if panels else []
    equal = "data, tokenizer, network size, optimizer and training tokens"
    if not same_tokens(record.starts):
        equal = "rows, optimizer and passes over the data; tokens are those of its own tokenizer"
    lead = (
        f"All families had the same {equal}. The model with the best validation loss was kept, so each family is "
        "measured at its own best stopping point. Equal tokens are not equal work: compute and time are shown beside "
        "them."
    )
    return Section("Training", blocks, lead)


def starts(record: Record) -> Panel | None:
    """What each family had seen before."""
    body = [
        Row(
            [
                Cell(start.family, colour=colour(record, start.family)),
                start.checkpoint,
                start.was,
                _conversion(start),
                f"adapters of rank {start.lora_rank}" if start.lora_rank else "all weights",
                f"{start.vocabulary:,}" + (f" (added: {', '.join(start.added)})" if start.added else ""),
            ]
        )
        for start in record.starts
    ]
    if not body:
        return None
    columns = ["family", "checkpoint", "trained before as", "conversion", "trained", "vocabulary"]
    return Panel("Starting checkpoints", Table(columns, body), "What each family was before it was trained here.")


def _conversion(start: Start) -> str:
    """How attention changed, and how it learned from the checkpoint."""
    if not start.converted:
        return "none"
    attention = _named(start.curriculum) if start.curriculum else "at once"
    return f"{attention}; {_named(start.objective)}" if start.objective else attention


def _named(table: Mapping[str, Any]) -> str:
    """A component's table in words: its name, and its options in brackets."""
    options = ", ".join(f"{key} {value}" for key, value in table.items() if key not in ("name", "also"))
    name = f"{table['name']} ({options})" if options else str(table["name"])
    return f"{name} with {_named(table['also'])}" if table.get("also") else name


def rewarded(record: Record) -> Panel | None:
    """What post-training took, and what it changed."""
    body = [
        Row(
            [
                Cell(family_label(record, run), colour=colour(record, run.family)),
                f"{run.seed}",
                f"{run.post.prompts:,}",
                f"{run.post.texts:,}",
                f"{run.post.steps:,}",
                flops(run.post.flops),
                clock(run.post.seconds),
                f"{run.post.first_reward:.3f}",
                f"{run.post.last_reward:.3f}",
            ]
        )
        for run in record.training
        if run.post is not None
    ]
    if not body:
        return None
    columns = ["family", "seed", "prompts", "texts", "updates", "compute", "time", "reward,\nfirst", "reward,\nlast"]
    lead = (
        f"Then every model was trained on rewards ({_named(record.study.post_training)}). Rewards are means of sampled "
        "texts, in the first and in the last quarter of the updates. Everything below was measured after it."
    )
    return Panel("Post-training", Table(columns, body), lead)


def _cells(record: Record, run: TrainingRun) -> list[Content]:
    check = run.validation
    return [
        Cell(family_label(record, run), colour=colour(record, run.family)),
        f"{run.seed}",
        f"{run.parameters:,}",
        f"{run.tokens:,}",
        f"{run.passes:.1f}",
        flops(run.flops),
        clock(run.seconds),
        f"{run.tokens_per_second:,.0f}" if run.tokens_per_second else "",
        memory(run.peak_memory),
        _bits(check.bits_per_byte, check.bits_error, check.is_bound) if check else "",
    ]


def _bits(value: float, error: float, is_bound: bool) -> Cell:
    return Cell(f"≤ {value:.3f}", f"±{error:.3f}") if is_bound else Cell(f"{value:.3f}")


def likelihood(record: Record) -> Panel | None:
    """Bits per byte of the test rows."""
    body = []
    for row in record.likelihood:
        tested, value = row.against_baseline, row.bits_per_byte
        body.append(
            Row(
                [
                    Cell(row.family, colour=colour(record, row.family)),
                    _bits(value.value, row.error, row.is_bound),
                    f"{value.low:.3f} to {value.high:.3f}",
                    verdict_cell(verdict_word(record, tested)) if tested else "",
                ]
            )
        )
    if ngram := record.baselines.ngram:
        body.append(Row([f"{ngram.order}-gram model of bytes", f"{ngram.bits_per_byte:.3f}", "", ""], "muted"))
    if not body:
        return None
    given = "Of the target given the input; the n-gram model does not see the input. " if record.data.paired else ""
    lead = f"Lower is better. {given}For diffusion models it is an upper bound, with its sampling error."
    table = Table(["family", "bits per byte", "95 %", "verdict"], body)
    return Panel("Likelihood of the test rows", table, lead)
