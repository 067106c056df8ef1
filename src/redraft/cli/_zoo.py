"""Shipped checkpoints: where they lie, what their cards say, whether their bytes are what was shipped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"  # in the format of sha256sum


def folder() -> Path | None:
    """The folder of shipped checkpoints, or None where there are none."""
    from redraft.shipped import zoo

    return next((path.parent for path in zoo().values()), None)


def check(root: Path) -> dict[str, str]:
    """State of every file listed in the checksum file: intact, missing or damaged. Where there is none: unlisted."""
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
    """What a checkpoint says of itself: its configuration, its size on disk, the first paragraph of its card."""
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
