"""Laws of self-conditioning: a zero-initialised map changes nothing, and the network reads its last prediction."""

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
from redraft.canvas import make_canvas
from redraft.conversion import convert_family
from redraft.convert import export
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families import build_family
from redraft.generation.loop import Loop, Method
from redraft.likelihood import bound, prepare_batch
from redraft.lora import Lora
from redraft.model import Model
from redraft.models.cpu.cross_attention import CpuCrossAttention
from redraft.models.cpu.transformer import CpuTransformer
from redraft.models.gpt import Config as Shape
from redraft.models.gpt import Gpt
from redraft.models.parts.readout import Readout
from redraft.models.transformer import Config, Transformer
from redraft.objectives.masked import Masked
from redraft.objectives.shared.vocabulary import backward
from redraft.objectives.wrappers.self_conditioned import SelfConditioned
from redraft.presets import shape
from redraft.samplers.confidence import Confidence
from redraft.train.recipe import Recipe
from redraft.train.setup import prepare
from redraft.types import FREE, Canvas, Forward, Prepared, Request, SelfConditioning, Spec
from tests.tiny import VOCABULARY, changed, family, pairs, without

A, B, C = VOCABULARY.letters
EOS, SEP, MASK = VOCABULARY.eos_id, VOCABULARY.sep_id, VOCABULARY.mask_id
NETWORKS = ["transformer", "cross_attention"]
TOY = Path(__file__).parents[2] / "recipes" / "toy"


def randomise(network: Readout, projection: float = 1.0) -> Readout:
    """Larger weights, and a self-conditioning projection that is not zero."""
    for name, parameter in network.requires_grad_(False).eval().named_parameters():
        if name == "self_conditioning.weight":
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 2 * projection)
        elif parameter.ndim == 2:
            parameter.mul_(5)
    return network


def model(network: str = "transformer", paired: bool = True, **fields: Any) -> Model:
    tokenizer = Tokenizer.bytes()
    table = {"name": "masked", "self_condition": 0.5, **fields}
    made = Model.fresh(table, tokenizer, shape("toy", tokenizer.vocab_size, network), paired, seed=1)
    return made


def make_request(seed: int = 0, size: int = 2) -> Forward:
    """Two prompts of three tokens, with masks in their answers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(5, 200, (2, 10), generator=generator)
    x[:, 5:9] = Tokenizer.bytes().mask_id
    pos = torch.arange(10).repeat(2, 1)
    previous = SelfConditioning(torch.randint(5, 200, (2, 10, size), generator=generator), torch.zeros(2, 10, size))
    previous.weight[0, 5:9] = torch.rand(4, size, generator=generator) / size
    targets = torch.where((pos >= 5) & (pos < 9), pos, -1)
    spec = model().spec
    return Forward(
        tokens=x,
        positions=pos,
        targets=targets,
        attention=spec.network.attention,
        prompt=torch.tensor([3, 3]),
        extra=(previous,),
    )


# ---- the network


@pytest.mark.parametrize("name", NETWORKS)
def test_a_new_projection_changes_nothing_and_a_trained_one_only_positions_with_predictions(name: str) -> None:
    net, request = model(name).network, make_request()
    with torch.no_grad():
        plain = net(without(request, SelfConditioning))
        assert torch.equal(net(request), plain)
        randomise(net)
        unconditioned = net(without(request, SelfConditioning))
        conditioned, rows = net(request), torch.arange(8) // 4
    assert not torch.isclose(conditioned[rows == 0], unconditioned[rows == 0]).all(1).any()
    assert torch.equal(conditioned[rows == 1], unconditioned[rows == 1])  # positions without predictions


def test_the_added_input_is_the_projected_mean_embedding() -> None:
    net, request = randomise(model().network), make_request()
    added = net.embed(request) - net.embed(without(request, SelfConditioning))
    last = request.find(SelfConditioning)
    assert last is not None and net.self_conditioning is not None
    e, w = net.embedding.weight, net.self_conditioning.weight
    expected = torch.einsum("rpk,rpkd,ed->rpe", last.weight, e[last.token], w)
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)
    # predictions are indexed by position, not by column
    some = replace(request, tokens=request.tokens[:, [8, 5]], positions=request.positions[:, [8, 5]])
    added = net.embed(some) - net.embed(without(some, SelfConditioning))
    torch.testing.assert_close(added, expected[:, [8, 5]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_cpu_form_reads_the_previous_prediction(name: str) -> None:
    net, request = randomise(model(name).network), make_request()
    cpu_form = {"transformer": CpuTransformer, "cross_attention": CpuCrossAttention}[name](net)  # type: ignore[arg-type]
    torch.testing.assert_close(cpu_form(request), net(request), rtol=1e-4, atol=1e-4)


# ---- the loop


class RecordingNetwork(nn.Module):
    """A network whose logits depend only on the tokens; it records its requests and its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.said = list[Forward](), list[Tensor]()
        self.table = torch.randn(7, 32, VOCABULARY.vocab_size, generator=torch.Generator().manual_seed(0)) * 2

    def forward(self, request: Forward, store: object = None) -> Tensor:
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        logits = self.table[request.tokens.sum(1)[row] % 7, request.targets[row, column]]
        self.asked.append(request)
        self.said.append(logits.clone())
        return logits.clone()


