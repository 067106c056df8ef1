"""Training with objectives that have a rollout: equality, exact resume, and what they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from redraft.errors import UserError
from redraft.train.logging import Event
from redraft.train.loop import train
from redraft.train.recipe import Recipe

TOY = Path(__file__).parents[2] / "recipes" / "toy" / "masked.toml"
SMALL = [
    "tokenizer.kind=bytes",
    "data.length=128",
    "train.tokens=4000",
    "train.batch_tokens=512",
    "train.validation_rows=4",
    "train.save_every_tokens=700",
    "train.threads=1",
    "train.dtype=float32",  # auto is measured, and may come out otherwise in another run
]


class Interrupted(Exception):
    pass


def interrupt(event: Event) -> None:
    if event.kind == "checkpoint" and event.step >= 3:
        raise Interrupted


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked model trained in the plain way."""
    out = tmp_path_factory.mktemp("plain") / "run"
    train(Recipe.load(TOY, [*SMALL, "model.config.dim=32"]), out, device="cpu")
    return out


def test_a_thought_model_without_its_options_is_a_masked_model(plain: Path, tmp_path: Path) -> None:
    train(Recipe.load(TOY, [*SMALL, "model.config.dim=32", "family.name=thought"]), tmp_path / "run", device="cpu")
    assert weights(tmp_path / "run") == weights(plain)


THOUGHT = ["family.name=thought", "family.scheduled=0.5", "family.coupled=0.5", "family.segment_end=' '"]
DISTILLED = ["family.name=distilled", "family.teacher_steps=3"]
SELF_CONDITIONED = ["family.self_condition=0.5"]


@pytest.mark.parametrize(
    "options", [THOUGHT, DISTILLED, SELF_CONDITIONED], ids=["thought", "distilled", "self-conditioned"]
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(options: list[str], plain: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(TOY, [*SMALL, *options, f"model.from={plain}"])
    whole = train(recipe, tmp_path / "whole", device="cpu")
    assert weights(tmp_path / "whole") != weights(plain)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", device="cpu", on_event=interrupt)
    result = train(recipe, tmp_path / "run", device="cpu")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert result.flops == whole.flops and result.validation == whole.validation


def test_rollout_passes_are_counted_as_work(plain: Path, tmp_path: Path) -> None:
    base = [*SMALL, f"model.from={plain}"]
    alone = train(Recipe.load(TOY, base), tmp_path / "alone", device="cpu")
    taught = train(Recipe.load(TOY, [*base, *DISTILLED]), tmp_path / "taught", device="cpu")
    assert taught.tokens == alone.tokens
    assert 1.9 < taught.flops / alone.flops < 2.1  # three passes of a third each


def test_distillation_from_nothing_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="teacher"):
        train(Recipe.load(TOY, [*SMALL, *DISTILLED]), tmp_path / "run", device="cpu")


def test_a_border_that_no_token_holds_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="segment_end"):
        train(
            Recipe.load(TOY, [*SMALL, "family.name=thought", "family.segment_end=ab"]), tmp_path / "run", device="cpu"
        )
