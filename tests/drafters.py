"""Untrained drafters for models on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redraft
from redraft.conversion import convert_family
from redraft.model import Model
from redraft.targets import Target, fingerprint


def drafter_for(folder: Path, **fields: Any) -> Model:
    """A new drafter for the autoregressive model in a folder."""
    main = redraft.load(folder, "cpu")
    made = convert_family(main, {"name": "drafter", **fields})
    made.target = Target(str(folder), fingerprint(main.network))
    return made
