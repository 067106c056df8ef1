"""Self-speculation of masked models: the text and the trace of one token a pass, from fewer passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redraft.canvas import make_canvas
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.samplers.base import Sampler
from redraft.samplers.confidence import Confidence
from redraft.samplers.unmask_verify import UnmaskVerify
from tests import tiny
from tests.laws.test_samplers import model_for

ROWS: list[list[int | None]] = [
    [70, 71, 4, *[None] * 9],
    [72, 4, None, None, 80, 81, *[None] * 4],
    [73, 74, 75, 76, 77, 4, None, None],
]


def traced(model: Model, sampler: Sampler, **heat: Any) -> tuple[list[list[tuple[int, int]]], list[int]]:
    """What each row wrote, in order, and its passes."""
    canvas = make_canvas(ROWS, [3, 2, 6], model.spec, seeds=[0, 1, 2], **heat)
    loop = Loop({"main": model.network.eval()}, Method(sampler), model.spec)
    trace: list[list[tuple[int, int]]] = [[], [], []]
    for step in loop.run(canvas):
        for row, pos, token in zip(step.row.tolist(), step.pos.tolist(), step.token.tolist(), strict=True):
            trace[row].append((pos, token))
    return trace, canvas.nfe.tolist()


@pytest.mark.parametrize("heat", [{"temperature": 0.0}, {"temperature": 1.0}], ids=str)
@pytest.mark.parametrize("options", [{}, {"order": "margin"}, {"order": "entropy", "block": 3}], ids=str)
def test_text_and_trace_are_those_of_one_token_a_pass(options: dict[str, Any], heat: dict[str, float]) -> None:
    model = model_for(UnmaskVerify())
    slow = [Confidence(steps=9, **options)] if "block" not in options else [UnmaskVerify(drafts=0, **options)]
    expected, passes = traced(model, slow[0], **heat)
    for drafts in (0, 1, 3, 20):
        trace, found = traced(model, UnmaskVerify(drafts=drafts, **options), **heat)
        assert trace == expected
        if drafts == 0:
            assert found == passes
        assert all(mine <= theirs for mine, theirs in zip(found, passes, strict=True))


def test_certain_predictions_take_a_pass_for_every_drafts_and_one_tokens() -> None:
    """12 tokens: a first pass with no drafts writes 1, and each further one 4."""
    language = tiny.Language([[5, 6, 7, 6] * 3], torch.ones(1, dtype=torch.float64))
    spec, _ = tiny.family("masked", paired=False)
    canvas = make_canvas([[2, *[None] * 12]], [1], spec, seeds=[0])
    for _ in Loop({"main": tiny.OracleNetwork(language, spec, 1)}, Method(UnmaskVerify(drafts=3)), spec).run(canvas):
        pass
    assert canvas.ids[0, 1:].tolist() == [5, 6, 7, 6] * 3 and int(canvas.nfe[0]) == 4