def self_conditioned_spec(paired: bool = True) -> Spec:
    return family("masked", paired)[0].with_network(self_conditioning=2, length_head=False)


def canvas(spec: Spec, temperature: float = 0.0) -> Canvas:
    rows: list[list[int | None]] = [[A, SEP, *[None] * 7], [B, C, SEP, None, A, *[None] * 3]]
    return make_canvas(rows, [2, 3], spec, seeds=[0, 1], temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_loop_passes_the_previous_prediction_at_open_positions(temperature: float) -> None:
    spec, net = self_conditioned_spec().with_tokens(eos_id=-1), RecordingNetwork()
    board = canvas(spec, temperature)
    barred = sorted({*spec.tokens.forbidden})
    last = torch.zeros(*board.ids.shape, spec.tokens.vocab_size)
    loop = Loop({"main": net}, Method(Confidence(steps=7, block=4)), spec).run(board)
    passes, free = 0, board.status == FREE
    for _ in loop:
        request, said = net.asked[passes], net.said[passes]
        conditioned = request.find(SelfConditioning)
        assert conditioned is not None and isinstance(request, Request)
        expected = torch.where(free[..., None], last, 0.0)[request.rows]
        given = torch.zeros_like(expected).scatter_add_(2, conditioned.token, conditioned.weight)
        best = expected.topk(2).indices
        kept = torch.zeros_like(expected).scatter(2, best, expected.gather(2, best))
        torch.testing.assert_close(given, kept)
        said = said.index_fill(1, torch.tensor(barred), -torch.inf)
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        last[request.rows[row], request.targets[row, column]] = said.softmax(-1)
        passes, free = passes + 1, board.status == FREE
    assert passes > 4 and not bool(free.any())
    first, second = (request.find(SelfConditioning) for request in net.asked[:2])
    assert first is not None and second is not None
    assert not first.weight.any() and second.weight.any()


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
    randomise(made.network).double()
    prompts = ["abc", "a longer prompt", "xy"]
    together = made.generate(prompts, max_new_tokens=12, length="fixed", **way)
    alone = [made.generate(p, max_new_tokens=12, length="fixed", seed=i, **way)[0] for i, p in enumerate(prompts)]
    cached = made.generate(prompts, max_new_tokens=12, length="fixed", cache="exact", **way)
    assert [g.ids for g in together] == [g.ids for g in alone] == [g.ids for g in cached]


def test_cached_blocks_were_computed_from_final_tokens() -> None:
    """Block-causal: an exact cache reuses finished blocks, which have no previous predictions."""
    made = model(block=4)
    randomise(made.network).double()
    way: dict[str, Any] = {"max_new_tokens": 12, "length": "fixed", "ignore_eos": True, "steps": 3}
    assert made.generate("abc", **way)[0].ids == made.generate("abc", cache="exact", **way)[0].ids


def test_previous_predictions_change_the_output() -> None:
    plain, conditioned = model(), model()
    randomise(plain.network, projection=0.0)
    randomise(conditioned.network)
    way: dict[str, Any] = {"max_new_tokens": 24, "length": "fixed", "steps": 12, "ignore_eos": True}
    assert plain.generate("abc", **way)[0].ids != conditioned.generate("abc", **way)[0].ids
    way["steps"] = 1  # there is no prediction before the first pass
    assert plain.generate("abc", **way)[0].ids == conditioned.generate("abc", **way)[0].ids


def test_guidance_gives_no_previous_prediction_to_rows_without_prompt() -> None:
    """Otherwise the previous prediction would carry information about the prompt."""
    made, requests = model(), list[Forward]()
    randomise(made.network)
    hook = made.network.register_forward_pre_hook(lambda module, given: requests.append(given[0]))
    made.network.double()  # without CPU form
    made.generate("abc", max_new_tokens=8, length="fixed", steps=4, guidance="classifier_free")
    hook.remove()
    conditioned = [request.find(SelfConditioning) is not None for request in requests]
    assert conditioned == [request.cache.branch == 0 for request in requests]
    assert {request.cache.branch for request in requests} == {0, 1}


# ---- the objective


def batch() -> Any:
    return pairs([([A, SEP], [A, B, C, B, A, EOS]), ([B, SEP], [A, C, B, EOS]), ([C, A, SEP], [B, A, A, EOS])], 12)


def tiny_network(seed: int = 0, projection: float = 1.0) -> Transformer:
    torch.manual_seed(seed)
    made = Transformer(Config(VOCABULARY.vocab_size, dim=16, layers=1, heads=2, max_length=32, self_conditioning=True))
    for name, parameter in made.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=projection if name == "self_conditioning.weight" else 1.0)
    return made


