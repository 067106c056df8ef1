"""Finished pieces of work, kept in files so that an interrupted run continues where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.files import write_atomically

VERSION = 3  # of the content of an entry: raise it when older entries can't be used any more


class ResultCache:
    """One JSON file per finished piece of work, under ``FOLDER/cells``, named by a hash of everything it depends on.

    Files are written atomically. An interrupted run continues where it stopped, and a run that changes in one respect
    computes only what this change affects.

    Raises:
        UserError: the folder can't be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cells"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"Can't write to '{folder}': {error.strerror}."
            raise UserError(what, "Name another folder with --out.") from None

    def path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{digest({'version': VERSION, **key})}.json"

    def get(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """The value of a finished entry, or None if it must be computed. A damaged file counts as missing, and so does
        one with another key, or with a value that was changed since.

        Raises:
            UserError: there is something that can't be read, such as a folder.
        """
        path = self.path(key)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        except OSError as error:
            raise UserError(
                f"Can't read '{path}': {error.strerror}.", "Delete it: it is then computed again."
            ) from None
        if not isinstance(content, dict) or not isinstance(content.get("value"), dict):
            return None
        value: dict[str, Any] = content["value"]
        same = digest(content.get("key")) == digest(_as_json(key)) and content.get("digest") in (None, digest(value))
        return value if same else None

    def put(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Write a finished entry: its key and its value."""
        content = {"key": key, "value": value, "digest": digest(_as_json(value))}
        write_atomically(self.path(key), json.dumps(content, ensure_ascii=False) + "\n")


def _as_json(value: Any) -> Any:
    """Plain values as they come back from a file."""
    return json.loads(json.dumps(value))


def digest(value: Any) -> str:
    """A short hash of plain values and dataclasses, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"a {type(value).__name__} can't be part of a cache key")
