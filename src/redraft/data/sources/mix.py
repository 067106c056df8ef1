"""Mix: several sets as one, each with a prompt that says what is to be done. ``NAME.mix.toml``."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from re import finditer
from typing import TYPE_CHECKING

from redraft.data.rows import Row, Source
from redraft.errors import UserError

if TYPE_CHECKING:
    from redraft.data.examples import Example, Examples

_SUFFIX = ".mix.toml"
_LEAST = 20  # characters of a piece of plain text: a few words to begin with, and a few to follow


@dataclass(frozen=True)
class Part:
    """One set of a mixture, a ``[[task]]`` of its file.

    ``source`` is looked for beside the file, then as any other source. A name such as ``translation`` or
    ``translation-de``, of a file of ``tasks/``, says how it is evaluated; any other is recognised from the rows.
    """

    name: str
    source: str
    prompt: str = "{}"  # what a model is asked, with the row's own input in place of {}
    input: str | None = None  # columns; None: recognised by their names
    target: str | None = None
    rows: int = 0  # most training rows, spread evenly over all; 0: no limit
    characters: int = 0  # plain text: the size of its pieces, each cut into a beginning that is given and the rest

    def __post_init__(self) -> None:
        if self.prompt.count("{}") != 1:
            raise UserError(
                f"task '{self.name}': the prompt '{self.prompt}' must hold {{}} once.",
                "That is where the input goes, as in 'translate to German: {}'.",
            )
        if self.rows < 0:
            raise UserError(f"task '{self.name}': rows = {self.rows} can't be negative.", "0 is no limit.")
        if self.characters and self.characters < _LEAST:
            raise UserError(
                f"task '{self.name}': characters = {self.characters} is too few.", f"Take {_LEAST} or more."
            )
        if self.source.endswith(_SUFFIX):
            raise UserError(f"task '{self.name}': a mixture can't hold a mixture.", "Name its sets one by one.")


@dataclass(frozen=True)
class Mixture:
    """What a file says.

    With n_i training rows, task i is met in training in proportion to n_i^(1 / temperature) (Raffel et al. 2019,
    arXiv:1910.10683, 3.5.2): 1 is in proportion to the rows, and the larger the more alike.
    """

    task: tuple[Part, ...]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if len(self.task) < 2:
            raise UserError("a mixture needs two tasks or more.", "Write a [[task]] for each set.")
        if not 1 <= self.temperature < math.inf:
            raise UserError(f"temperature = {self.temperature} must be at least 1.", "1 is in proportion to the rows.")
        seen = [part.name for part in self.task]
        for name in seen:
            if not name or seen.count(name) > 1:
                raise UserError(f"task names must differ and not be empty: '{name}'.")

    def times(self, rows: Sequence[int]) -> list[float]:
        """How often each row of each task comes in a pass, at least once: (n_most / n_i)^(1 - 1 / temperature)."""
        most = max(rows)
        return [(most / count) ** (1 - 1 / self.temperature) for count in rows]


class Mix(Source):
    """Rows of all its tasks, in proportion all along, with columns ``input`` and ``target``.

    No row is left out of a pass for the sake of proportion: those of small tasks come several times, the same ones
    every time. Only training rows do; validation and test are as they are.
    """

    suffixes = (_SUFFIX,)
    holds_splits = True

    def matches(self, path: str) -> bool:
        file = path.partition("#")[0]
        return super().matches(file) and Path(file).is_file()

    def splits(self, path: str, data_root: str | None = None) -> dict[str, str]:
        from redraft.data.examples import SPLITS

        return {} if "#" in path else {name: f"{path}#{name}#{data_root or ''}" for name in SPLITS}

    def read(self, path: str) -> Iterator[Row]:
        file, name, root = (*path.split("#", 2), "", "")[:3]
        if not name:
            raise UserError(f"'{file}' has splits of its own.", "Name one of them, or use it as a whole.")
        mixture = _parse(file)
        found = [_rows(part, name, file, root or None) for part in mixture.task]
        for part, examples in zip(mixture.task, found, strict=True):
            for bad in examples.skipped:
                place, _, line = bad.where.rpartition(":")
                yield Row({}, place, int(line), bad.reason, part.name)
        rows = [list(examples) for examples in found]
        if name == "train":
            rows = [_some(part, examples) for part, examples in zip(mixture.task, rows, strict=True)]
            empty = [part.name for part, examples in zip(mixture.task, rows, strict=True) if not examples]
            if empty:
                raise UserError(f"{file}: task '{empty[0]}' has no training rows.")
            often = mixture.times([len(examples) for examples in rows])
            rows = [list(_repeated(examples, times)) for examples, times in zip(rows, often, strict=True)]
        yield from _together(mixture.task, rows)


def _parse(file: str) -> Mixture:
    from redraft import config

    values = config.read_toml(Path(file))
    tables = values.get("task", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{file}: 'task' must be a list of tables.", "Write [[task]] before each set.")
    parts = [config.build(Part, table, f"{file} [[task]] {number}") for number, table in enumerate(tables, 1)]
    return config.build(Mixture, {**values, "task": tuple(parts)}, file)


def _rows(part: Part, split: str, file: str, root: str | None) -> Examples:
    """One split of a task. A broken row is told and not raised: what comes of it is the reader's choice."""
    from redraft.data import examples

    columns = examples.Columns(input=part.input, target=part.target)
    beside = str(Path(file).parent / part.source)
    source = beside if examples.exists(beside) else part.source
    found = examples.part(source, split, columns if str(columns) else None, data_root=root, skip_bad_rows=True)
    if bool(part.characters) is not bool(found and found[0].prompt is None):
        if part.characters:
            raise UserError(f"{file}: task '{part.name}' has inputs; characters is for plain text.", "Leave it out.")
        what = f"{file}: task '{part.name}' is plain text."
        raise UserError(what, "Name its input and target, or set characters = 400: pieces of it, to be continued.")
    if part.characters:
        return found.replace([piece for text in found for piece in _pieces(text, part.characters)], found.skipped)
    return found