def spec() -> Spec:
    return family("masked")[0].with_network(self_conditioning=2)


def prepared_for(share: float, seed: int = 0, net: Transformer | None = None) -> tuple[Prepared, list[Forward]]:
    objective = SelfConditioned(Masked(weight="uniform"), share, 2)
    return prepare_batch(
        objective, batch(), spec(), torch.Generator().manual_seed(seed), {"main": net or tiny_network()}
    )


@pytest.mark.parametrize("seed", range(3))
def test_in_training_a_share_of_the_rows_reads_the_networks_predictions(seed: int) -> None:
    net, chosen = tiny_network(), spec()
    plain = Masked(weight="uniform").prepare(batch(), chosen, torch.Generator().manual_seed(seed))
    assert prepared_for(0.0, seed)[0].request.find(SelfConditioning) is None and prepared_for(0.0, seed)[1] == []
    prepared, passes = prepared_for(1.0, seed, net)
    request, previous = prepared.request, prepared.request.find(SelfConditioning)
    assert len(passes) == 1 and previous is not None
    assert torch.equal(request.tokens, plain.request.tokens) and torch.equal(request.targets, plain.request.targets)
    hidden = request.tokens == MASK
    with torch.no_grad():
        logits = net.eval()(replace(plain.request, targets=torch.where(hidden, request.positions, -1)))
    logits[:, [*chosen.tokens.forbidden, MASK]] = -torch.inf
    top = logits.softmax(-1).topk(2)
    torch.testing.assert_close(previous.weight[hidden], top.values)
    assert torch.equal(previous.token[hidden], top.indices)
    assert not previous.weight[~hidden].any()  # no predictions at visible positions and of the length


def test_whole_rows_are_selected_with_the_requested_share() -> None:
    conditioned = 0
    for seed in range(60):
        request = prepared_for(0.5, seed)[0].request
        previous, hidden = request.find(SelfConditioning), request.tokens == MASK
        for row in range(3):
            any_of = torch.zeros(0) if previous is None else previous.weight[row][hidden[row]].sum(1)
            assert bool((any_of > 0).all()) or not bool((any_of > 0).any())
            conditioned += len(any_of) > 0 and bool((any_of > 0).all())
    assert abs(conditioned / 180 - 0.5) < 0.12


def test_no_gradient_flows_through_the_prediction_and_the_projection_is_trained() -> None:
    net = tiny_network(projection=0.0)
    prepared, _ = prepared_for(1.0, 1, net)
    objective = SelfConditioned(Masked(weight="uniform"), 1.0, 2)
    backward(net, objective, prepared, 1.0)
    assert (
        net.self_conditioning is not None
        and net.self_conditioning.weight.grad is not None
        and bool(net.self_conditioning.weight.grad.any())
    )
    mine = [
        p.grad.clone() for name, p in net.named_parameters() if p.grad is not None and "self_conditioning" not in name
    ]
    net.zero_grad()
    plain = replace(
        prepared, request=without(prepared.request, SelfConditioning)
    )  # with a projection of zero, the function is the same
    backward(net, objective, plain, 1.0)
    theirs = [p.grad for name, p in net.named_parameters() if p.grad is not None and "self_conditioning" not in name]
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_scoring_takes_two_passes_and_with_a_new_projection_equals_the_masked_bound() -> None:
    net, plain, conditioned = tiny_network(projection=0.0).eval(), Masked(), SelfConditioned(Masked(), 0.5, 2)
    one = bound(net, [batch()], plain, spec(), samples=3)
    two = bound(net, [batch()], conditioned, spec(), samples=3)
    assert one.rows == pytest.approx(two.rows, rel=1e-6) and two.is_bound
    randomised = tiny_network().eval()
    with torch.no_grad():
        noise = torch.Generator().manual_seed(0)
        whole, passes = prepare_batch(conditioned.scoring(), batch(), spec(), noise, {"main": randomised})
        previous = whole.request.find(SelfConditioning)
        assert len(passes) == 1 and previous is not None and bool(previous.weight.any(2).any(1).all())
        assert not torch.allclose(randomised(whole.request), randomised(without(whole.request, SelfConditioning)))


