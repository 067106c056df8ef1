"""Settings of ``redraft tune``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from redraft.data.examples import Splits, resolve
from redraft.errors import UserError
from redraft.evaluation.config import DataSource, Scoring
from redraft.options import setting

FEWEST_ROWS = 24


@dataclass(frozen=True)
class TuneStudy(Scoring, DataSource):
    """Which decoding configurations are tried, on which rows, and how far behind the best the choice may be."""

    within: float = setting(
        0.5, "Largest allowed loss of quality against the best configuration, in units of the metric.", above=0
    )
    all_rows: bool = setting(False, "Use every row of --data as validation data.")
    rows: int = setting(
        256, "Largest number of rows, sampled from all; the same rows in every run.", least=1, unit="rows"
    )
    max_new_tokens: int | None = setting(
        None, "Maximum number of new tokens. Unset: the model's own.", least=1, unit="tokens"
    )
    samplers: tuple[str, ...] = setting((), "Samplers to try. Unset: all that suit the model.")
    caches: tuple[str, ...] = setting((), "Cache policies to try. Unset: exact and, where it helps, others.")
    batch_sizes: tuple[int, ...] = setting(
        (1, 32), "Batch sizes to time; the latency at the first one decides.", least=1, nonempty=True
    )
    calls: int = setting(12, "Timed calls of each configuration.", least=3)
    minutes: float = setting(
        10.0,
        "After this time the search ends with the rows scored so far; timing may take half as much again. 0 lets it "
        "finish.",
        least=0,
        unit="minutes",
    )
    test: bool = setting(False, "Score the choice on the test split, once, at the end.")
    seed: int | None = setting(None, "Random seed of the texts. Unset: the model's own.", least=0)
    batch_size: int = setting(32, "Number of prompts in a batch while texts are scored.", least=1, reach=())
    out: Path = setting(
        Path("tuning"), "Folder for tune.json, tune.html and tune.md. The same command continues where it stopped."
    )

    def load(self) -> Splits:
        """Read the data.

        Raises:
            UserError: the data can't be read, or a test split is wanted and there is none.
        """
        found = self.splits((0.0, 1.0, 0.0) if self.all_rows else None)
        if self.test and not found.test:
            raise UserError(f"'{self.data}' has no test rows.", "Leave out --test or --all-rows.")
        if not found.validation:
            raise UserError(
                f"'{self.data}' has no validation rows.", "Use every row as validation data with --all-rows."
            )
        return found

    def joined(self, splits: Splits) -> Splits | None:
        """Validation and test rows together, where the former alone are too few; None if they are enough.

        A source without splits of its own is cut here, and no training has read either part. Test rows stay apart if
        they are to be scored (``test``), or if the source has its own.
        """
        own = set(resolve(self.data, self.data_root)) - {""}
        if len(splits.validation) >= FEWEST_ROWS or self.test or own or not splits.test:
            return None
        rows = [*splits.validation, *splits.test]
        return replace(splits, validation=splits.validation.replace(rows), test=splits.test.replace([]))
