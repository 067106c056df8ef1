"""The card of a shipped checkpoint: what its recipe says of it, what was measured, and the page made of both."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redraft import config
from redraft.errors import UserError
from redraft.evaluation.evaluate import EvaluationResult, Likelihood, MetricValue, TaskResult
from redraft.files import read_json
from redraft.options import REQUIRED, check, setting

CARD = "card.json"  # in the model's folder


@dataclass(frozen=True)
class CardTable:
    """The table ``[card]`` of a recipe in ``recipes/zoo/``: how the checkpoint is measured and described."""

    data: str = setting(REQUIRED, "Rows to measure on: a file under zoo/, or a generated source.", reach=())
    licence: str = setting(REQUIRED, "The training data and their licence.", reach=())
    text: str | None = setting(None, "Column of plain text.", reach=())
    input: str | None = setting(None, "Column of the prompt.", reach=())
    target: str | None = setting(None, "Column of the answer.", reach=())
    task: str | None = setting(None, "Task whose metrics count; unset: recognised from the rows.", reach=())
    rows: int = setting(250, "Largest number of rows of each task.", least=1, unit="rows", reach=())
    settings: dict[str, Any] = setting({}, "Generation settings that the model is saved with.", reach=())
    history: str = setting("", "How it was trained, where the recipe alone does not say.", reach=())
    usage: str = setting("", "A section of the card, in Markdown.", reach=())

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Training:
    """What the training run recorded."""

    tokens: int
    passes: float
    flops: int
    seconds: float
    validation: dict[str, Any] = field(default_factory=dict)  # nats and bits with their errors, as in the run's result


@dataclass(frozen=True)
class Measured:
    """Results of one task of the rows."""

    rows: int
    likelihood: Likelihood
    metrics: dict[str, MetricValue]
    settings: dict[str, Any]
    nfe: float  # forward passes of a text
    tokens_per_pass: float
    tokens_per_second: float
    batch_size: int

    @classmethod
    def of(cls, found: TaskResult) -> Measured:
        """The fields that a card records."""
        names = ("rows", "likelihood", "metrics", "settings", "nfe", "tokens_per_pass", "tokens_per_second")
        return cls(**{name: vars(found)[name] for name in names}, batch_size=found.batch_size)


@dataclass(frozen=True)
class Record:
    """Contents of ``card.json``."""

    name: str
    family: str
    parameters: int
    recipe: str  # path from the root of the project
    training: Training
    measured: dict[str, Measured]  # by task of a mixture; otherwise one, without a name
    versions: dict[str, str]

    def to_json(self) -> str:
        """Its JSON, with a line end."""
        return json.dumps(config.to_mapping(self), indent=2, ensure_ascii=False) + "\n"


def measured(found: EvaluationResult) -> dict[str, Measured]:
    """Results by task."""
    return {name: Measured.of(one) for name, one in found.tasks.items()}


def read_record(folder: Path) -> Record:
    """The record of a shipped checkpoint.

    Raises:
        UserError: the file is missing, damaged, or of another form.
    """
    path = folder / CARD
    if not path.is_file():
        raise UserError(f"'{folder.name}' has no {CARD}.", f"Measure it: redraft zoo measure {folder.name}")
    return config.build(Record, read_json(path), str(path))


def page(record: Record, card: CardTable) -> str:
    """The model card in Markdown."""
    training, checked = record.training, record.training.validation
    lines = [
        f"# {record.name}",
        "",
        f"{record.parameters / 1e6:.2f}M parameters, {record.family}, trained by redraft on {card.licence}; "
        "weights stored as int8 with a scale per row.",
        "",
        f"- Recipe: `redraft zoo build {record.name}` ([{record.recipe}](../../{record.recipe}))",
        f"- Training: {card.history or _training(training)}, {training.seconds / 60:.0f} minutes on a shared CPU",
        *([f"- Validation: {_validation(checked)}"] if checked else []),
        f"- Data licence: {card.licence}. Weights: Apache-2.0, with the attribution that the data's licence requires.",
        f"- Default generation settings: `{json.dumps(card.settings)}`",
        "",
        f"Measured on the test rows in `{card.data}`, with these settings. Check it on your machine: "
        f"`redraft zoo verify {record.name}`",
        "",
        *_table(record),
        "",
        "A small model that shows how families behave, and a starting point for fine-tuning. Don't rely on its output.",
    ]
    return "\n".join(lines) + "\n" + (f"\n{card.usage.strip()}\n" if card.usage else "")


def _training(training: Training) -> str:
    return f"{training.tokens:,} tokens ({training.passes:.2f} passes), {training.flops:.2e} FLOPs"


def _validation(found: dict[str, Any]) -> str:
    bound = found["is_bound"]
    nats, bits = (
        f"{found[name]:.3f}" + (f" ± {found[error]:.3f}" if bound else "")
        for name, error in (("nats_per_token", "nats_error"), ("bits_per_byte", "bits_error"))
    )
    kind = "an upper bound, with its Monte-Carlo error" if bound else "exact"
    return f"{nats} nats/token, {bits} bits/byte ({kind})"


def _table(record: Record) -> list[str]:
    """One row for each task, with the 95 % intervals of its metrics."""
    lines = ["| rows | quality | bits/byte | passes a text | tokens/s |", "|---|---|---|---|---|"]
    for name, one in record.measured.items():
        quality = ", ".join(f"{m.value:.1f} {m.label} ({m.low:.1f} to {m.high:.1f})" for m in one.metrics.values())
        bits = f"{'at most ' if one.likelihood.is_bound else ''}{one.likelihood.bits_per_byte:.3f}"
        what = f"{one.rows}, {name}" if name else str(one.rows)
        speed = f"{one.tokens_per_second:.0f} at batch {one.batch_size}"
        lines.append(f"| {what} | {quality} | {bits} | {one.nfe:.1f} | {speed} |")
    return lines
