"""Shipped checkpoints and packaged models: where they are, their model cards, and their checksums."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.files import write_atomically

if TYPE_CHECKING:
    from redraft.shipped import PackagedModel

SUMS = "SHA256SUMS"  # in the form of sha256sum


def list_checksums(root: Path) -> None:
    """Write the checksum file: every file of every checkpoint, and the rows that they are measured on."""
    files = sorted(path for path in root.glob("*/*") if path.is_file())
    digests = ((hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(root).as_posix()) for path in files)
    write_atomically(root / SUMS, "".join(f"{digest}  {name}\n" for digest, name in digests))


def check(root: Path, folder: str = "*") -> dict[str, str]:
    """State of every file in the checksum file, or of those of one folder: intact, missing or damaged.

    Without a checksum file: unlisted.
    """
    sums = root / SUMS
    if not sums.is_file():
        return {str(path.relative_to(root)): "unlisted" for path in root.glob(f"{folder}/*.safetensors")}
    states = {}
    for line in sums.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        path = root / name
        if folder not in ("*", path.parent.name):
            continue
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


def packaged_facts() -> list[dict[str, Any]]:
    """The same about pretrained models in Python packages; ``path`` is None if the package is not installed."""
    from redraft.shipped import PACKAGED

    rows = []
    for name, model in PACKAGED.items():
        path = model.path
        size = 0 if path is None else path.stat().st_size
        card = f"{model.summary}, from the package {model.package} ({model.licence})."
        card += "" if path is not None else " To install it: make pretrained."
        about = {"path": None if path is None else str(path), "megabytes": round(size / 1e6, 2), "card": card}
        rows.append({"name": name, **about, "package": model.package, "origin": model.origin})
    return rows


def packaged_state(model: PackagedModel) -> str:
    """Of a packaged model: "not installed", or as ``sha256`` in the package's own list says, intact or damaged."""
    path = model.path
    if path is None:
        return "not installed"
    listed = metadata.files(model.package.partition("==")[0]) or []
    recorded = next((file.hash for file in listed if str(file) == model.file), None)
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").digest()
    same = recorded is None or recorded.value == base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return "intact" if same else "damaged"


def _card(model: Path) -> dict[str, str]:
    card = model / "README.md"
    if not card.is_file():
        return {}
    paragraphs = [p.strip() for p in card.read_text(encoding="utf-8").split("\n\n")]
    text = next((p for p in paragraphs if p and not p.startswith(("#", "---"))), "")
    return {"card": " ".join(text.split())}
