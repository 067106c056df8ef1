"""Every diffusion family through the public door: write, fill, score, keep; and the grid that compare tries for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import redraft
from redraft.compare.setup import suits
from redraft.data.tokenizer import Tokenizer
from redraft.model import Model
from redraft.presets import preset
from redraft.registry import find
from tests import tiny

DIFFUSION = [name for name in tiny.families() if not tiny.family(name)[0].network.shift]


def fresh(name: str, **fields: Any) -> Model:
    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size)
    return Model.fresh({**tiny.described(name), **fields}, tokenizer, shape, paired=True, seed=1)


@pytest.mark.parametrize("name", DIFFUSION)
def test_a_model_writes_fills_and_scores(name: str, tmp_path: Path) -> None:
    model = fresh(name)
    written = model.generate(["ab", "a longer one"], max_new_tokens=10, steps=4, temperature=1.0)
    assert len(written) == 2 and all(text.nfe >= 1 for text in written)
    filled = model.infill("xy[[3]]z", prompt="ab", steps=2)
    assert filled.text.startswith("xy") and filled.text.endswith("z")
    assert filled.ids[:2] == model.tokenizer.encode("xy") and filled.ids[-1:] == model.tokenizer.encode("z")
    found = model.score("ab", "xyz", samples=32)
    assert found.is_bound and found.nats > 0 and found.stderr > 0
    model.save(tmp_path / "kept")
    again = redraft.load(tmp_path / "kept", device="cpu")
    assert again.family == model.family and again.spec == model.spec
    settings: dict[str, Any] = {"max_new_tokens": 10, "steps": 4, "temperature": 1.0, "seed": 3}
    assert again.generate("ab", **settings)[0].ids == model.generate("ab", **settings)[0].ids


@pytest.mark.parametrize("name", ["uniform", "sedd-uniform"])
def test_a_model_told_the_time_writes_too(name: str) -> None:
    assert fresh(name, timed=True).generate("ab", max_new_tokens=6, steps=3)[0].nfe >= 3


@pytest.mark.parametrize("name", DIFFUSION)
def test_compare_tries_samplers_that_take_the_family(name: str) -> None:
    spec = fresh(name).spec
    fits = {
        sampler for sampler in ("confidence", "posterior", "predictor_corrector", "analytic") if suits(sampler, spec)
    }
    expected = {
        ("absorbing", False): {"confidence", "analytic"},
        ("absorbing", True): {"confidence", "analytic"},
        ("uniform", False): {"posterior", "predictor_corrector", "analytic"},
        ("uniform", True): {"analytic"},
        ("edit", True): set(),
    }
    assert spec.family.process is not None
    assert fits == expected[spec.family.process.name, spec.scores]
    own = type(find("families", tiny.described(name)["name"])(**_fields(name)).sampler())
    assert suits(own.name, spec)


def _fields(name: str) -> dict[str, Any]:
    return {key: value for key, value in tiny.described(name).items() if key != "name"}
