"""Writes the chosen decoding configuration into the generation settings of a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from redraft import config
from redraft.errors import UserError
from redraft.files import atomic_folder, check_writable, read_json, write_atomically
from redraft.gguf_file import is_gguf
from redraft.loading import resolve
from redraft.options import search_space
from redraft.settings import Settings
from redraft.shipped import zoo

_PARTS = {"sampler", "options", "cache", "cache_options"}  # besides the settings that declare values to try
TUNED = frozenset(_PARTS | set(search_space(Settings)))  # settings that the choice replaces, where a model has them


def check_place(name: str, to: Path | None) -> Path:
    """The folder whose generation settings will be written.

    Raises:
        UserError: a shipped checkpoint, whose files have checksums, a public one in another format, or a folder that
            can't be written.
    """
    folder = resolve(name)
    if is_gguf(folder) or "redraft_format" not in read_json(folder / "config.json"):
        raise UserError(
            f"'{name}' is a checkpoint in another format: settings can't be stored beside it.",
            "Use --dry-run, or convert it first: redraft convert SRC DST.",
        )
    if to is not None:
        if to.exists():
            raise UserError(f"'{to}' exists already.", "Name a new folder with --to.")
        check_writable(to, folder=True)
        return to
    if folder in zoo().values():
        raise UserError(
            f"'{name}' is a shipped checkpoint: its files have checksums.",
            "Name a folder for a tuned copy with --to, or use --dry-run.",
        )
    check_writable(folder / "generation_config.json")
    return folder


def save_choice(name: str, place: Path, generation: dict[str, Any]) -> None:
    """Write the choice into the generation settings in ``place``, atomically; other settings stay.

    ``place`` is the folder of the model, or that of a copy that is made.

    Raises:
        UserError: the settings that the model has are not valid.
    """
    source = resolve(name)
    old = source / "generation_config.json"
    defaults = read_json(old) if old.exists() else {}
    merged = {key: value for key, value in defaults.items() if key not in TUNED} | generation
    config.build(Settings, merged, str(old))
    text = json.dumps(merged, indent=2) + "\n"
    if place == source:
        write_atomically(old, text)
        return
    with atomic_folder(place) as new:
        for file in source.iterdir():
            if file.is_file():
                shutil.copyfile(file, new / file.name)
        write_atomically(new / "generation_config.json", text)
