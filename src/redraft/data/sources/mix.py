"""Mix: several data sets as one, each with a prompt that names its task. ``NAME.mix.toml``."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from re import finditer

from redraft import config
from redraft.data.columns import Columns
from redraft.data.examples import Example, Examples, read_split, unit_hash
from redraft.data.locate import SPLITS, is_source, resolve
from redraft.data.rows import Row, Source
from redraft.errors import UserError
from redraft.options import REQUIRED, check, declared, setting

_SUFFIX = ".mix.toml"
_LEAST = 20  # minimum characters of a piece of plain text: a few words of prompt and a few of target


@dataclass(frozen=True)
class Part:
    """One set of a mixture: a ``[[task]]`` table of its file.

    ``source`` is looked up beside the file, then as any other source. If the name is that of a file in ``tasks/``
    (``translation``, ``translation-de``), the rows are evaluated as this task; otherwise the task is recognised from
    the rows.
    """

    name: str = setting(REQUIRED, "Name of the task.", reach=())
    source: str = setting(REQUIRED, "The data set: a file, folder or name.", reach=())
    prompt: str = setting("{}", "Prompt of the model; {} is replaced by the input of the row.", reach=())
    input: str | None = setting(None, "Column of inputs; recognised by its name by default.", reach=())
    target: str | None = setting(None, "Column of targets; recognised by its name by default.", reach=())
    rows: int = setting(0, "Maximum number of training rows, taken evenly; 0: no limit.", least=0, reach=())
    characters: int = setting(
        0, "For plain text: size of its pieces, each cut into a prompt and a target.", least=0, reach=()
    )

    def __post_init__(self) -> None:
        for name, one in declared(type(self)).items():
            one.check(getattr(self, name), f"task '{self.name}': {name}")
        if self.prompt.count("{}") != 1:
            raise UserError(
                f"task '{self.name}': the prompt '{self.prompt}' must hold {{}} exactly once.",
                "Write {} where the input of the row goes, as in 'translate to German: {}'.",
            )
        if self.characters and self.characters < _LEAST:
            raise UserError(
                f"task '{self.name}': characters = {self.characters} is too small.", f"Use {_LEAST} or more."
            )
        if self.source.endswith(_SUFFIX):
            raise UserError(
                f"task '{self.name}': its source is a mixture, and a mixture can't hold another one.",
                "Write a [[task]] for each set of that mixture.",
            )


@dataclass(frozen=True)
class Mixture:
    """The content of a mixture file.

    With n_i training rows, task i is sampled in proportion to n_i^(1 / temperature) (Raffel et al. 2019,
    arXiv:1910.10683, 3.5.2). Temperature 1 is proportional to the rows; higher values make the shares more equal.
    """

    task: tuple[Part, ...]
    temperature: float = setting(
        1.0, "1: shares in proportion to the rows; higher values: more equal shares.", least=1, reach=()
    )

    def __post_init__(self) -> None:
        check(self)
        if len(self.task) < 2:
            raise UserError("A mixture needs at least two tasks.", "Write a [[task]] for each set.")
        seen = [part.name for part in self.task]
        for name in seen:
            if not name or seen.count(name) > 1:
                raise UserError(f"Task name '{name}' is empty or used twice.", "Give each [[task]] a different name.")

    def repeats(self, rows: Sequence[int]) -> list[float]:
        """How often each row of each task occurs in one pass, at least once: (n_max / n_i)^(1 - 1 / temperature)."""
        most = max(rows)
        return [(most / count) ** (1 - 1 / self.temperature) for count in rows]


class Mix(Source):
    """Rows of all tasks of a mixture, interleaved evenly, with columns ``input`` and ``target``.

    One pass holds every row. To reach the shares of the mixture, training rows of small tasks are repeated; the same
    rows are repeated every time. Rows of validation and test are not repeated.
    """

    suffixes = (_SUFFIX,)
    holds_splits = True

    def matches(self, path: str) -> bool:
        file = path.partition("#")[0]
        return super().matches(file) and os.path.isfile(file)

    def splits(self, path: str, data_root: str | None = None) -> dict[str, str]:
        if "#" in path:
            return {}
        held = {name for part in _parse(path).task for name in resolve(_found(part, path), data_root)}
        wanted = held if held.isdisjoint({"", "train"}) else SPLITS  # other splits are cut from the rows for training
        return {name: f"{path}#{name}#{data_root or ''}" for name in SPLITS if name in wanted}

    def read(self, path: str) -> Iterator[Row]:
        file, name, root = (*path.split("#", 2), "", "")[:3]
        if not name:
            raise UserError(f"Mixture '{file}' has several splits.", f"Name one of them: {file}#train.")
        mixture = _parse(file)
        found = [_rows(part, name, file, root or None) for part in mixture.task]
        for part, examples in zip(mixture.task, found, strict=True):
            for bad in examples.skipped:
                path, _, line = bad.where.rpartition(":")
                yield Row({}, path, int(line), bad.reason, part.name)
        doubts = {row.where: row.reason for examples in found for row in examples.doubtful}
        rows = [list(examples) for examples in found]
        if name == "train":
            rows = [_some(part, examples) for part, examples in zip(mixture.task, rows, strict=True)]
            empty = [part.name for part, examples in zip(mixture.task, rows, strict=True) if not examples]
            if empty:
                raise UserError(
                    f"{file}: task '{empty[0]}' has no training rows.", "Give it a source with training rows."
                )
            repeats = mixture.repeats([len(examples) for examples in rows])
            rows = [list(_repeated(examples, times)) for examples, times in zip(rows, repeats, strict=True)]
        yield from _interleaved(mixture.task, rows, doubts)


def _parse(file: str) -> Mixture:
    values = config.read_toml(Path(file))
    tables = values.get("task", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{file}: 'task' is not a list of tables.", "Write [[task]] before each set.")
    parts = [config.build(Part, table, f"{file} [[task]] {number}") for number, table in enumerate(tables, 1)]
    return config.build(Mixture, {**values, "task": tuple(parts)}, file)


def _found(part: Part, file: str) -> str:
    """The source of a task: beside the file of the mixture, or else any other."""
    beside = str(Path(file).parent / part.source)
    return beside if is_source(beside) else part.source


def _rows(part: Part, split: str, file: str, root: str | None) -> Examples:
    """One split of a task. Bad rows don't raise here: the caller of ``read`` decides what to do with them."""
    columns = Columns(input=part.input, target=part.target)
    named = columns if str(columns) else None
    found = read_split(_found(part, file), split, named, data_root=root, skip_bad_rows=True)
    if not found:
        return found
    if bool(part.characters) is not (found[0].prompt is None):
        if part.characters:
            raise UserError(
                f"{file}: task '{part.name}' sets characters, but its rows have prompts.", "Remove characters."
            )
        raise UserError(
            f"{file}: task '{part.name}' is plain text, and a mixture needs prompts and targets.",
            "Name its input and target columns, or set characters = 400 to cut it into pieces with a prompt each.",
        )
    if any(len(example.turns) > 1 for example in found):
        raise UserError(
            f"{file}: task '{part.name}' holds conversations of several messages, and a mixture needs prompts.",
            "Train on the conversations alone, or name its input and target columns.",
        )
    if part.characters:
        return found.replace([piece for text in found for piece in _pieces(text, part.characters)], reported=True)
    return found


