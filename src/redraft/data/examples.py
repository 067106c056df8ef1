"""Rows -> examples: which columns mean what, bad rows, and splits that never move."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from redraft.data.rows import Row, Source
from redraft.errors import UserError, suggest
from redraft.registry import find, names

SPLITS = ("train", "validation", "test")
_SPLIT_WORDS = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
_SPLIT_PART = re.compile(rf"(?:^|[._-])({'|'.join(_SPLIT_WORDS)})(?=$|[._-])", re.IGNORECASE)
_SHARD_PART = re.compile(r"-\d+-of-\d+$")
# Names in use for a prompt and its answer, the surest first. ``a+b`` joins two columns with a newline.
_PAIRS = (
    ("src", "ref"),
    ("source", "target"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction+input", "output"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("document", "summary"),
    ("article", "highlights"),
    ("context+question", "answer"),
    ("question", "answer"),
    ("input", "target"),
    ("input", "output"),
    ("mr", "text"),
    ("text", "summary"),
    ("context", "target"),
)
_JSON_NAMES = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
_TEXTS = ("text", "content", "document")


@dataclass(frozen=True, slots=True)
class Example:
    """One thing to learn: a prompt and its target, or a text (``prompt`` None). ``where`` is ``file:line``."""

    prompt: str | None
    target: str
    where: str
    task: str = ""  # which of several tasks, in a mixture


@dataclass(frozen=True)
class Columns:
    """Which columns to use: ``text``, or ``input`` and ``target``, or ``messages`` (a chat). All None: recognise them.

    ``input`` and ``target`` may join columns with a newline: ``"context+question"``. A dot reaches into a column:
    ``"answers.0.text"``. Of a chat, the last message of the assistant is the target and what precedes it the prompt.
    """

    text: str | None = None
    input: str | None = None
    target: str | None = None
    messages: str | None = None

    def __str__(self) -> str:
        pairs = (("text", self.text), ("input", self.input), ("target", self.target), ("messages", self.messages))
        return ", ".join(f"{role} = '{column}'" for role, column in pairs if column)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was left out, and why."""

    where: str
    reason: str


@dataclass
class Examples(Sequence[Example]):
    """The examples of one split, with what was left out."""

    rows: list[Example]
    columns: Columns
    recognised: bool = False  # the columns were chosen by their names, not by the user
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.rows)

    def replace(self, rows: list[Example], skipped: list[Skipped] | None = None) -> Examples:
        """The same columns with other rows."""
        return Examples(rows, self.columns, self.recognised, skipped or [])


@dataclass
class Splits:
    """Training, validation and test examples of one source."""

    train: Examples
    validation: Examples
    test: Examples

    def items(self) -> Iterator[tuple[str, Examples]]:
        return iter((("train", self.train), ("validation", self.validation), ("test", self.test)))


def load(
    source: str | Mapping[str, str],
    columns: Columns | None = None,
    *,
    data_root: str | None = None,
    fractions: tuple[float, float, float] = (0.9, 0.05, 0.05),
    seed: int = 0,
    skip_bad_rows: bool = False,
) -> Splits:
    """Read a source into three splits: its own where it has them, else cut from its rows by ``split``.

    Args:
        source: a file, a folder, a set by name (see ``resolve``), or split names with a file each.
        fractions: shares of train, validation and test where they must be cut. A source with splits of its own that
            lacks validation or test has them cut from train; one without train stays without.
    Raises:
        UserError: the source can't be found or read, a row is bad, or a split that is wanted comes out empty.
    """
    found = resolve(source, data_root)
    parts: dict[str, Examples] = {}
    for name, files in found.items():  # columns recognised in one split are required of all
        chosen = columns if not parts else next(iter(parts.values())).columns
        parts[name] = _read_files(files, chosen, skip_bad_rows)
        parts[name].recognised = columns is None or columns == Columns()
    whole = parts.pop("", None) or parts.pop("train", None)
    if whole is None:
        empty = next(iter(parts.values())).replace([])
        return Splits(empty, parts.get("validation", empty), parts.get("test", empty))
    wanted = tuple(0.0 if name in parts else share for name, share in zip(SPLITS, fractions, strict=True))
    cut = split(whole, wanted, seed)
    for (name, examples), share in zip(cut.items(), wanted, strict=True):
        if share > 0 and not examples:
            raise UserError(
                f"'{source}' has {len(whole)} rows, of which none fall into the {name} split at a share of {share:g}.",
                "Give more rows (in a .txt file, empty lines separate them), or a file for each split.",
            )
    return Splits(cut.train, parts.get("validation", cut.validation), parts.get("test", cut.test))


