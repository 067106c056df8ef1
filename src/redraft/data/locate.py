"""Finding the files of a source and its splits: files, folders, common name beginnings, the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from redraft.data.rows import Source
from redraft.errors import UserError, suggest
from redraft.registry import find, names

SPLITS = ("train", "validation", "test")
_SPLIT_WORDS = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
_SPLIT_PART = re.compile(rf"(?:^|[._-])({'|'.join(_SPLIT_WORDS)})(?=$|[._-])", re.IGNORECASE)
_SHARD_PART = re.compile(r"-\d+-of-\d+$")


def resolve(source: str | Mapping[str, str], data_root: str | None = None) -> dict[str, list[str]]:
    """Find the files of a source: split name -> files. The split name is empty if the source has no splits.

    A source is a file; a folder (of text files with one document each, of tables, or saved by ``datasets``); the
    common beginning of files ``NAME.train.jsonl.gz``, ``NAME.validation...``; ``hub:owner/name``; or a mapping from
    split names to any of these. A relative path is looked up in the working directory, then in ``data_root`` (default:
    $REDRAFT_DATA).

    Raises:
        UserError: nothing is found; the message suggests the nearest name.
    """
    if isinstance(source, Mapping):
        return _resolve_mapping(source, data_root)
    root = data_root or os.environ.get("REDRAFT_DATA", "")
    paths = [source] if not root or Path(source).is_absolute() else [source, str(Path(root) / source)]
    for path in paths:
        if found := _resolve_path(path, root):
            return found
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


def _resolve_mapping(source: Mapping[str, str], data_root: str | None) -> dict[str, list[str]]:
    found = {}
    for name, path in source.items():
        if name not in SPLITS:
            raise UserError(f"Unknown split '{name}'.", suggest(name, SPLITS))
        found[name] = [file for files in resolve(path, data_root).values() for file in files]
    return found


def _resolve_path(name: str, root: str = "") -> dict[str, list[str]]:
    path = Path(name)
    if path.is_dir() or _splitting_source(name):
        return _resolve_folder(name, root)
    if path.exists():
        return {"": [name]}
    siblings = [child for child in _children(path.parent) if child.name.startswith(f"{path.name}.")]
    found: dict[str, list[str]] = {}
    for child in siblings:
        if (parts := _parts(child)) and parts[0] == path.name and parts[1]:
            found.setdefault(parts[1], []).append(str(child))
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
    files = [(file, part) for file in sorted(Path(folder).rglob("*")) if file.is_file() and (part := _parts(file))]
    if not files:
        endings = ", ".join(suffix for name in names("data.sources") for suffix in find("data.sources", name).suffixes)
        raise UserError(f"Folder '{folder}' holds no data files.", f"Use one of these file name endings: {endings}.")
    kinds = {type(source_kind(str(file))).__name__ for file, _ in files}
    if len(kinds) > 1:
        raise UserError(
            f"Folder '{folder}' holds several kinds of data ({', '.join(sorted(kinds))}).", "Name one file of it."
        )
    if not all(name for _, (_, name) in files) or not any(name == "train" for _, (_, name) in files):
        return {"": [folder] if kinds == {"Text"} else [str(file) for file, _ in files]}
    stems = {stem for _, (stem, _) in files}
    if len(stems) > 1:
        raise UserError(f"Folder '{folder}' holds several sets ({', '.join(sorted(stems))}).", "Name one of them.")
    found: dict[str, list[str]] = {}
    for file, (_, name) in files:
        found.setdefault(name, []).append(str(file))
    return found


def _parts(file: Path) -> tuple[str, str] | None:
    """``mt.train.jsonl.gz`` -> ("mt", "train"). The split is "" if the name has none; None for other kinds of file."""
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


def _names_beside(path: str) -> set[str]:
    children = _children(Path(path).parent)
    return {child.name for child in children} | {part[0] for child in children if (part := _parts(child)) and part[1]}
