"""Finding the files of a source and its splits: files, folders, common name beginnings, the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from redraft.data.rows import Source, broken_link, check_regular
from redraft.errors import UserError, suggest
from redraft.registry import find, names

SPLITS = ("train", "validation", "test")
# The words by which the ``datasets`` library recognises splits, too.
_SPLIT_WORDS = (
    dict.fromkeys(("train", "training"), "train")
    | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
    | dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
)
_SPLIT_PART = re.compile(rf"(?:^|(?<=[._\-\s()]))({'|'.join(_SPLIT_WORDS)})(?=$|[._\-\s()\d])", re.IGNORECASE)
# What may follow the word in the name of one of several files: -00000-of-00001-<hash>, 2, " (1)", _003.
_SHARD_PART = re.compile(r"(?:[._\-\s]*(?:\d+-of-\d+(?:-[0-9a-f]{8,})?|\d+|\(\d+\)))?[._\-\s]*")
_NO_DATA = re.compile(  # files that lie beside data: texts about them, and descriptions of the ``datasets`` library
    r"(readme|licen[cs]e|changelog|citation|contributing|authors|notice)([._-].*)?|dataset_infos?\.json|dataset_dict\.json"
    r"|state\.json|config\.json",
    re.IGNORECASE,
)
_COMPRESSED = (".zst", ".xz", ".bz2", ".zip", ".lz4", ".7z")  # not read
_SHOWN = 6  # files that an error lists


def resolve(source: str | Mapping[str, str], data_root: str | None = None) -> dict[str, list[str]]:
    """Find the files of a source: split name -> files. The split name is empty if the source has no splits.

    A source is a file; a folder (of text files with one document each, of tables, or saved by ``datasets``); the
    common beginning of files ``NAME.train.jsonl.gz``, ``NAME.validation...``; ``hub:owner/name``; or a mapping from
    split names to any of these. A relative path is looked up in the working directory, then in ``data_root`` (default:
    $REDRAFT_DATA).

    The split of a file in a folder is a word (``train``, ``dev``, ``test`` ...) in its name or in that of a folder
    above it: ``train-00000-of-00002-<hash>.parquet``, ``test 2.jsonl``, ``dev/a.jsonl``. Hidden files, and texts about
    the data such as README.md, are not data.

    Raises:
        UserError: nothing is found (the message suggests the nearest name), or the splits of a folder are ambiguous.
    """
    if isinstance(source, Mapping):
        return _resolve_mapping(source, data_root)
    root = data_root or os.environ.get("REDRAFT_DATA", "")
    paths = [source] if not root or Path(source).is_absolute() else [source, str(Path(root) / source)]
    for path in paths:
        if found := _resolve_path(path, root):
            return found
    for path in paths:
        if broken := broken_link(path):
            raise broken
    known = sorted({name for path in paths for name in _names_beside(path)})
    near = suggest(Path(source).name, known).partition("Known:")[0].strip()
    looked = f" or in '{root}'" if root else ""
    remedy = "" if root else "Name the folder of your data with --data-root or REDRAFT_DATA. "
    hub = f"For a data set of the Hugging Face hub write hub:{source}." if source.count("/") == 1 else ""
    raise UserError(
        f"There is no file, folder or set '{source}' in the working directory{looked}.",
        f"{near} {remedy}{hub}".strip() or "Check the name.",
    )


def is_source(path: str) -> bool:
    """Is there a source at this path, data folders aside?"""
    return bool(_resolve_path(path))


def source_kind(path: str) -> Source:
    """The kind of source that reads a path.

    Raises:
        UserError: no kind in ``data/sources`` matches the path.
    """
    kinds: list[Source] = [find("data.sources", name)() for name in names("data.sources")]
    for candidate in kinds:
        if candidate.matches(path):
            return candidate
    known = ", ".join(suffix for candidate in kinds for suffix in candidate.suffixes)
    raise UserError(
        f"The kind of data in '{path}' is not recognised.",
        f"Use one of these file name endings: {known} (some also with .gz).",
    )


def data_files(folder: str) -> list[str]:
    """The data files of a folder and of the folders in it, sorted, without hidden files and texts about the data.

    Raises:
        UserError: a link to a file that does not exist, or a compressed file that can't be read.
    """
    found = []
    for file in sorted(Path(folder).rglob("*")):
        if any(part.startswith((".", "__")) for part in file.relative_to(folder).parts) or _NO_DATA.fullmatch(
            file.name
        ):
            continue
        packed = file.name.lower().endswith(_COMPRESSED) and _stem(file.with_suffix("")) is not None
        if not packed and _stem(file) is None:
            continue
        if broken := broken_link(str(file)):
            raise broken
        if not file.is_file():
            continue
        if packed:
            raise UserError(f"'{file}' is compressed in a way that is not read.", "Unpack it, or pack it with gzip.")
        found.append(str(file))
    return found


def _resolve_mapping(source: Mapping[str, str], data_root: str | None) -> dict[str, list[str]]:
    found = {}
    for name, path in source.items():
        if name not in SPLITS:
            raise UserError(f"Unknown split '{name}'.", suggest(name, SPLITS))
        found[name] = [file for files in resolve(path, data_root).values() for file in files]
    return found


def _resolve_path(name: str, root: str = "") -> dict[str, list[str]]:
    if os.path.isdir(name) or _splitting_source(name):
        return _resolve_folder(name, root)
    if os.path.exists(name):
        check_regular(name)
        return {"": [name]}
    path, found = Path(name), dict[str, list[str]]()
    for child in _children(path.parent):
        if not child.name.startswith(f"{path.name}.") or (stem := _stem(child)) is None:
            continue
        if (mark := _SPLIT_PART.match(stem, len(path.name) + 1)) and _SHARD_PART.fullmatch(stem, mark.end()):
            found.setdefault(_SPLIT_WORDS[mark[1].lower()], []).append(str(child))
    return found


def _splitting_source(path: str) -> Source | None:
    """The source that holds several splits under this one path, if any."""
    kinds = (find("data.sources", name) for name in names("data.sources"))
    return next((kind() for kind in kinds if kind.holds_splits and kind().matches(path)), None)


def _resolve_folder(folder: str, root: str = "") -> dict[str, list[str]]:
    if source := _splitting_source(folder):
        parts = {_SPLIT_WORDS.get(name, name): [path] for name, path in source.splits(folder, root).items()}
        if not parts:
            return {"": [folder]}
        return {name: files for name, files in parts.items() if name in SPLITS} or {"": next(iter(parts.values()))}
    files = data_files(folder)
    if not files:
        endings = ", ".join(suffix for name in names("data.sources") for suffix in find("data.sources", name).suffixes)
        raise UserError(f"Folder '{folder}' holds no data files.", f"Use one of these file name endings: {endings}.")
    kinds = {type(source_kind(file)).__name__: file for file in reversed(files)}
    if len(kinds) > 1:
        raise UserError(
            f"Folder '{folder}' holds several kinds of data ({', '.join(sorted(kinds))}): {_listed(kinds.values())}.",
            "Name one file of it.",
        )
    found: dict[str, list[str]] = {}
    sets: dict[str, str] = {}
    for file in files:
        split, rest, place = _split_of(Path(folder), Path(file))
        members = found.setdefault(split, [])
        if split:
            sets.setdefault(rest, file)
        # A folder of text files holds one document in each file.
        path = str(place) if place is not None and "Text" in kinds else file
        if path not in members:
            members.append(path)
    if set(found) == {""}:
        return {"": [folder] if "Text" in kinds else files}
    if "" in found:
        words = ", ".join(name for name in SPLITS if name in found)
        raise UserError(
            f"Folder '{folder}' has files for {words}, and others of which no name tells the split: "
            f"{_listed(found[''])}.",
            "Move them away, or put a word such as train or test into their names.",
        )
    if len(sets) > 1:
        raise UserError(f"Folder '{folder}' holds several sets: {_listed(sets.values())}.", "Name one of them.")
    return {name: found[name] for name in SPLITS if name in found}


def _split_of(folder: Path, file: Path) -> tuple[str, str, Path | None]:
    """The split of a file in a folder, "" if no name tells it; the name of its set; the folder that names the split.

    Raises:
        UserError: the names tell two splits.
    """
    inside = file.relative_to(folder).parts
    found: list[tuple[str, str, Path | None]] = []
    for depth, part in enumerate((*inside[:-1], _stem(file) or "")):
        for mark in _SPLIT_PART.finditer(part):
            shard = _SHARD_PART.match(part, mark.end())
            left = part[: mark.start()] + part[shard.end() if shard else mark.end() :]
            rest = str(Path(*inside[:depth], left.strip("._- ")))
            place = folder.joinpath(*inside[: depth + 1]) if depth < len(inside) - 1 else None
            found.append((_SPLIT_WORDS[mark[1].lower()], rest, place))
    words = {split for split, _, _ in found}
    if len(words) > 1:
        raise UserError(
            f"The name of '{file}' tells several splits ({', '.join(sorted(words))}).", "Rename the file or its folder."
        )
    return found[0] if found else ("", "", None)


def _stem(file: Path) -> str | None:
    """``mt.train.jsonl.gz`` -> ``mt.train``; None for a file of no known kind."""
    stem = file.name.removesuffix(".gz")
    suffixes = [suffix for name in names("data.sources") for suffix in find("data.sources", name).suffixes]
    ending = next((suffix for suffix in suffixes if stem.lower().endswith(suffix)), None)
    return None if ending is None else stem[: -len(ending)]


def _listed(files: Iterable[str]) -> str:
    found = sorted(files)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _names_beside(path: str) -> set[str]:
    """Names of files, and of sets of files with splits, in the folder of a path."""
    found = set()
    for child in _children(Path(path).parent):
        found.add(child.name)
        if (stem := _stem(child)) is not None and (mark := _SPLIT_PART.search(stem)) and mark.start() > 0:
            found.add(stem[: mark.start() - 1])
    return found
