"""Laws of guidance: it can be off, follows its formulas, and works with caches and constraints."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.loop import Call, Loop, Method
from redraft.guidance.classifier import TrainedClassifier
from redraft.guidance.classifier_free import ClassifierFree
from redraft.guidance.shared.bag_of_words import BagOfTokens
from redraft.guidance.shared.condition import drop_prompts
from redraft.model import Model
from redraft.presets import preset
from redraft.samplers.first_hitting import FirstHitting
from redraft.types import Canvas, Output, Request
from tests import tiny


def model(family: str = "masked", paired: bool = True) -> Model:
    """A tiny untrained model with large weights, so that predictions are not uniform; in float64."""
    tokenizer = Tokenizer.bytes()
    made = Model.fresh({"name": family}, tokenizer, preset("toy", tokenizer.vocab_size), paired, seed=1)
    for parameter in made.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    made.network.double().requires_grad_(False)
    return made


def answer(loop: Loop, canvas: Canvas, request: Request) -> Output:
    """Run the calls of one request."""
    calls, logits = loop.answer(canvas, request), None
    while True:
        try:
            call = calls.send(logits)  # type: ignore[arg-type] # a generator starts with None
        except StopIteration as end:
            return end.value
        assert isinstance(call, Call)
        logits = loop.networks[call.request.network](call.request, call.store)


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_a_scale_of_one_is_off(family: str) -> None:
    made = model(family)
    plain = made.generate("abc", max_new_tokens=8, temperature=1.0)[0]
    guided = made.generate("abc", max_new_tokens=8, temperature=1.0, guidance="classifier_free", guide={"scale": 1})[0]
    assert (plain.text, plain.nfe) == (guided.text, guided.nfe)


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
@pytest.mark.parametrize("paired", [True, False])
def test_a_scale_of_zero_ignores_the_prompt(family: str, paired: bool) -> None:
    made = model(family, paired)
    if made.spec.network.length_head:  # the length is chosen with the prompt
        made.family = type(made.family)(length_head=False)
    # the search of a length is not guided
    chosen = {"max_new_tokens": 8, "length": "fixed", "guidance": "classifier_free", "guide": {"scale": 0}}
    texts = {made.generate(prompt, **chosen)[0].text for prompt in ("abc", "xyz", "q!r")}
    assert len(texts) == 1


def test_guided_logits_follow_the_formula() -> None:
    """guided = u + g (c - u), u with every token of the prompt but the separator masked."""
    made = model()
    spec, guidance = made.spec, ClassifierFree(scale=2.5)
    seen: dict[int, torch.Tensor] = {}

    def network(request: Request, store: object = None) -> torch.Tensor:
        seen[request.cache.branch] = request.tokens
        return made.network(request)

    run = made.start(["abc"], made.settings(max_new_tokens=4))
    canvas = run.canvas
    loop = Loop({"main": network}, Method(FirstHitting(), guidance=guidance), spec)
    [request] = FirstHitting().plan(canvas, None, spec)
    out = answer(loop, canvas, request)
    c, u = (made.network(replace(request, tokens=seen[branch])) for branch in (0, 1))
    expected = u + 2.5 * (c - u)
    expected[:, list(spec.tokens.forbidden)] = -torch.inf
    torch.testing.assert_close(out.log_p.double(), expected.log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert seen[1][0, :4].tolist() == [3, 3, 3, 4]
    assert torch.equal(seen[0][0, 4:], seen[1][0, 4:])


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
@pytest.mark.parametrize("paired", [True, False])
def test_caches_change_no_guided_text_and_passes_count_twice(family: str, paired: bool) -> None:
    made = model(family, paired)
    chosen = {"max_new_tokens": 8, "guidance": "classifier_free", "guide": {"scale": 3.0}, "temperature": 1.0}
    texts = [made.generate(["abc", "longer one"], cache=cache, **chosen) for cache in ("exact", "none")]
    assert [text.ids for text in texts[0]] == [text.ids for text in texts[1]]
    run = made.start(["abc"], made.settings(**chosen))
    steps = sum(1 for _ in run)
    assert run.results()[0].nfe == 2 * steps + made.spec.network.length_head


def test_constraints_hold_under_guidance() -> None:
    made = model()
    for scale in (0.0, 2.0, 50.0):
        text = made.generate(
            "abc",
            max_new_tokens=12,
            guidance="classifier_free",
            guide={"scale": scale},
            constraint={"regex": r"\d+(,\d\d)?"},
        )[0].text
        assert re.fullmatch(r"\d+(,\d\d)?", text)


def test_prompts_are_dropped_at_the_given_rate() -> None:
    """Separators and targets are kept; a rate of 0 uses no random numbers."""
    spec, _ = tiny.family("masked")
    batch = tiny.pairs([([5, 6, 7, 4], [5, 6, 1])] * 4000)
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert drop_prompts(batch, spec, 0.0, generator) is batch
    assert torch.equal(generator.get_state(), state)
    ids = drop_prompts(batch, spec, 0.25, generator).ids
    dropped = (ids[:, :3] == spec.tokens.mask_id).all(1)
    assert (dropped | (ids == batch.ids).all(1)).all()
    assert torch.equal(ids[:, 3:], batch.ids[:, 3:])
    assert abs(float(dropped.float().mean()) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


BAG = BagOfTokens(
    torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).index_fill(0, torch.tensor([3]), 0.0),
    torch.tensor([0.3, -0.2, 0.1]),
)


def test_exact_gains_equal_scoring_every_text() -> None:
    ids, seen = torch.tensor([[5, 6, 3], [7, 3, 3]]), torch.tensor([[True, True, False], [True, False, False]])
    gains = BAG.exact(BAG.scores(ids, seen), label=2)
    for row in range(2):
        for token in range(12):
            whole = torch.tensor([[*ids[row][seen[row]].tolist(), token]])
            expected = BAG.scores(whole, torch.ones_like(whole, dtype=torch.bool)).log_softmax(1)[0, 2]
            assert float(gains[row, token]) == pytest.approx(float(expected), abs=1e-5)


def test_first_order_gains_are_the_gradient() -> None:
    """The derivative of log p(label | x) in the indicator of each token, by autograd."""
    ids, seen = torch.tensor([[5, 6, 3]]), torch.tensor([[True, True, False]])
    indicator = torch.zeros(12, requires_grad=True)
    value = (BAG.scores(ids, seen)[0] + indicator @ BAG.weight).log_softmax(0)[1]
    (gradient,) = torch.autograd.grad(value, indicator)
    torch.testing.assert_close(BAG.first_order(BAG.scores(ids, seen), 1)[0], value.detach() + gradient)


@pytest.mark.parametrize("order", ["exact", "first"])
def test_classifier_guidance_multiplies_every_prediction(order: str) -> None:
    """p(v | x, y) is proportional to p(v | x) p(y | x with v)^g: Bayes' rule where g is 1 and the gains exact."""
    made = model()
    spec = made.spec
    bag = BagOfTokens(
        torch.randn(spec.tokens.vocab_size, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(2)
    )
    run = made.start(["abc"], made.settings(max_new_tokens=4))
    [request] = FirstHitting().plan(run.canvas, None, spec)
    plain, guided = (
        answer(Loop({"main": made.network}, Method(FirstHitting(), guidance=guidance), spec), run.canvas, request).log_p
        for guidance in (None, TrainedClassifier(bag, 1, 1.5, order, (spec.tokens.mask_id, spec.tokens.eos_id)))
    )
    alone = torch.zeros(1, 2)  # the answer is empty, and the prompt does not count
    gain = bag.exact(alone, 1) if order == "exact" else bag.first_order(alone, 1)
    torch.testing.assert_close(guided, (plain + 1.5 * gain).log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_texts_are_guided_towards_a_label(tmp_path: Path) -> None:
    """Labels are vowels: with guidance, a network with uniform predictions generates the label's vowel."""
    data = tmp_path / "labelled.jsonl"
    rows = [{"text": vowel * 3 + "xyz"[n % 3], "label": vowel} for n in range(40) for vowel in "ae"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = Tokenizer.bytes()
    made = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), paired=False, seed=1)
    counts = []
    for strength in (0.0, 20.0):
        guide = {"data": str(data), "value": "e", "strength": strength}
        found = made.generate(["q"] * 8, max_new_tokens=8, guidance="classifier", guide=guide, temperature=1.0)
        counts.append(sum("e" in text.text and "a" not in text.text for text in found))
    assert counts[0] <= 2 and counts[1] >= 6


@pytest.mark.parametrize(
    ("guidance", "guide", "says"),
    [
        ("classifier_fre", {}, "classifier_free"),
        ("classifier_free", {"scal": 1}, "scale"),
        ("classifier_free", {"scale": -1}, "between 0 and 1000"),
        (None, {"scale": 1}, "name"),
        ("classifier", {"data": "none.jsonl", "value": "a"}, "does not exist"),
    ],
)
def test_invalid_guidance_is_refused(guidance: str | None, guide: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        model().generate("a", max_new_tokens=4, guidance=guidance, guide=guide)
