"""Shipped checkpoints, by name."""

from __future__ import annotations

import os
from pathlib import Path


def zoo() -> dict[str, Path]:
    """The folders of shipped checkpoints by name: those under $REDRAFT_ZOO, else under ``zoo/`` of the checkout."""
    root = Path(os.environ.get("REDRAFT_ZOO") or Path(__file__).parents[2] / "zoo")
    return {path.parent.name: path.parent for path in sorted(root.glob("*/config.json"))}
