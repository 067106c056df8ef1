"""Fixtures: a folder of tiny untrained checkpoints, and the command line in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.door import PAIRS, Answer, Redraft, write


@pytest.fixture
def redraft(zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Redraft:
    """``redraft("generate", "--model", ...)``, in this process."""
    from redraft.cli._main import main

    monkeypatch.setenv("REDRAFT_ZOO", str(zoo))
    monkeypatch.delenv("REDRAFT_DATA", raising=False)

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        got = capsys.readouterr()
        return Answer(code, got.out, got.err)

    return call


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Untrained models with the names of shipped ones, of two families, for pairs and for plain text."""
    from redraft.data.tokenizer import Tokenizer
    from redraft.model import Model
    from redraft.presets import preset

    folder = tmp_path_factory.mktemp("zoo")
    tokenizer = Tokenizer.train([text for pair in PAIRS for text in pair.values()], 300)
    shape = preset("toy", tokenizer.vocab_size, dim=32, max_length=256)
    for family in ("masked", "autoregressive"):
        pairs = Model.fresh({"name": family}, tokenizer, shape, paired=True, seed=1)
        pairs.save(folder / f"translate-en-de-{family}", card=f"# Tiny {family}\n\nUntrained, for tests.\n")
        pairs.save(folder / f"multiply-{family}", card=f"# Tiny {family}\n\nUntrained, for tests.\n")
        Model.fresh({"name": family}, tokenizer, shape, paired=False, seed=1).save(folder / f"base-{family}")
    yield folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", PAIRS)
