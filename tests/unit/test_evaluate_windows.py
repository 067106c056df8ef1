"""Plain texts are scored in windows of the length that a model was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

import redraft
from redraft.data.examples import read
from redraft.evaluation.evaluate import likelihood
from redraft.train.loop import train
from redraft.train.recipe import Recipe


@pytest.mark.parametrize("family", ["autoregressive", "masked"])
def test_texts_are_scored_in_windows_of_the_training(family: str, tmp_path: Path) -> None:
    """A model that was trained on 16 tokens has never seen position 100, though its context reaches there."""
    file = tmp_path / "texts.txt"
    file.write_text(
        "\n\n".join(f"{n} times all work and no play makes jack a dull boy " * 4 for n in range(60)), encoding="utf-8"
    )
    data = {"source": str(file), "length": 16}
    tables = {"data": data, "tokenizer": {"kind": "bytes"}, "model": {"preset": "toy"}, "family": {"name": family}}
    train(Recipe.of({**tables, "train": {"tokens": 500, "batch_tokens": 128}}), tmp_path / "run")
    model = redraft.load(str(tmp_path / "run"), "cpu")
    assert model.trained_length == 16
    rows = read(str(file))
    found = likelihood(model, rows, 2, 0)
    model.trained_length = 0  # the whole context
    whole = likelihood(model, rows, 2, 0)
    assert found.tokens != whole.tokens or found.bits_per_byte != whole.bits_per_byte
    model.trained_length = 10_000  # beyond the context, which then decides
    assert likelihood(model, rows, 2, 0) == whole
