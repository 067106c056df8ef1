"""Reading a source as examples: prompt and target of each row, bad rows, and stable train, validation and test splits.

``load`` gives the three splits of a source, ``read`` all of its rows.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

from redraft.data.columns import BadRow, Columns, Turns, choose_columns, reader, unanswered
from redraft.data.held import Held
from redraft.data.locate import SPLITS, resolve, source_kind
from redraft.data.rows import Row
from redraft.errors import UserError

_SMALL = 8000  # rows; see ``shares_of``
_PIECE_ROWS, PIECE_CHARACTERS = 2048, 1 << 20  # of what is tokenised at once: a token takes 100 bytes meanwhile


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its target, or a plain text (``prompt`` None). ``where`` is ``file:line``."""

    prompt: str | None
    target: str
    where: str
    task: str = ""  # name of the task, if the source mixes several
    turns: Turns = ()  # of a conversation: role and content of the messages before the target; ``prompt`` shows them
    rejected: str = ""  # an answer that is worse than the target, in data of preferences
    values: Mapping[str, Any] | None = None  # all columns of the row, in data of prompts and of benchmarks
    references: tuple[str, ...] = ()  # all right answers of a benchmark's row; empty: the target alone
    options: tuple[str, ...] = ()  # of a question of multiple choice
    suffix: str = ""  # what stands after a gap whose filling is the target


def pieces(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Consecutive pieces of some examples, each small enough to be tokenised at once."""
    begin = size = 0
    for end, example in enumerate(examples, 1):
        size += len(example.target) + len(example.prompt or "")
        if end - begin == _PIECE_ROWS or size >= PIECE_CHARACTERS or end == len(examples):
            yield examples[begin:end]
            begin, size = end, 0


class RowFormat(Protocol):
    """How the rows of a source become examples. ``AnswerRows`` is the usual one."""

    def choose(self, wanted: Columns, row: Row) -> Columns:
        """The columns to use, from those that the user named and the first good row.

        Raises:
            UserError: a named column does not exist, or none are recognised.
        """
        ...

    def reader(self, columns: Columns) -> Callable[[Row], list[Example]]:
        """A function that makes examples of a row. It raises ``BadRow`` for one that can't be used."""
        ...


class AnswerRows:
    """Prompts and answers, plain texts, or conversations."""

    def choose(self, wanted: Columns, row: Row) -> Columns:
        """As ``columns.choose_columns``."""
        return choose_columns(wanted, row)

    def reader(self, columns: Columns) -> Callable[[Row], list[Example]]:
        """As ``columns.reader``."""
        read_row = reader(columns)

        def examples(row: Row) -> list[Example]:
            return [Example(*found[:2], row.where, row.task, found[2]) for found in read_row(row.values)]

        return examples


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was left out, and why."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A row that was read, and may be several rows."""

    where: str
    reason: str


@dataclass
class Examples(Sequence[Example]):
    """The examples of one split, and the bad rows that were left out."""

    rows: list[Example]
    columns: Columns
    recognised: bool = False  # the columns were recognised by their names, not named by the user
    skipped: list[Skipped] = field(default_factory=list)
    unanswered: int = 0  # conversations whose last messages have no answer, and are left out
    doubtful: list[Doubtful] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.rows)

    def replace(self, rows: list[Example], reported: bool = False) -> Examples:
        """A copy with the same columns and other rows.

        Args:
            reported: it also has what is reported about rows that were left out.
        """
        kept = {row.where for row in rows} if self.doubtful else set()
        doubtful = [one for one in self.doubtful if one.where in kept]
        if reported:
            return replace(self, rows=rows, doubtful=doubtful)
        return Examples(rows, self.columns, self.recognised, doubtful=doubtful)

    def remarks(self) -> Iterator[str]:
        """A line for each row that was left out, and for each that may be several."""
        yield from (f"left out {bad.where}: {bad.reason}" for bad in self.skipped)
        yield from (f"read as one row {one.where}: {one.reason}" for one in self.doubtful)


@dataclass
class Splits:
    """Training, validation and test examples of one source.

    Attributes:
        shares: shares by which ``split`` cut rows of the source that had no split; None: it has all of these splits.
    """

    train: Examples
    validation: Examples
    test: Examples
    shares: tuple[float, ...] | None = None

    def __str__(self) -> str:
        if self.shares is None:
            return "splits of the source"
        parts = [f"{share:.0%} {name}" for name, share in zip(SPLITS, self.shares, strict=True) if share]
        return f"by a hash of the input ({', '.join(parts)}), as the source has none for these"

    def items(self) -> Iterator[tuple[str, Examples]]:
        """Name and examples of each split."""
        return iter((("train", self.train), ("validation", self.validation), ("test", self.test)))