def read(
    source: str, columns: Columns | None = None, *, data_root: str | None = None, skip_bad_rows: bool = False
) -> Examples:
    """Read all rows of a source (its splits, if it has them, one after the other).

    Raises:
        UserError: the source can't be found or read, a column does not exist, or, unless ``skip_bad_rows``, a row is
            bad: broken UTF-8 or JSON, a column missing or null or not a text, an empty target.
    """
    found = resolve(source, data_root)
    return _read_files([file for name in ("", *SPLITS) for file in found.get(name, [])], columns, skip_bad_rows)


def part(
    source: str, name: str, columns: Columns | None = None, *, data_root: str | None = None, skip_bad_rows: bool = False
) -> Examples:
    """One split of a source as ``load`` gives it; where the source has it, nothing else is read."""
    found = resolve(source, data_root)
    if name in found:
        return _read_files(found[name], columns, skip_bad_rows)
    splits = load(source, columns, data_root=data_root, skip_bad_rows=skip_bad_rows)
    return dict(splits.items())[name]


def paired(source: str, columns: Columns | None = None, data_root: str | None = None) -> bool:
    """Does a source hold prompts and targets? Its first good row says so.

    Raises:
        UserError: the source can't be found or read, or a column does not exist.
    """
    files = next(iter(resolve(source, data_root).values()))
    row = next((row for file in files for row in kind(file).read(file) if not row.problem), None)
    return row is not None and choose(columns or Columns(), row).text is None


def exists(source: str) -> bool:
    """Is there a source of this name, from here and not in any data folder?"""
    return bool(_resolve_one(source))


def split(examples: Examples, fractions: tuple[float, ...] = (0.9, 0.05, 0.05), seed: int = 0) -> Splits:
    """Cut examples into train, validation and test by a hash of their normalised input.

    Where an example goes depends on its prompt (or text) and the seed alone: adding rows moves none, and rows with
    the same input (see ``normalise``) land together. Shares are therefore met only on average.
    """
    if len(fractions) != 3 or min(fractions) < 0 or not sum(fractions) > 0:
        raise UserError(f"split shares {fractions} must be three numbers of 0 or more.", "For example 0.9, 0.05, 0.05.")
    total = sum(fractions)
    if total in fractions:  # one share takes all: nothing to hash
        none = examples.replace([])
        return Splits(*(examples if share else none for share in fractions))
    rows: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in examples:
        place = unit_hash(normalise(key_text(example)), seed) * total
        index = 0 if place < fractions[0] else 1 if place < fractions[0] + fractions[1] or not fractions[2] else 2
        rows[SPLITS[index]].append(example)
    return Splits(
        examples.replace(rows["train"], examples.skipped),  # reported once
        examples.replace(rows["validation"]),
        examples.replace(rows["test"]),
    )


def key_text(example: Example) -> str:
    """What tells an example from another: its prompt, or its text."""
    return example.target if example.prompt is None else example.prompt


