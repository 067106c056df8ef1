"""Laws of self-conditioning: a map that begins at zero changes nothing, and what is told is what was predicted last."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import redraft
from redraft.adapters import Lora
from redraft.canvas import make_canvas
from redraft.conversion import become
from redraft.convert import export
from redraft.data.tokenizer import Tokenizer
from redraft.decode import Loop, Method
from redraft.errors import UserError
from redraft.families import build_family
from redraft.likelihood import bound, corrupt
from redraft.model import Model
from redraft.models._lean import Lean
from redraft.models._lean_cross import LeanCross
from redraft.models.gpt import Config as Shape
from redraft.models.gpt import Gpt
from redraft.models.parts.readout import Readout
from redraft.models.transformer import Config, Transformer
from redraft.objectives._told import Told
from redraft.objectives.masked import Masked
from redraft.presets import shape
from redraft.samplers.confidence import Confidence
from redraft.train.loop import backward
from redraft.train.recipe import Recipe
from redraft.train.setup import prepare
from redraft.types import FREE, Canvas, Forward, Guess, Prepared, Spec
from tests.tiny import VOCABULARY, family, pairs

A, B, C = VOCABULARY.letters
EOS, SEP, MASK = VOCABULARY.eos_id, VOCABULARY.sep_id, VOCABULARY.mask_id
NETWORKS = ["transformer", "cross_attention"]
TOY = Path(__file__).parents[2] / "recipes" / "toy"


def loud(network: Readout, guess: bool = True) -> Readout:
    """Opinions, and a map of guesses that is not zero."""
    for name, parameter in network.requires_grad_(False).eval().named_parameters():
        if name == "guess.weight":
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 2 * guess)
        elif parameter.ndim == 2:
            parameter.mul_(5)
    return network


def model(network: str = "transformer", conditional: bool = True, **fields: Any) -> Model:
    tokenizer = Tokenizer.bytes()
    table = {"name": "masked", "self_condition": 0.5, **fields}
    made = Model.fresh(table, tokenizer, shape("toy", tokenizer.vocab_size, network), conditional, seed=1)
    return made


def request(seed: int = 0, size: int = 2) -> Forward:
    """Two prompts of three tokens, whose answers hold masks."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(5, 200, (2, 10), generator=generator)
    x[:, 5:9] = Tokenizer.bytes().mask_id
    pos = torch.arange(10).repeat(2, 1)
    guess = Guess(torch.randint(5, 200, (2, 10, size), generator=generator), torch.zeros(2, 10, size))
    guess.weight[0, 5:9] = torch.rand(4, size, generator=generator) / size
    want = torch.where((pos >= 5) & (pos < 9), pos, -1)
    spec = model().spec
    return Forward(x=x, pos=pos, want=want, attend=spec.attend, prompt=torch.tensor([3, 3]), guess=guess)


# ---- the network


@pytest.mark.parametrize("name", NETWORKS)
def test_a_new_map_changes_nothing_and_a_trained_one_only_what_is_guessed(name: str) -> None:
    net, ask = model(name).network, request()
    with torch.no_grad():
        plain = net(replace(ask, guess=None))
        assert torch.equal(net(ask), plain)
        loud(net)
        untold = net(replace(ask, guess=None))
        told, rows = net(ask), torch.arange(8) // 4
    assert not torch.isclose(told[rows == 0], untold[rows == 0]).all(1).any()
    assert torch.equal(told[rows == 1], untold[rows == 1])  # of which nothing was predicted


