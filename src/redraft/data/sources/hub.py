"""Hub: sets of Hugging Face ``datasets``, from a folder (``save_to_disk``) or as ``hub:owner/name[:config]``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from redraft.data.rows import Row, Source, check_names
from redraft.errors import UserError, suggest

_MARKS = ("dataset_dict.json", "dataset_info.json", "state.json")


class Hub(Source):
    """A final ``#split`` names one split. Needs the ``datasets`` package. Only ``hub:`` paths use the network."""

    holds_splits = True

    def matches(self, path: str) -> bool:
        return path.startswith("hub:") or any(os.path.isfile(Path(path.partition("#")[0]) / mark) for mark in _MARKS)

    def splits(self, path: str, data_root: str | None = None) -> dict[str, str]:
        if "#" in path:
            return {}
        data = _open(path)
        return {name: f"{path}#{name}" for name in data} if isinstance(data, dict) else {}

    def read(self, path: str) -> Iterator[Row]:
        name, _, part = path.partition("#")
        data = _open(name)
        if isinstance(data, dict):
            if part not in data:
                raise UserError(f"Data set '{name}' has no split '{part}'.", suggest(part, data))
            data = data[part]
        check_names(data.column_names or (), path)
        for number, values in enumerate(data, 1):
            yield Row(values, path, number)


@lru_cache(maxsize=1)  # opening is slow, and splits() is followed by one read() for each split
def _open(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"Reading '{name}' needs the datasets package.", "Install it: pip install 'redraft[train]'"
        ) from None
    try:
        if not name.startswith("hub:"):
            return datasets.load_from_disk(name)
        owner, _, config = name.removeprefix("hub:").partition(":")
        return datasets.load_dataset(owner, config or None)
    except Exception as error:  # the package raises many types: no network, unknown set, a broken file
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise UserError(f"Data set '{name}' can't be opened: {reason}", "Check its name and the network.") from None