def _pieces(text: Example, characters: int) -> Iterator[Example]:
    """Stretches of a document, of whole words, each cut between two words, where its hash says, into what is given and
    what follows: a prefix language model (Raffel et al. 2019, arXiv:1910.10683, 3.2.1).
    """
    from redraft.data.examples import Example, unit_hash

    words, first = [found.span() for found in finditer(r"\S+", text.target)], 0
    for last, (_, end) in enumerate(words):
        if last + 1 < len(words) and words[last + 1][1] - words[first][0] <= characters:
            continue
        start, middle = words[first][0], first + int(unit_hash(text.target[words[first][0] : end], 0) * (last - first))
        if middle < last:
            given, rest = text.target[start : words[middle][1]], text.target[words[middle + 1][0] : end]
            yield Example(given, rest, text.where)
        first = last + 1


def _some(part: Part, rows: list[Example]) -> list[Example]:
    most = part.rows
    return rows if not most or len(rows) <= most else [rows[i * len(rows) // most] for i in range(most)]


def _repeated(rows: Iterable[Example], times: float) -> Iterator[Example]:
    """Each example as often as the whole part of ``times`` says, and once more with a chance of what is left."""
    from redraft.data.examples import unit_hash

    whole, rest = divmod(times, 1.0)
    for example in rows:
        yield from repeat(example, int(whole) + (rest > 0 and unit_hash(example.prompt or "", 0) < rest))


def _together(parts: Sequence[Part], rows: Sequence[Sequence[Example]]) -> Iterator[Row]:
    """All rows, those of each task spread evenly: any stretch holds every task in proportion."""

    def spread(number: int) -> Iterator[tuple[float, int, Example]]:
        for index, example in enumerate(rows[number]):
            yield (index + 0.5) / len(rows[number]), number, example

    for _, number, example in heapq.merge(*map(spread, range(len(parts))), key=lambda found: found[:2]):
        part, (file, _, line) = parts[number], example.where.rpartition(":")
        values = {"input": part.prompt.replace("{}", example.prompt or ""), "target": example.target}
        yield Row(values, file, int(line), "", part.name)
