"""Hub: sets of Hugging Face ``datasets``, from a folder (``save_to_disk``) or as ``hub:owner/name[:config]``.

``stream:owner/name[:config]`` reads the rows over the network as they are needed, without downloading the set first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from redraft.data.rows import Row, Source, check_names
from redraft.errors import UserError, suggest

_HUB, _STREAM = _ONLINE = ("hub:", "stream:")
_MARKS = ("dataset_dict.json", "dataset_info.json", "state.json")


class Hub(Source):
    """A final ``#split`` names a split. Needs the package ``datasets``; ``hub:`` and ``stream:`` use the network."""

    holds_splits = True

    def matches(self, path: str) -> bool:
        return path.startswith(_ONLINE) or any(os.path.isfile(Path(path.partition("#")[0]) / mark) for mark in _MARKS)

    def splits(self, path: str, data_root: str | None = None) -> dict[str, str]:
        if "#" in path:
            return {}
        data = _open(path)
        return {name: f"{path}#{name}" for name in data} if isinstance(data, dict) else {}

    def read(self, path: str) -> Iterator[Row]:
        return self.read_from(path, 0)

    def read_from(self, path: str, row: int) -> Iterator[Row]:
        """The rows of a set without its first ``row`` ones.

        Raises:
            UserError: the set can't be opened, or (while rows come over the network) can't be read.
        """
        name, _, part = path.partition("#")
        data = _open(name)
        if isinstance(data, dict):
            if part not in data:
                raise UserError(f"Data set '{name}' has no split '{part}'.", suggest(part, data))
            data = data[part]
        check_names(data.column_names or (), path)
        done = row
        try:
            for values in data.skip(row) if row else data:
                done += 1
                yield Row(values, path, done)
        except Exception as error:  # as in _open
            if not name.startswith(_STREAM):
                raise
            what = f"Data set '{name}' can't be read after row {done:,}: {_reason(error)}"
            raise UserError(what, "Check the network, and run the same command again.") from None

    def count(self, path: str) -> int | None:
        name, _, part = path.partition("#")
        if name.startswith(_STREAM):
            return None
        data = _open(name)
        return len(data[part] if isinstance(data, dict) else data)


@lru_cache(maxsize=1)  # opening is slow, and splits() is followed by one read() for each split
def _open(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"Reading '{name}' needs the datasets package.", "Install it: pip install 'redraft[train]'"
        ) from None
    try:
        if not name.startswith(_ONLINE):
            return datasets.load_from_disk(name)
        streaming = name.startswith(_STREAM)
        owner, _, config = name.removeprefix(_STREAM if streaming else _HUB).partition(":")
        return datasets.load_dataset(owner, config or None, streaming=streaming)
    except Exception as error:  # the package raises many types: no network, unknown set, a broken file
        raise UserError(
            f"Data set '{name}' can't be opened: {_reason(error)}", "Check its name and the network."
        ) from None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)
