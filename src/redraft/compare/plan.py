"""What a study will do: model size, training tokens, rows and decoding settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redraft import models
from redraft.compare.data import Dataset
from redraft.compare.format import clock
from redraft.compare.study import Study
from redraft.evaluation.decoding import DecodingConfig
from redraft.presets import preset as shape_of

SIZES = ("1m", "3m", "7m", "25m", "125m")
TOKENS_PER_PARAMETER = 5.0  # the largest preset with at least this many training tokens is chosen
LARGE = 50_000_000  # weights of a large checkpoint: an update takes seconds on a CPU
RATE, LARGE_RATE, ADAPTER_RATE = 1.5e-3, 2e-4, 1e-3  # learning rates: of small models, large checkpoints, adapters
CHECK_SAMPLES, LIKELIHOOD_SAMPLES = 4, 8  # noise draws per row of a bound, in training and on test rows


@dataclass(frozen=True)
class Plan:
    """What a study will do, and how long that is expected to take."""

    tokens: int  # training tokens of each model
    preset: str
    vocab_size: int
    length: int  # tokens of the longest row
    new_tokens: int  # limit of an output
    test_rows: int
    validation_rows: int
    timed_calls: int
    train: dict[str, Any]  # fields of the recipe's [train]
    settings: tuple[DecodingConfig, ...]
    seconds: dict[str, float] = field(default_factory=dict)  # expected, by stage; empty if nothing was measured

    @property
    def total_seconds(self) -> float:
        """Expected seconds of the whole study."""
        return sum(self.seconds.values())

    @property
    def reserve(self) -> float:
        """Expected seconds of what must follow once settings are chosen: timing, testing two of each family, report."""
        chosen = min(1.0, 2 * len({s.family for s in self.settings}) / max(1, len(self.settings)))
        return sum(self.seconds.get(k, 0.0) * share for k, share in (("timing", 1), ("test", chosen), ("report", 1)))

    def lines(self, study: Study) -> list[str]:
        """The plan in words, a line for each stage."""
        sources = ", ".join(dict.fromkeys(study.bases.values()))
        start = f"starting from {sources}" if sources else f"from scratch at {self.preset}"
        runs = f"{len(study.families)} families x {study.seeds} seed{'s' if study.seeds > 1 else ''}"
        runs += f" x {len(study.dropouts)} dropout rates" if study.dropouts else ""
        sizes = ", ".join(map(str, study.batch_sizes))
        text = [
            f"train    {runs}, {self.tokens:,} tokens each, {start}",
            f"decode   {len(self.settings)} settings, {self.validation_rows} validation and {self.test_rows} test rows",
            f"time     batch sizes {sizes}, {self.timed_calls} calls each",
        ]
        if self.seconds:
            stages = ", ".join(f"{name} {clock(s)}" for name, s in self.seconds.items())
            text.append(f"expected {clock(self.total_seconds)} in all ({stages})")
        return text


def vocabulary(study: Study, dataset: Dataset) -> int:
    """Vocabulary size to train: about one entry per 60 characters of text, so that entries occur often enough."""
    if study.vocab_size:
        return study.vocab_size
    size = sum(len((e.prompt or "") + e.target) for e in dataset.train)
    fitting = [v for v in (512, 1024, 2048, 4096, 8192) if v * 60 <= size]
    return fitting[-1] if fitting else 512


def parameters(preset: str, vocab_size: int) -> int:
    """Number of weights of a preset; it is the same for every network."""
    return models.parameters(shape_of(preset, vocab_size))


def largest(tokens: int, vocab_size: int, sizes: Sequence[str] = SIZES) -> str:
    """The largest of some presets that a token budget can train; the first if none fits."""
    fitting = [name for name in sizes if tokens >= TOKENS_PER_PARAMETER * parameters(name, vocab_size)]
    return fitting[-1] if fitting else sizes[0]


def learning_rate(width: int, parameters: int = 0, adapters: bool = False) -> float:
    """The peak learning rate of a study. It falls with the width of the network (Yang et al. 2022, arXiv:2203.03466).

    Large pretrained checkpoints are moved less, and adapters more: W x + scale B A x changes little while B, which
    starts at zero, is small. Both were measured on one checkpoint of 135M parameters (``docs/log.md``).

    Args:
        parameters: of the checkpoint to start from; 0: from scratch.
    """
    if adapters:
        return ADAPTER_RATE
    return LARGE_RATE * min(1.0, 576 / width) if parameters >= LARGE else RATE * min(1.0, 256 / width)


def training_table(
    study: Study, tokens: int, pass_tokens: int, length: int, paired: bool, rate: float = RATE, least: int = 1024
) -> dict[str, Any]:
    """Fields of the recipe's [train], the same for every family.

    Small budgets get small batches, for about a thousand updates. More than five passes over the data get dropout. The
    model with the best validation loss is kept, so each family is measured at its own best stopping point.

    Args:
        rate: peak learning rate. least: tokens of the smallest batch.
    """
    longest = length if paired else length + 1
    batch = max(least, 1 << min(13, (tokens // 1000).bit_length()))
    table: dict[str, Any] = {
        "tokens": tokens,
        "batch_tokens": max(batch, longest),
        "lr": rate,
        "dropout": 0.1 if tokens > 5 * pass_tokens else 0.0,
        "keep_best": True,
        "validate_every": max(1, tokens // 8),
        "validation_rows": 256,
    }
    return {**table, **study.train}