def test_the_bound_of_two_passes_is_valid() -> None:
    """As -log p(x) <= nats(x) for every sequence x, the sum of e^-nats is at most one. If the previous prediction
    depended on x, it would be larger."""
    net, one = tiny_network(), spec()
    texts = [list(text) for text in product([A, B, C], repeat=3)]
    rows = pairs([([A, SEP], [*text, EOS]) for text in texts])
    # sequences of three letters without end-of-text
    given = changed(one, length_head=False, forbidden=(*one.tokens.forbidden, EOS))
    rows = pairs([([A, SEP], text) for text in texts])
    found = bound(net.eval(), [rows], SelfConditioned(Masked(), 0.5, 2), given, samples=200)
    assert sum(math.exp(-nats) for nats in found.rows) < 1 + 0.02


# ---- models


def test_fine_tuning_starts_from_the_function_of_the_plain_model(tmp_path: Path) -> None:
    tokenizer = Tokenizer.bytes()
    plain = Model.fresh({"name": "masked"}, tokenizer, shape("toy", tokenizer.vocab_size), True, seed=1)
    way: dict[str, Any] = {"max_new_tokens": 12, "steps": 6}
    randomise(plain.network)
    before = plain.generate("abc", **way)[0]
    plain.save(tmp_path / "plain")
    conditioned = convert_family(redraft.load(tmp_path / "plain"), {"name": "masked", "self_condition": 0.5})
    assert conditioned.generate("abc", **way)[0].ids == before.ids
    randomise(conditioned.network)
    conditioned.save(tmp_path / "conditioned")
    again = redraft.load(tmp_path / "conditioned")
    assert again.spec.network.self_conditioning == 3 and again.network.config.self_conditioning
    assert torch.equal(again.network.self_conditioning.weight, conditioned.network.self_conditioning.weight)
    assert again.generate("abc", **way)[0].ids == conditioned.generate("abc", **way)[0].ids
    assert convert_family(again, {"name": "masked"}).spec.network.self_conditioning == 3  # the setting is kept ...
    assert (
        convert_family(again, {"name": "masked", "self_condition": 0.0}).network.self_conditioning is None
    )  # ... unless it is changed
    (tmp_path / "conditioned" / "config.json").write_text(
        (tmp_path / "conditioned" / "config.json").read_text().replace('"self_condition": 0.5', '"self_condition": 0.0')
    )
    with pytest.raises(UserError, match="not made for family"):
        redraft.load(tmp_path / "conditioned")


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "masked", "self_condition": 1.5},
        {"name": "masked", "self_condition": 0.5, "self_condition_tokens": 0},
        {"name": "masked", "self_condition": 0.5, "autoregressive": 1.0, "shift": 1},
        {"name": "glancing", "self_condition": 0.5},
        {"name": "distilled", "self_condition": 0.5},
    ],
)
def test_invalid_options_are_user_errors(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        build_family(fields)


def test_networks_without_support_are_rejected(tmp_path: Path) -> None:
    tokenizer = Tokenizer.bytes()
    public = Gpt(Shape(vocab_size=tokenizer.vocab_size, dim=32, layers=1, heads=2))
    family = build_family({"name": "masked", "prompt_encoder": False, "length_head": False})[1]
    with pytest.raises(UserError, match="self-conditioning"):
        convert_family(Model(public, tokenizer, family, "masked", False), {"name": "masked", "self_condition": 0.5})
    conditioned = model(prompt_encoder=False, length_head=False, paired=False)
    with pytest.raises(UserError, match="can't hold a model with self-conditioning"):
        export("llada", conditioned.network, conditioned.tokenizer, conditioned.spec, tmp_path / "out", "float32", "")
    plain = Model.fresh({"name": "masked"}, tokenizer, shape("toy", tokenizer.vocab_size), True)
    plain.save(tmp_path / "plain")
    recipe = Recipe.load(TOY / "masked.toml", [f"model.from={tmp_path / 'plain'}", "family.self_condition=0.5"])
    with pytest.raises(UserError, match="adapter"):
        prepare(replace(recipe, lora=Lora()), tmp_path, torch.device("cpu"))