def normalise(text: str) -> str:
    """Fold case, width, punctuation and spaces, so that trivially different inputs are the same input."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_folding()).split()) or text


class _Folding(dict[int, int | str]):
    """A table for ``str.translate``: punctuation, separators and control characters become spaces. Grows as used."""

    def __missing__(self, code: int) -> int | str:
        self[code] = " " if unicodedata.category(chr(code))[0] in "PZC" else code
        return self[code]


@cache
def _folding() -> _Folding:
    return _Folding()


def resolve(source: str | Mapping[str, str], data_root: str | None = None) -> dict[str, list[str]]:
    """Find the files of a source: split name -> files; the name is empty where the source has no splits.

    A source is a file; a folder (of text files with one document each, of tables, or saved by ``datasets``); the
    common beginning of files ``NAME.train.jsonl.gz``, ``NAME.validation...``; ``hub:owner/name``; or a mapping from
    split names to any of these. What is not found from here is looked for in ``data_root`` (else $REDRAFT_DATA).

    Raises:
        UserError: nothing there, with the nearest name.
    """
    if isinstance(source, Mapping):
        return _resolve_mapping(source, data_root)
    root = data_root or os.environ.get("REDRAFT_DATA", "")
    places = [source] if not root or Path(source).is_absolute() else [source, str(Path(root) / source)]
    for place in places:
        if found := _resolve_one(place, root):
            return found
    known = sorted({name for place in places for name in _names_beside(place)})
    near = suggest(Path(source).name, known).partition("Known:")[0].strip()
    looked = f" or in '{root}'" if root else ""
    remedy = "" if root else "Name the folder with your data by --data-root or REDRAFT_DATA. "
    hub = f"For a set of the Hugging Face hub write hub:{source}." if source.count("/") == 1 else ""
    raise UserError(f"no file, folder or set '{source}' here{looked}.", f"{near} {remedy}{hub}".strip())


def kind(path: str) -> Source:
    """The kind of source a path is.

    Raises:
        UserError: none of the kinds in ``data/sources`` knows it.
    """
    kinds: list[Source] = [find("data.sources", name)() for name in names("data.sources")]
    for candidate in kinds:
        if candidate.matches(path):
            return candidate
    known = ", ".join(suffix for candidate in kinds for suffix in candidate.suffixes)
    raise UserError(f"can't tell what kind of data '{path}' is.", f"Known endings: {known} (some also with .gz).")


# finding files


def _resolve_mapping(source: Mapping[str, str], data_root: str | None) -> dict[str, list[str]]:
    found = {}
    for name, path in source.items():
        if name not in SPLITS:
            raise UserError(f"unknown split '{name}'.", suggest(name, SPLITS))
        found[name] = [file for files in resolve(path, data_root).values() for file in files]
    return found


def _resolve_one(place: str, root: str = "") -> dict[str, list[str]]:
    path = Path(place)
    if path.is_dir() or _holder(place):
        return _resolve_folder(place, root)
    if path.exists():
        return {"": [place]}
    siblings = [child for child in _children(path.parent) if child.name.startswith(f"{path.name}.")]
    found: dict[str, list[str]] = {}
    for child in siblings:
        if (part := _parts(child)) and part[0] == path.name and part[1]:
            found.setdefault(part[1], []).append(str(child))
    return found


def _holder(place: str) -> Source | None:
    """The source that has several splits under this one name, if any."""
    kinds = (find("data.sources", name) for name in names("data.sources"))
    return next((kind() for kind in kinds if kind.holds_splits and kind().matches(place)), None)


def _resolve_folder(place: str, root: str = "") -> dict[str, list[str]]:
    if holder := _holder(place):
        parts = {_SPLIT_WORDS.get(name, name): [path] for name, path in holder.splits(place, root).items()}
        if not parts:
            return {"": [place]}
        return {name: files for name, files in parts.items() if name in SPLITS} or {"": next(iter(parts.values()))}
    files = [(file, part) for file in sorted(Path(place).rglob("*")) if file.is_file() and (part := _parts(file))]
    if not files:
        raise UserError(f"folder '{place}' holds no data that can be read.", "See redraft's list of kinds of data.")
    kinds = {type(kind(str(file))).__name__ for file, _ in files}
    if len(kinds) > 1:
        raise UserError(f"folder '{place}' holds several kinds of data ({', '.join(sorted(kinds))}).", "Name one file.")
    if not all(name for _, (_, name) in files) or not any(name == "train" for _, (_, name) in files):
        return {"": [place] if kinds == {"Text"} else [str(file) for file, _ in files]}
    stems = {stem for _, (stem, _) in files}
    if len(stems) > 1:
        raise UserError(f"folder '{place}' holds several sets ({', '.join(sorted(stems))}).", "Name one of them.")
    found: dict[str, list[str]] = {}
    for file, (_, name) in files:
        found.setdefault(name, []).append(str(file))
    return found


def _parts(file: Path) -> tuple[str, str] | None:
    """``mt.train.jsonl.gz`` -> ("mt", "train"); a file without a split has ""; one that is no data has None."""
    stem = file.name.removesuffix(".gz")
    suffixes = [suffix for name in names("data.sources") for suffix in find("data.sources", name).suffixes]
    ending = next((suffix for suffix in suffixes if stem.lower().endswith(suffix)), None)
    if ending is None:
        return None
    stem = _SHARD_PART.sub("", stem[: -len(ending)])
    marks = list(_SPLIT_PART.finditer(stem))
    if not marks:
        return stem, ""
    mark = marks[-1]
    return stem[: mark.start()] + stem[mark.end() :], _SPLIT_WORDS[mark.group(1).lower()]


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _names_beside(place: str) -> set[str]:
    children = _children(Path(place).parent)
    return {child.name for child in children} | {part[0] for child in children if (part := _parts(child)) and part[1]}


# reading rows


def _read_files(files: list[str], columns: Columns | None, skip_bad_rows: bool) -> Examples:
    rows = (row for file in files for row in kind(file).read(file))
    wanted = columns or Columns()
    chosen: Columns | None = None
    taken: Callable[[Mapping[str, Any]], tuple[str | None, str]] | None = None
    examples: list[Example] = []
    skipped: list[Skipped] = []
    for row in rows:
        problem, pair = row.problem, None
        if not problem:
            if taken is None:
                chosen = choose(wanted, row)
                taken = _taker(chosen)
            try:
                pair = taken(row.values)
            except _BadRow as error:
                problem = str(error)
        if pair is not None:
            examples.append(Example(*pair, row.where, row.task))
        elif skip_bad_rows:
            skipped.append(Skipped(row.where, problem))
        else:
            raise UserError(f"{row.where}: {problem}.", "Mend the row, or leave out bad rows with --skip-bad-rows.")
    if not examples:
        first = f", the first: {skipped[0].where}: {skipped[0].reason}" if skipped else ""
        left = f" ({len(skipped)} bad rows left out{first})" if skipped else ""
        raise UserError(f"'{', '.join(files)}' holds no rows{left}.", "Give a file with data.")
    assert chosen is not None
    return Examples(examples, chosen, wanted == Columns(), skipped)


def choose(wanted: Columns, row: Row) -> Columns:
    """The columns to use, checked against (or, where none are named, recognised in) the first good row.

    Raises:
        UserError: a named column does not exist, or none are named and none are known.
    """
    present = list(row.values)
    if wanted == Columns():
        return _recognise(row)
    pair = wanted.input is not None or wanted.target is not None
    if sum((wanted.text is not None, wanted.messages is not None, pair)) > 1:
        raise UserError("more than one way to read the columns.", "Give --text, or --input and --target, not both.")
    if (wanted.input is None) != (wanted.target is None):
        raise UserError("only one of input and target is named.", "Give both --input and --target, or --text alone.")
    for name in (wanted.text, wanted.input, wanted.target, wanted.messages):
        for column in _joined(name, present) if name is not None else []:
            if column not in present and column.split(".")[0] not in present:
                raise UserError(f"{row.file} has no column '{column}'.", suggest(column, present))
    return wanted


def _recognise(row: Row) -> Columns:
    present = {name.lower(): name for name in row.values}
    if "messages" in present:
        return Columns(messages=present["messages"])
    for prompt, answer in _PAIRS:
        parts = [*prompt.split("+"), answer]
        if all(part in present for part in parts):
            return Columns(input="+".join(present[part] for part in parts[:-1]), target=present[answer])
    for name in _TEXTS:
        if name in present:
            return Columns(text=present[name])
    raise UserError(
        f"{row.file}: none of the columns has a name that is recognised ({', '.join(row.values)}).",
        "Name them with --text, or --input and --target.",
    )


class _BadRow(Exception):
    """Why a row can't be used."""


