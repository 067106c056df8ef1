"""Draft and verify generates the same tokens as the autoregressive model, with any drafter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.caches.exact import Exact
from redraft.canvas import completion, make_canvas
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.loop import Loop, Method
from redraft.generation.method import build_method
from redraft.model import Model
from redraft.presets import preset
from redraft.samplers.autoregressive import Autoregressive
from redraft.samplers.draft_verify import DraftVerify
from redraft.types import DRAFT, SEALED, AttentionPattern, Canvas, DraftQuery, Forward, Request, Spec
from tests import tiny

ROWS: list[list[int | None]] = [
    [70, 71, 4, *[None] * 17],
    [72, 4, None, None, 80, 81, *[None] * 12],
    [73, 74, 75, 76, 77, 4, *[None] * 9],
]
PROMPTS = [3, 2, 6]
DRAFTERS: dict[str, dict[str, Any]] = {
    "masked": {"name": "masked"},
    "masked-without-length": {"name": "masked", "length_head": False},
    "masked-timed": {"name": "masked", "timed": True},
    "masked-open-prompt": {"name": "masked", "prompt_encoder": False, "length_head": False},
    "block": {"name": "block", "block": 5},
    "block-of-one": {"name": "block", "block": 1},
}
each_kind = pytest.mark.parametrize("paired", [True, False], ids=["paired", "plain"])
each_heat = pytest.mark.parametrize("heat", [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 9}], ids=str)


def model(family: dict[str, Any], paired: bool, seed: int = 1) -> Model:
    """An untrained model with large weights, so that predictions differ; in float64, without ties by rounding."""
    tokenizer = Tokenizer.bytes()
    made = Model.fresh(family, tokenizer, preset("toy", tokenizer.vocab_size), paired, seed)
    for parameter in made.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    made.network.double().requires_grad_(False)
    return made


def board(spec: Spec, **options: Any) -> Canvas:
    return make_canvas(ROWS, PROMPTS, spec, seeds=[0, 1, 2], **options)


def write(loop: Loop, canvas: Canvas) -> list[Any]:
    """Texts, finish reasons and scores."""
    for _ in loop.run(canvas):
        pass
    return results(loop, canvas)


def results(loop: Loop, canvas: Canvas) -> list[Any]:
    assert not canvas.open.any()
    ends = [completion(canvas, row, loop.spec.tokens.eos_id) for row in range(len(canvas.ids))]
    return [*ends, [round(float(score), 6) for score in canvas.score]]


def plain(main: Model, **heat: Any) -> tuple[Canvas, list[Any]]:
    spec = main.spec.with_family(drafter=None)
    canvas = board(spec, **heat)
    return canvas, write(
        Loop({"main": main.network.eval()}, Method(Autoregressive(draws="gumbel"), Exact()), spec), canvas
    )


@each_heat
@each_kind
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_two_networks_generate_what_the_autoregressive_one_does(
    drafter: str, paired: bool, heat: dict[str, Any]
) -> None:
    main = model({"name": "autoregressive"}, paired)
    main.draft_with(model(DRAFTERS[drafter], paired, seed=2))
    assert main.drafter is not None
    _, expected = plain(main, **heat)
    for block, cache in ((1, Exact()), (4, Exact()), (9, None)):
        networks = {"main": main.network.eval(), "drafter": main.drafter.network.eval()}
        loop = Loop(networks, Method(DraftVerify(block), cache), main.spec)
        assert write(loop, board(main.spec, **heat)) == expected
        assert loop.counter.drafted >= loop.counter.accepted
        assert set(loop.others) == {"drafter"}


@each_heat
@each_kind
def test_one_network_trained_for_both_generates_autoregressive_output(paired: bool, heat: dict[str, Any]) -> None:
    """Drafts and verification share one cache: entries from a draft pass must never be read as causal ones."""
    main = model({"name": "hybrid"}, paired)
    _, expected = plain(main, **heat)
    for block, cache in ((1, Exact()), (4, Exact()), (9, None)):
        loop = Loop({"main": main.network.eval()}, Method(DraftVerify(block), cache), main.spec)
        assert write(loop, board(main.spec, **heat)) == expected
        assert not loop.others


@dataclass
class Imperfect:
    """A drafter that predicts each row's text, but is wrong at about every third position."""

    text: Tensor  # [B, L]
    vocab_size: int
    often: int = 3

    def __call__(self, request: Forward, store: object = None) -> Tensor:
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        position = request.targets[row, column]
        assert isinstance(request, Request)
        token = self.text[request.rows[row], position]
        wrong = (position * 7 + request.rows[row]) % self.often == 0
        token = torch.where(wrong, (token + 1).clamp(min=60) % 200, token)
        return 30.0 * torch.nn.functional.one_hot(token, self.vocab_size).double()

    def store(self, slots: int, positions: int) -> Any:
        return model({"name": "masked"}, True).network.store(slots, positions)


