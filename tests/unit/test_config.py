"""Configuration files: extension of other files, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from redraft.config import read_toml
from redraft.errors import UserError
from redraft.files import write_atomically


def test_a_file_extends_another_table_by_table(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("name = 'base'\n[train]\nsteps = 5\nlr = 0.1\n")
    (tmp_path / "own.toml").write_text("extends = 'base.toml'\nname = 'own'\n[train]\nsteps = 7\n")
    assert read_toml(tmp_path / "own.toml") == {"name": "own", "train": {"steps": 7, "lr": 0.1}}


@pytest.mark.parametrize(
    ("content", "word"),
    [("extends = 'a.toml'", "itself"), ("extends = 5", "extends"), ("extends = 'b.toml'", "b.toml"), ("=", "TOML")],
)
def test_wrong_files_are_refused(tmp_path: Path, content: str, word: str) -> None:
    (tmp_path / "a.toml").write_text(content)
    with pytest.raises(UserError, match=word):
        read_toml(tmp_path / "a.toml")


def test_a_folder_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="read"):
        read_toml(tmp_path)


def test_writing_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="write"):
        write_atomically(tmp_path / "file" / "x", "content")
