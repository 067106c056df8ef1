"""Laws of the automatic length: lengths of training are kept and used, and a text that does not fit is cut off."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import redraft
from redraft.canvas import make_canvas
from redraft.conversion import convert_family
from redraft.data.examples import load
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.answer_lengths import AnswerLengths
from redraft.generation.first_pass import Row
from redraft.generation.length import choose_lengths
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.presets import preset
from redraft.registry import find
from redraft.train.recipe import Recipe
from redraft.train.setup import prepare
from redraft.types import PAD, Request
from tests.tiny import VOCABULARY, family

TOY = Path(__file__).parents[2] / "recipes" / "toy"
HEADLESS = {"name": "masked", "prompt_encoder": False, "length_head": False}


def model_of(family: dict[str, Any], lengths: AnswerLengths | None = None) -> Model:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh(family, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=1)
    model.answer_lengths = lengths
    return model


def test_lengths_by_prompt_are_those_that_were_seen() -> None:
    """Answers of 2, 3 and 4 tokens to short prompts, of 20 to long ones, half of which are empty in no group."""
    prompts = [5] * 300 + [50] * 100
    answers = [2] * 150 + [3] * 75 + [4] * 75 + [20] * 100
    seen = AnswerLengths.of(prompts, answers)
    assert seen.given(5) == {2: 0.5, 3: 0.25, 4: 0.25} == seen.given(1)
    assert seen.given(50) == {20: 1.0} == seen.given(6) == seen.given(10**6)
    assert AnswerLengths.of([3], [7]).given(100) == {7: 1.0}


@pytest.mark.parametrize("values", [{"prompts": [3, 2], "answers": [[1], [1]]}, {"prompts": [3], "answers": [[0]]}])
def test_lengths_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="answer_lengths"):
        AnswerLengths(tuple(values["prompts"]), tuple(map(tuple, values["answers"])))


def test_training_records_the_lengths_of_its_answers(tmp_path: Path) -> None:
    recipe = Recipe.load(TOY / "masked.toml", ["tokenizer.kind=bytes", "data.length=128"])
    model = prepare(recipe, tmp_path, redraft.runtime.device("cpu")).model
    rows = load(recipe.path(recipe.data.source), None).train
    expected = [len((row.target or "").encode()) + 1 for row in rows]  # with end-of-text
    assert model.answer_lengths is not None
    kept = [length for group in model.answer_lengths.answers for length in group]
    assert min(expected) <= min(kept) and max(kept) <= max(expected)
    assert abs(statistics.median(kept) - statistics.median(expected)) <= 2
    model.save(tmp_path / "saved")
    assert redraft.load(tmp_path / "saved").answer_lengths == model.answer_lengths
    assert convert_family(model, HEADLESS).answer_lengths == model.answer_lengths


@pytest.mark.parametrize("family", [HEADLESS, {"name": "uniform", "prompt_encoder": False, "length_head": False}])
def test_without_a_length_head_answers_are_as_long_as_in_training(family: dict[str, Any]) -> None:
    """An untrained network, whose confidence says nothing."""
    model = model_of(family, AnswerLengths((4, 30), ((3, 6, 9), (12, 12, 12))))
    short, long = model.generate(["ab", "a much longer prompt"], max_new_tokens=20, temperature=1.0)
    assert len(short.ids) <= 5 and len(long.ids) <= 11  # a sampled end-of-text may end an answer earlier
    canvas = model.start(["ab", "a much longer prompt"], model.settings(max_new_tokens=20)).canvas
    assert (canvas.status != 0).sum(1).sub(canvas.prompt).tolist() == [6, 12]
    three = model.start(["ab"], model.settings(max_new_tokens=20, candidates=3)).canvas
    assert (three.status != 0).sum(1).sub(three.prompt).tolist() == [6, 3, 9]
    with pytest.raises(UserError, match="don't record"):
        model_of(family).generate("ab", length="typical")


class Scripted:
    """A network with a given distribution of lengths, which knows all tokens of answers of one length."""

    def __init__(self, lengths: dict[int, float], known: int) -> None:
        self.lengths, self.known, self.asked = lengths, known, 0

    def __call__(self, request: Request, store: Any = None) -> Tensor:
        self.asked += 1
        logits = torch.zeros(int((request.targets >= 0).sum()), VOCABULARY.vocab_size)
        if request.drawing.kind == "length":
            for length, p in self.lengths.items():
                logits[:, length] = math.log(p)
            return logits
        row = (request.targets >= 0).nonzero()[:, 0]
        logits[(request.targets >= 0).sum(1)[row] == self.known - 1, 5] = 9.0
        return logits


@pytest.mark.parametrize(
    ("lengths", "known", "chosen", "passes"),
    [
        ({4: 0.4, 6: 0.3, 3: 0.2}, 6, 6, 2),  # 6 is less likely, and certain
        ({4: 0.4, 6: 0.3, 3: 0.2}, 5, 4, 2),  # no likely length is certain: the likeliest
        ({4: 0.9, 6: 0.1}, 6, 4, 1),  # an unlikely length is not compared, and costs no pass
    ],
)
def test_one_answer_has_the_likely_length_that_the_network_can_fill(
    lengths: dict[int, float], known: int, chosen: int, passes: int
) -> None:
    spec, _ = family("masked")
    canvases = []
    for prompts in ([[5, 6, 4]], [[5, 6, 4], [7, 4]]):
        rows: list[Row] = [[*prompt, *[None] * 7] for prompt in prompts]
        network = Scripted({length: lengths.get(length, 1e-9) for length in range(8)}, known)
        loop = Loop({"main": network}, Method(find("samplers", "confidence")()), spec)
        canvas = make_canvas(rows, [len(prompt) for prompt in prompts], spec, seeds=range(len(rows)))
        choose_lengths(loop, canvas)
        canvases.append(canvas)
        assert network.asked == passes and canvas.nfe.tolist() == [passes] * len(rows)
        assert ((canvas.status != PAD).sum(1) - canvas.prompt).tolist() == [chosen] * len(rows)
        assert torch.allclose(
            canvas.score, torch.full_like(canvas.score, math.log(lengths[chosen] / sum(lengths.values()))), atol=1e-3
        )
    copies = make_canvas(rows[:1], [3], spec, seeds=[0], copies=2)
    choose_lengths(Loop({"main": Scripted(lengths, known)}, Method(find("samplers", "confidence")()), spec), copies)
    assert copies.nfe.tolist() == [1, 1], "several candidates are filled and need no such pass"


@pytest.mark.parametrize("most", [1, 2, 5])
def test_an_answer_that_does_not_fit_is_cut_off(most: int) -> None:
    model = model_of(HEADLESS, AnswerLengths((30,), ((12, 12, 12),)))
    for candidates in (1, 3):
        (found,) = model.generate("ab", max_new_tokens=most, candidates=candidates)
        free = model.start(["ab"], model.settings(max_new_tokens=most, candidates=candidates)).canvas
        assert (free.status == 2).sum(1).tolist() == [most] * candidates and len(found.ids) <= most
    constrained = model.generate("ab", max_new_tokens=3, constraint={"regex": "[a-c]{2}"}, cache="none")[0]
    assert len(constrained.text) == 2 and constrained.finish == "stop"


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_a_shipped_model_never_answers_with_nothing(most: int) -> None:
    (found,) = redraft.load("translate-en-de-masked").generate("I am tired.", max_new_tokens=most)
    assert (len(found.ids), found.finish) == (most, "length") and found.text.startswith("Ich")