@each_heat
@each_kind
@pytest.mark.parametrize("often", [2, 3, 10**6])
def test_right_drafts_are_kept_and_wrong_ones_replaced(paired: bool, heat: dict[str, Any], often: int) -> None:
    """Accepted and rejected drafts and forward passes are counted."""
    main = model({"name": "autoregressive"}, paired)
    main.draft_with(model({"name": "masked", "length_head": False}, paired))
    canvas, expected = plain(main, **heat)
    passes = int(canvas.nfe.sum())
    network = Imperfect(canvas.ids, main.network.config.vocab_size, often)
    loop = Loop({"main": main.network.eval(), "drafter": network}, Method(DraftVerify(4)), main.spec)
    mine, drafted = board(main.spec, **heat), 0
    for step in loop.run(mine):
        drafted += int((step.status == DRAFT).sum())
    assert results(loop, mine) == expected
    assert loop.counter.drafted == drafted
    written, accepted = int((mine.status == SEALED).sum()), loop.counter.accepted
    if often == 10**6:
        assert accepted >= 0.6 * written and int(mine.nfe.sum()) < 0.6 * passes
    else:
        assert 0 < accepted < drafted and accepted < written
    assert int(mine.nfe.sum()) <= 2 * passes


@dataclass
class Knowing:
    """A network whose drafts equal each row's text at most positions; otherwise the network itself, with its cache."""

    net: Any
    drafts: Imperfect

    def __call__(self, request: Forward, store: Any = None) -> Tensor:
        logits: Tensor = self.net(request, store)
        draft = request.find(DraftQuery)
        return logits if draft is None or draft.draft_from is None else self.drafts(request)

    def store(self, slots: int, positions: int) -> Any:
        return self.net.store(slots, positions)


@each_heat
@each_kind
@pytest.mark.parametrize("often", [3, 10**6])
def test_a_shared_cache_is_valid_for_right_and_wrong_drafts(paired: bool, heat: dict[str, Any], often: int) -> None:
    main = model({"name": "hybrid"}, paired)
    canvas, expected = plain(main, **heat)
    network = Knowing(main.network.eval(), Imperfect(canvas.ids, main.network.config.vocab_size, often))
    loop = Loop({"main": network}, Method(DraftVerify(4), Exact()), main.spec)
    assert write(loop, board(main.spec, **heat)) == expected
    assert loop.counter.accepted > 10
    queries = loop.counter.queries
    loop = Loop({"main": network}, Method(DraftVerify(4)), main.spec)
    write(loop, board(main.spec, **heat))
    assert queries < 0.8 * loop.counter.queries, "the cache spared nothing"


def test_a_perfect_drafter_takes_two_passes_for_each_block_and_one_token_more() -> None:
    """20 tokens, drafts of 4: two passes generate 5 tokens, for any values."""
    language = tiny.Language([[5, 6, 7, 6, 5] * 4], torch.ones(1, dtype=torch.float64))
    spec, _ = tiny.family("hybrid", paired=False)
    canvas = make_canvas([[2, *[None] * 20]], [1], spec, seeds=[0])
    loop = Loop({"main": tiny.OracleNetwork(language, spec, 1)}, Method(DraftVerify(4)), spec)
    assert write(loop, canvas)[0] == ([5, 6, 7, 6, 5] * 4, "length")
    assert int(canvas.nfe[0]) == 8
    assert (loop.counter.drafted, loop.counter.accepted) == (16, 16)


