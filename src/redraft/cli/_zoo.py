"""Shipped checkpoints: their folder, their model cards, and their checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"  # written by sha256sum


def folder() -> Path | None:
    """The folder of shipped checkpoints, or None if there are none."""
    from redraft.shipped import zoo

    return next((path.parent for path in zoo().values()), None)


def check(root: Path) -> dict[str, str]:
    """State of every file in the checksum file: intact, missing or damaged. Without a checksum file: unlisted."""
    sums = root / SUMS
    if not sums.is_file():
        return {str(path.relative_to(root)): "unlisted" for path in root.glob("*/*.safetensors")}
    states = {}
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = root / name
        if not path.is_file():
            states[name] = "missing"
        else:
            states[name] = "intact" if hashlib.sha256(path.read_bytes()).hexdigest() == digest else "damaged"
    return states


def facts(model: Path) -> dict[str, Any]:
    """Name, folder, size on disk, configuration, and the first paragraph of the model card of a checkpoint."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in model.iterdir() if path.is_file())
    return {"name": model.name, "path": str(model), "megabytes": round(size / 1e6, 2), "config": config} | _card(model)


def _card(model: Path) -> dict[str, str]:
    card = model / "README.md"
    if not card.is_file():
        return {}
    paragraphs = [p.strip() for p in card.read_text(encoding="utf-8").split("\n\n")]
    text = next((p for p in paragraphs if p and not p.startswith(("#", "---"))), "")
    return {"card": " ".join(text.split())}