def test_what_is_added_is_the_mean_embedding_through_the_map() -> None:
    net, ask = loud(model().network), request()
    added = net.embed(ask) - net.embed(replace(ask, guess=None))
    assert ask.guess is not None and net.guess is not None
    e, w = net.embedding.weight, net.guess.weight
    expected = torch.einsum("rpk,rpkd,ed->rpe", ask.guess.weight, e[ask.guess.token], w)
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)
    some = replace(ask, x=ask.x[:, [8, 5]], pos=ask.pos[:, [8, 5]])  # positions count, not columns
    torch.testing.assert_close(
        net.embed(some) - net.embed(replace(some, guess=None)), expected[:, [8, 5]], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_lean_form_is_told_too(name: str) -> None:
    net, ask = loud(model(name).network), request()
    lean = {"transformer": Lean, "cross_attention": LeanCross}[name](net)  # type: ignore[arg-type]
    torch.testing.assert_close(lean(ask), net(ask), rtol=1e-4, atol=1e-4)


# ---- the loop


class Watched(nn.Module):
    """A network whose logits follow from the tokens alone; remembers what it was asked, and what it said."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.said = list[Forward](), list[Tensor]()
        self.table = torch.randn(7, 32, VOCABULARY.vocab_size, generator=torch.Generator().manual_seed(0)) * 2

    def forward(self, ask: Forward, store: object = None) -> Tensor:
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        logits = self.table[ask.x.sum(1)[row] % 7, ask.want[row, column]]
        self.asked.append(ask)
        self.said.append(logits.clone())
        return logits.clone()


def told_spec(conditional: bool = True) -> Spec:
    return replace(family("masked", conditional)[0], guesses=2, length_head=False)


def canvas(spec: Spec, temperature: float = 0.0) -> Canvas:
    rows: list[list[int | None]] = [[A, SEP, *[None] * 7], [B, C, SEP, None, A, *[None] * 3]]
    return make_canvas(rows, [2, 3], spec, seeds=[0, 1], temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_network_is_told_what_it_said_last_where_nothing_is_written_yet(temperature: float) -> None:
    spec, net = replace(told_spec(), eos_id=-1), Watched()
    board = canvas(spec, temperature)
    barred = sorted({*spec.forbidden})
    last = torch.zeros(*board.ids.shape, spec.vocab_size)
    turns = Loop({"main": net}, Method(Confidence(steps=7, block=4)), spec).run(board)
    passes, free = 0, board.status == FREE
    for _ in turns:
        ask, said = net.asked[passes], net.said[passes]
        assert ask.guess is not None and ask.rows is not None
        expected = torch.where(free[..., None], last, 0.0)[ask.rows]
        given = torch.zeros_like(expected).scatter_add_(2, ask.guess.token, ask.guess.weight)
        best = expected.topk(2).indices
        kept = torch.zeros_like(expected).scatter(2, best, expected.gather(2, best))
        torch.testing.assert_close(given, kept)
        said = said.index_fill(1, torch.tensor(barred), -torch.inf)
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        last[ask.rows[row], ask.want[row, column]] = said.softmax(-1)
        passes, free = passes + 1, board.status == FREE
    assert passes > 4 and not bool(free.any())
    assert not net.asked[0].guess.weight.any() and net.asked[1].guess.weight.any()  # type: ignore[union-attr]


SETTINGS = [
    {"steps": 5},
    {"steps": 4, "temperature": 1.0},
    {"steps": 2, "options": {"block": 4}},
    {"sampler": "threshold", "options": {"threshold": 0.05}},
    {"sampler": "wino", "options": {"threshold": 0.02}},
    {"sampler": "remdm", "steps": 8, "temperature": 1.0},
    {"sampler": "klass", "options": {"threshold": 0.05, "kl": 5.0, "history": 1}},
    {"sampler": "first_hitting", "temperature": 1.0},
]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("way", SETTINGS, ids=lambda way: "-".join(map(str, [way.get("sampler", "confidence")])))
def test_a_ragged_batch_equals_its_rows_and_an_exact_cache_changes_nothing(way: dict[str, Any], network: str) -> None:
    made = model(network)
    loud(made.network).double()
    prompts = ["abc", "a longer prompt", "xy"]
    together = made.generate(prompts, max_new_tokens=12, length="fixed", **way)
    alone = [made.generate(p, max_new_tokens=12, length="fixed", seed=i, **way)[0] for i, p in enumerate(prompts)]
    cached = made.generate(prompts, max_new_tokens=12, length="fixed", cache="exact", **way)
    assert [g.ids for g in together] == [g.ids for g in alone] == [g.ids for g in cached]


def test_blocks_that_are_kept_were_computed_from_what_is_written() -> None:
    """Block-causal: an exact cache reuses finished blocks, in which nothing is guessed any more."""
    made = model(block=4)
    loud(made.network).double()
    way: dict[str, Any] = {"max_new_tokens": 12, "length": "fixed", "ignore_eos": True, "steps": 3}
    assert made.generate("abc", **way)[0].ids == made.generate("abc", cache="exact", **way)[0].ids


def test_guesses_decide_what_is_written() -> None:
    deaf, told = model(), model()
    loud(deaf.network, guess=False)
    loud(told.network)
    way: dict[str, Any] = {"max_new_tokens": 24, "length": "fixed", "steps": 12, "ignore_eos": True}
    assert deaf.generate("abc", **way)[0].ids != told.generate("abc", **way)[0].ids
    way["steps"] = 1  # nothing was predicted before the first pass
    assert deaf.generate("abc", **way)[0].ids == told.generate("abc", **way)[0].ids


def test_guidance_tells_nothing_to_the_text_without_its_prompt() -> None:
    """Else the prompt would reach it through the guess."""
    made, heard = model(), list[Forward]()
    loud(made.network)
    hook = made.network.register_forward_pre_hook(lambda module, given: heard.append(given[0]))
    made.network.double()  # in which there is no lean form
    made.generate("abc", max_new_tokens=8, length="fixed", steps=4, guidance="classifier_free")
    hook.remove()
    assert [ask.guess is None for ask in heard] == [bool(ask.branch) for ask in heard]
    assert {ask.branch for ask in heard} == {0, 1}


# ---- the objective


def batch() -> Any:
    return pairs([([A, SEP], [A, B, C, B, A, EOS]), ([B, SEP], [A, C, B, EOS]), ([C, A, SEP], [B, A, A, EOS])], 12)


def tiny_network(seed: int = 0, guess: float = 1.0) -> Transformer:
    torch.manual_seed(seed)
    made = Transformer(Config(VOCABULARY.vocab_size, dim=16, layers=1, heads=2, max_length=32, guess=True))
    for name, parameter in made.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=guess if name == "guess.weight" else 1.0)
    return made


def spec() -> Spec:
    return replace(family("masked")[0], guesses=2)


def learnt(share: float, seed: int = 0, net: Transformer | None = None) -> tuple[Prepared, list[Forward]]:
    objective = Told(Masked(weight="flat"), share, 2)
    return corrupt(objective, batch(), spec(), torch.Generator().manual_seed(seed), {"main": net or tiny_network()})


@pytest.mark.parametrize("seed", range(3))
def test_in_training_a_share_of_the_rows_is_told_what_the_network_says_of_them(seed: int) -> None:
    net, chosen = tiny_network(), spec()
    plain = Masked(weight="flat").prepare(batch(), chosen, torch.Generator().manual_seed(seed))
    assert learnt(0.0, seed)[0].ask.guess is None and learnt(0.0, seed)[1] == []
    prepared, looked = learnt(1.0, seed, net)
    ask, guess = prepared.ask, prepared.ask.guess
    assert len(looked) == 1 and guess is not None
    assert torch.equal(ask.x, plain.ask.x) and torch.equal(ask.want, plain.ask.want)
    hidden = ask.x == MASK
    with torch.no_grad():
        logits = net.eval()(replace(plain.ask, want=torch.where(hidden, ask.pos, -1)))
    logits[:, [*chosen.forbidden, MASK]] = -torch.inf
    top = logits.softmax(-1).topk(2)
    torch.testing.assert_close(guess.weight[hidden], top.values)
    assert torch.equal(guess.token[hidden], top.indices)
    assert not guess.weight[~hidden].any()  # nothing of what is shown, and nothing of the length


def test_rows_are_told_or_not_as_a_whole_in_the_share_asked_for() -> None:
    told = 0
    for seed in range(60):
        guess, hidden = learnt(0.5, seed)[0].ask.guess, learnt(0.5, seed)[0].ask.x == MASK
        for row in range(3):
            any_of = torch.zeros(0) if guess is None else guess.weight[row][hidden[row]].sum(1)
            assert bool((any_of > 0).all()) or not bool((any_of > 0).any())
            told += len(any_of) > 0 and bool((any_of > 0).all())
    assert abs(told / 180 - 0.5) < 0.12


def test_no_gradient_flows_through_the_guess_and_the_map_learns() -> None:
    net = tiny_network(guess=0.0)
    prepared, _ = learnt(1.0, 1, net)
    objective = Told(Masked(weight="flat"), 1.0, 2)
    backward(net, objective, prepared, 1.0)
    assert net.guess is not None and net.guess.weight.grad is not None and bool(net.guess.weight.grad.any())
    mine = [p.grad.clone() for name, p in net.named_parameters() if p.grad is not None and "guess" not in name]
    net.zero_grad()
    deaf = replace(prepared, ask=replace(prepared.ask, guess=None))  # with the map at zero, the same function
    backward(net, objective, deaf, 1.0)
    theirs = [p.grad for name, p in net.named_parameters() if p.grad is not None and "guess" not in name]
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_scored_by_two_passes_which_with_a_new_map_is_the_plain_bound() -> None:
    net, plain, told = tiny_network(guess=0.0).eval(), Masked(), Told(Masked(), 0.5, 2)
    one = bound(net, [batch()], plain, spec(), samples=3)
    two = bound(net, [batch()], told, spec(), samples=3)
    assert one.rows == pytest.approx(two.rows, rel=1e-6) and two.is_bound
    loudly = tiny_network().eval()
    with torch.no_grad():
        noise = torch.Generator().manual_seed(0)
        whole, looked = corrupt(told.scoring(), batch(), spec(), noise, {"main": loudly})
        assert len(looked) == 1 and whole.ask.guess is not None and bool(whole.ask.guess.weight.any(2).any(1).all())
        assert not torch.allclose(loudly(whole.ask), loudly(replace(whole.ask, guess=None)))


def test_the_bound_of_two_passes_is_one() -> None:
    """Bounds -log p(x) <= nats(x) of every text there is: e^-nats sum to one at most. A guess that knew x would not."""
    net, one = tiny_network(), spec()
    texts = [list(text) for text in product([A, B, C], repeat=3)]
    rows = pairs([([A, SEP], [*text, EOS]) for text in texts])
    given = replace(one, length_head=False, forbidden=(*one.forbidden, EOS))  # of three letters and no end
    rows = pairs([([A, SEP], text) for text in texts])
    found = bound(net.eval(), [rows], Told(Masked(), 0.5, 2), given, samples=200)
    assert sum(math.exp(-nats) for nats in found.rows) < 1 + 0.02


# ---- models


def test_fine_tuning_begins_where_the_plain_model_stands(tmp_path: Path) -> None:
    tokenizer = Tokenizer.bytes()
    plain = Model.fresh({"name": "masked"}, tokenizer, shape("toy", tokenizer.vocab_size), True, seed=1)
    way: dict[str, Any] = {"max_new_tokens": 12, "steps": 6}
    loud(plain.network)
    before = plain.generate("abc", **way)[0]
    plain.save(tmp_path / "plain")
    told = become(redraft.load(tmp_path / "plain"), {"name": "masked", "self_condition": 0.5})
    assert told.generate("abc", **way)[0].ids == before.ids
    loud(told.network)
    told.save(tmp_path / "told")
    again = redraft.load(tmp_path / "told")
    assert again.spec.guesses == 3 and again.network.config.guess
    assert torch.equal(again.network.guess.weight, told.network.guess.weight)
    assert again.generate("abc", **way)[0].ids == told.generate("abc", **way)[0].ids
    assert become(again, {"name": "masked"}).spec.guesses == 3  # it stays what it was ...
    assert become(again, {"name": "masked", "self_condition": 0.0}).network.guess is None  # ... unless told otherwise
    (tmp_path / "told" / "config.json").write_text(
        (tmp_path / "told" / "config.json").read_text().replace('"self_condition": 0.5', '"self_condition": 0.0')
    )
    with pytest.raises(UserError, match="not made for family"):
        redraft.load(tmp_path / "told")


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "masked", "self_condition": 1.5},
        {"name": "masked", "self_condition": 0.5, "guesses": 0},
        {"name": "masked", "self_condition": 0.5, "autoregressive": 1.0, "shift": 1},
        {"name": "glancing", "self_condition": 0.5},
        {"name": "distilled", "self_condition": 0.5},
    ],
)
def test_wrong_options_are_errors_for_people(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        build_family(fields)


def test_what_can_not_be_told_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.bytes()
    public = Gpt(Shape(vocab_size=tokenizer.vocab_size, dim=32, layers=1, heads=2))
    family = build_family({"name": "masked", "isolate_prompt": False, "length_head": False})[1]
    with pytest.raises(UserError, match="can't be told"):
        become(Model(public, tokenizer, family, "masked", False), {"name": "masked", "self_condition": 0.5})
    told = model(isolate_prompt=False, length_head=False, conditional=False)
    with pytest.raises(UserError, match="no public format"):
        export("llada", told.network, told.tokenizer, told.spec, tmp_path / "out", "float32", "")
    plain = Model.fresh({"name": "masked"}, tokenizer, shape("toy", tokenizer.vocab_size), True)
    plain.save(tmp_path / "plain")
    recipe = Recipe.load(TOY / "masked.toml", [f"model.from={tmp_path / 'plain'}", "family.self_condition=0.5"])
    with pytest.raises(UserError, match="adapter"):
        prepare(replace(recipe, lora=Lora()), tmp_path, torch.device("cpu"))
