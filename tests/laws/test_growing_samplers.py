"""Samplers that find the length of an answer: DAEDAL and rho-EOS, on networks whose predictions are scripted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from redraft.canvas import Growth, completion, extent, make_canvas
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.presets import preset
from redraft.samplers.base import Sampler
from redraft.samplers.daedal import Daedal
from redraft.samplers.rho_eos import RhoEos
from redraft.types import SEALED, Canvas, Forward
from tests import tiny

SPEC, _ = tiny.family("masked", paired=False)
EOS, LETTER = tiny.VOCABULARY.eos_id, 5


@dataclass
class Ending:
    """Predicts the end of the text, with probability ``p``, at positions that ``ends`` chooses; else a letter."""

    ends: Callable[[torch.Tensor, int], torch.Tensor]  # positions [N], length of the row -> [N] bool
    p: float = 0.8
    lengths: list[int] = field(default_factory=list)

    def __call__(self, request: Forward, store: object = None) -> torch.Tensor:
        self.lengths.append(int((request.positions >= 0).sum(1).max()))
        at = request.targets[request.targets >= 0]
        ends = self.ends(at, self.lengths[-1])
        p = torch.full((len(at), SPEC.tokens.vocab_size), 1e-9)
        p[torch.arange(len(at)), torch.where(ends, EOS, LETTER)] = self.p
        p[torch.arange(len(at)), torch.where(ends, LETTER, LETTER + 1)] = 1 - self.p
        return p.log()


def board(free: int, limit: int) -> Canvas:
    return make_canvas([[2, *[None] * free]], [1], SPEC, seeds=[0], growth=Growth([1 + limit]))


def run(network: Ending, sampler: Sampler, canvas: Canvas) -> int:
    """The number of steps."""
    return len(list(Loop({"main": network}, Method(sampler), SPEC).run(canvas)))


def test_daedal_adds_masks_until_the_end_is_certain() -> None:
    """k ends of probability 0.8 have a certainty of 0.8 k / 32, which is 0.5 at k = 20; the text has 12 tokens."""
    network, canvas = Ending(lambda at, length: at > 12), board(16, 200)
    run(network, Daedal(initial=16, expand=0.0), canvas)
    assert network.lengths[:4] == [17, 25, 33, 33 + 16], (
        "24 + 16 free positions: 8 more ends than the 20 that are needed"
    )
    assert completion(canvas, 0, EOS) == ([LETTER] * 12, "stop")


def test_daedal_keeps_to_the_limit() -> None:
    network, canvas = Ending(lambda at, length: torch.zeros_like(at, dtype=torch.bool)), board(16, 40)
    run(network, Daedal(initial=16), canvas)
    assert int(extent(canvas)[0]) == 41 and completion(canvas, 0, EOS) == ([LETTER] * 40, "length")


def test_daedal_widens_an_uncertain_position() -> None:
    """Without any end, the least certain position becomes several in every pass, as long as there is room."""
    network, canvas = Ending(lambda at, length: torch.zeros_like(at, dtype=torch.bool), p=0.5), board(16, 60)
    passes = run(network, Daedal(initial=16, end=0.0, grow=4, low=0.6), canvas)
    assert int(extent(canvas)[0]) == 61 and bool((canvas.status[0, 1:] == SEALED).all())
    assert passes == 60, "no position is certain, so a pass writes one"


@pytest.mark.parametrize(
    ("rho", "change"),
    [(0, 64), (0.15, 32), (0.25, 16), (0.35, 8), (0.4, 0), (0.6, 0), (0.65, -8), (0.75, -16), (0.95, -64)],
)
def test_the_masks_that_rho_eos_adds(rho: float, change: int) -> None:
    assert RhoEos().change(torch.tensor([rho], dtype=torch.float64)).tolist() == [change]


def test_rho_eos_finds_the_length_from_both_sides() -> None:
    for free in (16, 128):
        network, canvas = Ending(lambda at, length: at > 30), board(free, 160)
        run(network, RhoEos(initial=free), canvas)
        assert completion(canvas, 0, EOS) == ([LETTER] * 30, "stop")
    assert max(network.lengths) == 129 and min(network.lengths) < 100, "masks behind the end were removed"


def test_rho_eos_removes_nothing_left_of_a_written_token() -> None:
    """The last position is certain, so that it is written first; everything before it predicts the end."""
    network, canvas = Ending(lambda at, length: at < 20), board(20, 20)
    steps = Loop({"main": network}, Method(RhoEos(initial=20, threshold=0.79)), SPEC).run(canvas)
    for step in steps:
        assert step.source is None or int((step.source[0] >= 0).sum()) == 21


@pytest.mark.parametrize("sampler", ["daedal", "rho_eos"])
def test_a_model_finds_its_lengths_by_these_samplers(sampler: str) -> None:
    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size)
    model = Model.fresh(
        {"name": "masked", "prompt_encoder": False, "length_head": False}, tokenizer, shape, True, seed=1
    )
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)  # so that predictions are not uniform
    model.network.double()  # so that batched and single rows don't differ by rounding
    prompts = ["hello", "a longer prompt", "x"]
    given: dict[str, Any] = {"sampler": sampler, "max_new_tokens": 40, "options": {"initial": 8}}
    together = model.generate(prompts, **given)
    alone = [model.generate(prompt, seed=number, **given)[0] for number, prompt in enumerate(prompts)]
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert all(len(one.ids) <= 40 for one in together)
    with pytest.raises(UserError, match="finds the length of an answer itself"):
        model.generate("hello", sampler=sampler, length="search")
    headed = Model.fresh({"name": "masked"}, tokenizer, shape, True, seed=1)
    with pytest.raises(UserError, match="length head"):
        headed.generate("hello", sampler=sampler)
    with pytest.raises(UserError, match="fixed length"):
        model.generate("hello", sampler=sampler, constraint={"regex": "[a-z]+"})


def test_certainty_counts_the_last_ends_only() -> None:
    p = torch.full((1, 50), 0.8, dtype=torch.float64)
    is_end = torch.zeros(1, 50, dtype=torch.bool)
    is_end[0, ::2] = True  # wherever they are
    assert float(Daedal()._certainty(p, is_end)) == pytest.approx(0.8 * 25 / 32)
    assert float(Daedal()._certainty(p, torch.ones_like(is_end))) == pytest.approx(0.8)
    assert math.isclose(float(Daedal(window=4)._certainty(p, is_end)), 0.8)