def _taker(columns: Columns) -> Callable[[Mapping[str, Any]], tuple[str | None, str]]:
    """A function from the values of a row to (prompt, target), for columns that were checked."""
    if columns.messages is not None:
        name = columns.messages
        return lambda values: _chat(values, name)
    if columns.text is not None:
        text = columns.text
        return lambda values: (None, _filled(_text(values, text), text))
    assert columns.input is not None and columns.target is not None
    prompt, target = columns.input, columns.target
    return lambda values: (_join(values, prompt), _filled(_join(values, target), target))


def _joined(name: str, present: Iterable[str]) -> list[str]:
    return [name] if name in present or "+" not in name else name.split("+")


def _join(values: Mapping[str, Any], name: str) -> str:
    parts = _joined(name, values)
    if len(parts) == 1:
        return _text(values, parts[0])
    return "\n".join(text for part in parts if (text := _text(values, part)))


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name) if name in values else _within(values, name)
    if not isinstance(value, str):
        found = "null" if value is None else f"not a text but {_JSON_NAMES.get(type(value), type(value).__name__)}"
        raise _BadRow(f"column '{name}' is {found if name in values or value is not None else 'missing'}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _BadRow(f"column '{name}' holds U+{ord(value[error.start]):04X}, half of a surrogate pair") from None
    return value


def _within(values: Mapping[str, Any], name: str) -> Any:
    """What ``answers.0.text`` names in nested objects and lists; None where there is nothing."""
    found: Any = values
    for part in name.split("."):
        if isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def _filled(text: str, name: str) -> str:
    if not text or text.isspace():
        raise _BadRow(f"column '{name}' is empty")
    return text


def _chat(values: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The last reply of the assistant and what precedes it: one message plain, several as ``role: content`` lines."""
    messages = values.get(name)
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise _BadRow(f"column '{name}' is not a list of messages with role and content")
    last = max((i for i, m in enumerate(messages) if m.get("role") == "assistant"), default=-1)
    if last < 1:
        raise _BadRow(f"column '{name}' has no reply of the assistant to a message before it")
    before = [(_text(m, "role"), _text(m, "content")) for m in messages[:last]]
    prompt = before[0][1] if len(before) == 1 else "\n".join(f"{role}: {content}" for role, content in before)
    return prompt, _filled(_text(messages[last], "content"), "content")


def unit_hash(text: str, seed: int) -> float:
    """A number in [0, 1) from a text and a seed, the same on every machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=seed.to_bytes(8, "little", signed=True)).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
