"""The rules of the code base hold (see ``tests/house.py``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import house

SOURCES = house.files(house.SOURCE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(house.SOURCE)))
def test_a_file_keeps_the_rules(path: Path) -> None:
    assert not list(house.problems(path))


def test_there_is_no_circle_of_imports() -> None:
    assert not house.circles()


def test_the_checks_find_what_they_are_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "ROOT", tmp_path)
    monkeypatch.setattr(house, "SOURCE", tmp_path)
    body = "\n".join(f"    x = {number}" for number in range(61))
    bad = tmp_path / "bad.py"
    bad.write_text(
        f"from torch import Tensor\n\ndef long() -> None:\n{body}\n\n"
        "def shapeless(x: Tensor) -> Tensor:\n    return x\n\n"
        "def raising() -> None:\n    raise ValueError('no')\n\n"
        "def looking(sampler: object) -> bool:\n    return hasattr(sampler, 'hook')\n" + "\n" * 400
    )
    found = "\n".join(house.problems(bad))
    for part in ("lines, at most 400", "no docstring", "at most 60", "gives no shape", "raises ValueError", "'hook'"):
        assert part in found