def _pieces(text: Example, characters: int) -> Iterator[Example]:
    """Pieces of a document, of whole words. Each is cut between two words, at a point given by its hash, into prompt
    and target: a prefix language model (Raffel et al. 2019, arXiv:1910.10683, 3.2.1).
    """
    words, first = [found.span() for found in finditer(r"\S+", text.target)], 0
    for last, (_, end) in enumerate(words):
        if last + 1 < len(words) and words[last + 1][1] - words[first][0] <= characters:
            continue
        start, middle = words[first][0], first + int(unit_hash(text.target[words[first][0] : end], 0) * (last - first))
        if middle < last:
            prompt, target = text.target[start : words[middle][1]], text.target[words[middle + 1][0] : end]
            yield Example(prompt, target, text.where)
        first = last + 1


def _some(part: Part, rows: list[Example]) -> list[Example]:
    most = part.rows
    return rows if not most or len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def _repeated(rows: Iterable[Example], times: float) -> Iterator[Example]:
    """Each example ``floor(times)`` times, and once more with the probability of the fractional part."""
    whole, rest = divmod(times, 1.0)
    for example in rows:
        yield from repeat(example, int(whole) + (rest > 0 and unit_hash(example.prompt or "", 0) < rest))


def _interleaved(parts: Sequence[Part], rows: Sequence[Sequence[Example]], doubts: Mapping[str, str]) -> Iterator[Row]:
    """All rows, with those of each task spread evenly over the pass.

    Args:
        doubts: of rows that may be several, by ``where``.
    """

    def spread(number: int) -> Iterator[tuple[float, int, Example]]:
        for index, example in enumerate(rows[number]):
            yield (index + 0.5) / len(rows[number]), number, example

    for _, number, example in heapq.merge(*map(spread, range(len(parts))), key=lambda found: found[:2]):
        part, (file, _, line) = parts[number], example.where.rpartition(":")
        values = {"input": part.prompt.replace("{}", example.prompt or ""), "target": example.target}
        yield Row(values, file, int(line), "", part.name, doubts.get(example.where, ""))
