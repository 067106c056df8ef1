"""What a model's own generation settings yield to."""

from __future__ import annotations

from typing import Any

import pytest

from redraft.data.tokenizer import Tokenizer
from redraft.evaluation.decoding import DecodingConfig
from redraft.model import Model
from redraft.presets import preset


@pytest.fixture(scope="module")
def model() -> Model:
    tokenizer = Tokenizer.bytes()
    made = Model.fresh(
        {"name": "masked", "length_head": False}, tokenizer, preset("toy", tokenizer.vocab_size, dim=32), True
    )
    made.defaults = {"sampler": "confidence", "steps": 8}
    return made


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({}, 8),
        ({"steps": 2}, 2),
        ({"options": {"steps": 2}}, 2),
        ({"sampler": "confidence", "options": {"steps": 2}}, 2),
        ({"options": {"order": "margin"}}, 8),
        (DecodingConfig("confidence", {"steps": 1}).generation(), 1),
        (DecodingConfig("confidence", {"steps": 12}).generation(), 12),
    ],
)
def test_steps_that_are_named_win_over_the_models_own(model: Model, given: dict[str, Any], passes: int) -> None:
    """A comparison names steps as an option of the sampler."""
    [found] = model.generate("abc", max_new_tokens=16, length="fixed", **given)
    assert found.nfe == passes