def test_sampled_drafts_agree_with_a_verifier_of_the_same_distribution() -> None:
    """They are sampled with the same uniform number: if both networks predict the true distribution of independent
    letters, every draft is accepted at temperature 1."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    texts = torch.cartesian_prod(*[torch.arange(3)] * 5)
    language = tiny.Language((texts + 5).tolist(), p[texts].prod(1))
    spec, _ = tiny.family("hybrid", paired=False)
    canvas = make_canvas([[2, *[None] * 5]] * 50, [1] * 50, spec, seeds=list(range(50)), temperature=1.0)
    loop = Loop({"main": tiny.OracleNetwork(language, spec, 1)}, Method(DraftVerify(4)), spec)
    write(loop, canvas)
    assert loop.counter.accepted == loop.counter.drafted == 50 * 4
    assert len({tuple(row) for row in canvas.ids.tolist()}) > 20


def test_nothing_is_sealed_after_an_end_of_text() -> None:
    """The drafter continues after the end, but autoregressive generation would not."""
    eos = tiny.VOCABULARY.eos_id
    language = tiny.Language([[5, 6, eos]], torch.ones(1, dtype=torch.float64))
    spec, _ = tiny.family("hybrid")
    canvas = make_canvas([[6, 4, *[None] * 12]], [2], spec, seeds=[0])
    loop = Loop({"main": tiny.OracleNetwork(language, spec, 2)}, Method(DraftVerify(8)), spec)
    assert write(loop, canvas)[0] == ([5, 6], "stop")
    assert int((canvas.status == SEALED).sum()) == 3 and int(canvas.nfe[0]) == 2


def test_the_length_is_requested_once() -> None:
    main = model({"name": "autoregressive"}, True)
    main.draft_with(model({"name": "masked"}, True, seed=2))
    requests: list[Request] = []

    def watched(request: Request, store: object = None) -> Tensor:
        requests.append(request)
        assert main.drafter is not None
        return main.drafter.network(request)

    loop = Loop({"main": main.network.eval(), "drafter": watched}, Method(DraftVerify(4)), main.spec)  # type: ignore[dict-item]
    write(loop, board(main.spec))
    assert [request.predicts_length for request in requests] == [True] + [False] * (len(requests) - 1)
    eos = main.spec.tokens.eos_id
    for request in requests[1:]:
        last = request.positions.argmax(1)
        assert (request.tokens[torch.arange(len(request.tokens)), last] == eos).all(), (
            "the end of an answer stands where it is expected"
        )


# ---- through the public interface


def test_generate_with_a_drafter() -> None:
    main = model({"name": "autoregressive"}, True)
    main.draft_with(model({"name": "masked"}, True, seed=2))
    prompts = ["hello", "a longer prompt", "x"]
    for temperature, draws in ((0.0, "gumbel"), (1.0, "gumbel"), (1.0, "inverse_cdf")):
        options = {"max_new_tokens": 20, "temperature": temperature, "seed": 3}
        expected = main.generate(prompts, options={"draws": draws}, **options)
        found = main.generate(prompts, sampler="draft_verify", options={"block": 4, "draws": draws}, **options)
        assert [f.ids for f in found] == [e.ids for e in expected]
        assert [f.score for f in found] == pytest.approx([e.score for e in expected])


def test_a_hybrid_is_its_own_drafter_by_default() -> None:
    made = model({"name": "hybrid", "block": 3}, False)
    assert build_method(made, made.settings()).sampler == DraftVerify(3)
    expected = made.generate("hello", max_new_tokens=20, sampler="autoregressive")[0]
    assert made.generate("hello", max_new_tokens=20)[0].ids == expected.ids


def test_a_drafter_that_does_not_fit_is_refused() -> None:
    main = model({"name": "autoregressive"}, True)
    with pytest.raises(UserError, match="can't draft"):
        main.draft_with(model({"name": "autoregressive"}, True))
    with pytest.raises(UserError, match="trained on plain text"):
        main.draft_with(model({"name": "masked"}, False))
    other = Tokenizer.train(["abc abd abe"] * 20, 300)
    with pytest.raises(UserError, match="tokenizer"):
        main.draft_with(Model.fresh({"name": "masked"}, other, preset("toy", other.vocab_size), True))
    with pytest.raises(UserError, match="draft"):
        main.generate("hello", sampler="draft_verify")
    with pytest.raises(UserError, match="block = 0"):
        main.draft_with(model({"name": "masked"}, True)).generate("x", sampler="draft_verify", options={"block": 0})


def test_drafts_are_one_attention_group_after_causal_text() -> None:
    request = Forward(
        tokens=torch.zeros(1, 6, dtype=torch.int64),
        positions=torch.arange(6)[None],
        targets=torch.tensor([[3]]),
        attention=AttentionPattern("causal"),
        extra=(DraftQuery(0, torch.tensor([3])),),
    )
    assert request.group(request.positions).tolist() == [[0, 1, 2, 3, 3, 3]]