def shares_of(rows: int) -> tuple[float, float, float]:
    """Shares of training, validation and test rows of a source without splits: the one rule of training, evaluation,
    tuning and studies, so that a row held out by one of them is held out by all.

    Small sources hold out more, to have enough test rows.
    """
    return (0.8, 0.08, 0.12) if rows < _SMALL else (0.9, 0.04, 0.06)


def load(
    source: str | Mapping[str, str],
    columns: Columns | None = None,
    *,
    data_root: str | None = None,
    fractions: tuple[float, float, float] | None = None,
    seed: int = 0,
    skip_bad_rows: bool = False,
    rows: RowFormat | None = None,
) -> Splits:
    """Read a source into three splits: the splits of the source if it has them, else cut from its rows by ``split``.

    Args:
        source: a file, a folder, a set by name (see ``locate.resolve``), or a mapping from split names to files.
        fractions: shares of train, validation and test for rows that must be split; None: ``shares_of`` the number of
            rows. If a source has its own train split but lacks validation or test, these are cut from train. If it
            lacks train, train stays empty.
        rows: how rows become examples; None: ``AnswerRows``.
    Raises:
        UserError: the source can't be found or read, a row is bad, or a split with a share above 0 is empty.
    """
    found = resolve(source, data_root)
    parts: dict[str, Examples] = {}
    for name, files in found.items():  # all splits must have the columns that the first one has
        chosen = columns if not parts else next(iter(parts.values())).columns
        parts[name] = _read_files(files, chosen, skip_bad_rows, rows)
        parts[name].recognised = columns is None or columns == Columns()
    whole = parts.pop("", None) or parts.pop("train", None)
    if whole is None:
        empty = next(iter(parts.values())).replace([])
        return Splits(empty, parts.get("validation", empty), parts.get("test", empty))
    shares = fractions or shares_of(len(whole))
    wanted = tuple(0.0 if name in parts else share for name, share in zip(SPLITS, shares, strict=True))
    cut = split(whole, wanted, seed)
    for (name, examples), share in zip(cut.items(), wanted, strict=True):
        if share > 0 and not examples:
            raise UserError(
                f"'{source}' has {len(whole)} rows, and none of them falls into the {name} split at share {share:g}.",
                "Give more rows (in a .txt file, empty lines separate rows), or one file for each split.",
            )
    total = sum(wanted)
    told = tuple(share / total for share in wanted) if sum(map(bool, wanted)) > 1 else None
    return Splits(cut.train, parts.get("validation", cut.validation), parts.get("test", cut.test), told)


def read(
    source: str,
    columns: Columns | None = None,
    *,
    data_root: str | None = None,
    skip_bad_rows: bool = False,
    rows: RowFormat | None = None,
) -> Examples:
    """Read all rows of a source; if it has splits, one split after the other.

    Raises:
        UserError: the source can't be found or read, a column does not exist, or (without ``skip_bad_rows``) a row is
            bad: invalid UTF-8 or JSON; a column that is missing, null or not a text; an empty target.
    """
    found = resolve(source, data_root)
    return _read_files([file for name in ("", *SPLITS) for file in found.get(name, [])], columns, skip_bad_rows, rows)


def read_split(
    source: str,
    name: str,
    columns: Columns | None = None,
    *,
    data_root: str | None = None,
    skip_bad_rows: bool = False,
    rows: RowFormat | None = None,
) -> Examples:
    """One split of a source, as ``load`` gives it. If the source has this split, no other file is read.

    Raises:
        UserError: as ``load``.
    """
    found = resolve(source, data_root)
    if name in found:
        return _read_files(found[name], columns, skip_bad_rows, rows)
    splits = load(source, columns, data_root=data_root, skip_bad_rows=skip_bad_rows, rows=rows)
    return dict(splits.items())[name]


def paired(source: str, columns: Columns | None = None, data_root: str | None = None) -> bool:
    """Does a source hold prompts and targets? Decided by the columns of its first good row.

    Raises:
        UserError: the source can't be found or read, or a column does not exist.
    """
    files = next(iter(resolve(source, data_root).values()))
    row = next((row for file in files for row in source_kind(file).read(file) if not row.problem), None)
    return row is not None and choose_columns(columns or Columns(), row).text is None


