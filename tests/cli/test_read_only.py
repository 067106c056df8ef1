"""Places that can't be written, for every command that writes: an error before the work, with exit code 2."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redraft import loading
from redraft.data.sources.jsonl import Jsonl
from tests.cli.door import Redraft
from tests.cli.test_bad_input import refused

COLUMNS = ("--input", "question", "--target", "answer")
VERBS = ("train", "finetune", "compare", "convert", "evaluate", "tune", "demo")
SHORT = ("--family", "masked", "--preset", "toy", "--tokens", "1000")


class Work(Exception):
    """The command has begun to work."""


@pytest.fixture(params=[errno.EROFS, errno.EACCES, errno.ENOSPC])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which nothing can be written: read-only, without permission, or on a full disk.

    The errors are simulated, because permissions don't bind the superuser.
    """
    folder = tmp_path / "locked"
    folder.mkdir()

    def guarded(call: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def guard(path: Any, *given: Any, **named: Any) -> Any:
            if isinstance(path, str | os.PathLike) and str(path).startswith(str(folder)) and writes(*given, **named):
                raise OSError(request.param, os.strerror(request.param), str(path))
            return call(path, *given, **named)

        return guard

    def flags(flags: int = 0, *_: Any, **__: Any) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    def mode(mode: str = "r", *_: Any, **__: Any) -> bool:
        return any(letter in mode for letter in "wax+")

    monkeypatch.setattr(os, "mkdir", guarded(os.mkdir, lambda *_, **__: True))
    monkeypatch.setattr(os, "open", guarded(os.open, flags))
    monkeypatch.setattr(io, "open", guarded(io.open, mode))
    return folder


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading data and loading models would be work."""

    def work(*_: Any, **__: Any) -> Any:
        raise Work

    monkeypatch.setattr(Jsonl, "read", work)
    monkeypatch.setattr(loading, "_progress", work)  # of reading weights


def commands(pairs: Path, place: Path, zoo: Path) -> dict[str, list[object]]:
    model, data = zoo / "translate-en-de-masked", ["--data", pairs, *COLUMNS]
    new = place / "deep" / "new"
    return {
        "train": ["train", *data, *SHORT, "--out", new],
        "finetune": ["finetune", "--from", model, *data, "--tokens", "1000", "--out", new],
        "compare": ["compare", *data, "--budget-tokens", "1000", "--out", new],
        "convert": ["convert", model, new],
        "evaluate": ["evaluate", "--model", model, *data, "--out", place / "texts.jsonl"],
        "tune": ["tune", "--model", model, *data, "--all-rows", "--dry-run", "--out", new],
        "demo": ["demo", "--out", new],
    }


@pytest.mark.parametrize("verb", VERBS)
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    redraft: Redraft, pairs: Path, place: Path, zoo: Path, no_work: None, verb: str
) -> None:
    answer = redraft(*commands(pairs, place, zoo)[verb])
    refused(answer, "locked")
    assert any(word in answer.err for word in ("Read-only", "Permission denied", "no space left"))
    assert not any(place.iterdir())


def test_the_command_lines_of_this_test_work_elsewhere(
    redraft: Redraft, pairs: Path, tmp_path: Path, zoo: Path, no_work: None
) -> None:
    for verb in VERBS:
        with pytest.raises(Work):
            redraft(*commands(pairs, tmp_path / verb, zoo)[verb])


def test_tune_finds_a_model_whose_settings_cannot_be_written(
    redraft: Redraft, pairs: Path, place: Path, zoo: Path, tmp_path: Path, no_work: None
) -> None:
    given = ["--data", pairs, *COLUMNS, "--all-rows", "--out", tmp_path / "tuning"]
    refused(redraft("tune", "--model", zoo / "base-masked", *given, "--to", place / "copy"), "locked")
    assert not (tmp_path / "tuning").exists()


def test_report_is_refused_before_it_reads_the_pieces(
    redraft: Redraft, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redraft.compare import run
    from redraft.compare.prepared import Prepared

    def measure(_: Any) -> None:
        raise Work

    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(Prepared, "load", lambda folder: None)
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([folder]))
    refused(redraft("report", place), "locked")