def split(examples: Examples, fractions: tuple[float, ...], seed: int = 0) -> Splits:
    """Cut examples into train, validation and test by a hash of their normalised input.

    The split of an example depends only on its prompt (or text) and the seed: adding rows doesn't move other rows, and
    rows with the same input (see ``normalise``) are in the same split. Shares are therefore met only on average.

    Raises:
        UserError: the shares are not three numbers of at least 0 with a positive sum.
    """
    if len(fractions) != 3 or min(fractions) < 0 or not sum(fractions) > 0:
        raise UserError(
            f"Split shares {fractions} are not three numbers of at least 0 with a positive sum.",
            "For example 0.9, 0.05, 0.05.",
        )
    if sum(fractions) in fractions:  # one split takes everything: no hash needed
        train, validation, test = (examples if share else examples.replace([]) for share in fractions)
        return Splits(train, validation, test)
    rows: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in examples:
        rows[split_of(example, fractions, seed)].append(example)
    return Splits(
        examples.replace(rows["train"], reported=True),  # reported once
        examples.replace(rows["validation"]),
        examples.replace(rows["test"]),
    )


def split_of(example: Example, fractions: tuple[float, ...], seed: int = 0) -> str:
    """The split that an example is in, by a hash of its normalised input (see ``split``)."""
    point = unit_hash(normalise(key_text(example)), seed) * sum(fractions)
    return SPLITS[0 if point < fractions[0] else 1 if point < fractions[0] + fractions[1] or not fractions[2] else 2]


def key_text(example: Example) -> str:
    """The text that identifies an example: its prompt, or its text if it has no prompt.

    For a conversation, it is what stands before the first answer, so that all examples of a conversation are in one
    split.
    """
    if example.turns:
        speakers = [role for role, _ in example.turns]
        first = speakers.index("assistant") if "assistant" in speakers[1:] else len(speakers)
        return "\n".join(content for _, content in example.turns[: first or 1])
    return example.target if example.prompt is None else example.prompt


def normalise(text: str) -> str:
    """Fold case, width, punctuation and spaces, so that inputs that differ only in these become equal."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_folding()).split()) or text


class _Folding(dict[int, int | str]):
    """A table for ``str.translate``, filled on demand: punctuation, separators and control characters become spaces."""

    def __missing__(self, code: int) -> int | str:
        self[code] = " " if unicodedata.category(chr(code))[0] in "PZC" else code
        return self[code]


@cache
def _folding() -> _Folding:
    return _Folding()


class RowReader:
    """Reads rows as examples.

    Attributes:
        chosen: the columns, once a good row was read. They are chosen in the first one.
        unanswered: conversations so far whose last messages have no answer.
    """

    def __init__(self, columns: Columns | None, rows: RowFormat | None = None) -> None:
        self.wanted, self._format = columns or Columns(), rows or AnswerRows()
        self.chosen: Columns | None = None
        self.unanswered = 0
        self._read: Callable[[Row], list[Example]] | None = None

    def examples(self, row: Row) -> list[Example]:
        """The examples of a row.

        Raises:
            BadRow: it can't be used; the message says why.
            UserError: a column does not exist, or none is recognised.
        """
        if row.problem:
            raise BadRow(row.problem)
        if self._read is None or self.chosen is None:
            self.chosen = self._format.choose(self.wanted, row)
            self._read = self._format.reader(self.chosen)
        found = self._read(row)
        chat = self.chosen.messages if isinstance(self._format, AnswerRows) else None
        self.unanswered += chat is not None and unanswered(row.values, chat)
        return found


def bad_row(row: Row, problem: str) -> UserError:
    """The error for a bad row where these are not left out."""
    return UserError(f"{row.where}: {problem}.", "Fix the row, or leave out bad rows with --skip-bad-rows.")


def _read_files(
    files: list[str], columns: Columns | None, skip_bad_rows: bool, rows: RowFormat | None = None
) -> Examples:
    reads, examples, skipped = RowReader(columns, rows), list[Example](), list[Skipped]()
    held = Held(files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more files")
    doubtful: dict[str, Doubtful] = {}  # by row: a mixture may repeat one
    for row in (row for file in files for row in source_kind(file).read(file)):
        held.add_row(row.values)
        try:
            examples += reads.examples(row)
        except BadRow as error:
            if not skip_bad_rows:
                raise bad_row(row, str(error)) from None
            skipped.append(Skipped(row.where, str(error)))
            continue
        if row.doubt:
            doubtful[row.where] = Doubtful(row.where, row.doubt)
    if not examples:
        first = f", the first: {skipped[0].where}: {skipped[0].reason}" if skipped else ""
        left = f" ({len(skipped)} bad rows left out{first})" if skipped else ""
        raise UserError(f"'{', '.join(files)}' holds no rows{left}.", "Give a file with at least one good row.")
    assert reads.chosen is not None
    found, general = list(doubtful.values()), reads.wanted == Columns()
    return Examples(examples, reads.chosen, general, skipped, reads.unanswered, found)


def unit_hash(text: str, seed: int) -> float:
    """A number in [0, 1) from a text and a seed, the same on every machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=seed.to_bytes(8, "little", signed=True)).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
