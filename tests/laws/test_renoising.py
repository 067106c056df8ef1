"""Laws of blocks of random tokens after causal text, and of the network of DiffusionGemma."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.caches.exact import Exact
from redraft.canvas import make_canvas
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families import build_family
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.models.cpu.transformer import CpuTransformer
from redraft.models.diffusion_gemma import Config, DiffusionGemma
from redraft.models.parts import streams
from redraft.models.parts.moe import Experts
from redraft.models.parts.self_conditioning import ExpectedEmbedding
from redraft.models.transformer import Transformer
from redraft.presets import preset
from redraft.rollouts import prepare_batch
from redraft.samplers.renoising import Renoising
from redraft.types import FREE, AttentionPattern, Batch, CleanStream, DraftQuery, Forward
from redraft.types.spec import WHOLE
from tests.tiny import VOCABULARY, family, pairs

A, B, C = VOCABULARY.letters
EOS, SEP = VOCABULARY.eos_id, VOCABULARY.sep_id
SIZE = VOCABULARY.vocab_size


def network(kind: str, size: int = SIZE) -> Any:
    torch.manual_seed(0)
    if kind == "transformer":
        shape = preset("toy", size, shift=1, self_conditioning=True, restart=False)
        made: Any = Transformer(replace(shape, window=3, distant=(0,)))
    else:
        experts = Experts(4, 2, 12, normalise=True, activation="gelu_tanh", scaled=True)
        heads = {"heads": 4, "kv_heads": 2, "head_dim": 6, "distant_kv_heads": 1, "distant_head_dim": 8}
        made = DiffusionGemma(
            Config(size, 24, 3, mlp_dim=20, max_length=64, window=3, distant=(2,), experts=experts, **heads)
        )
    for parameter in made.double().requires_grad_(False).eval().parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def batch() -> Batch:
    rows = [([A, B, A, C, SEP], [C, A, A, B, EOS]), ([C, SEP], [EOS]), ([B, C, A, A, SEP], [B, B, C, B, A, B, EOS])]
    return pairs(rows)


each_network = pytest.mark.parametrize("kind", ["transformer", "diffusion_gemma"])


@each_network
@pytest.mark.parametrize("paired", [True, False], ids=["paired", "plain"])
def test_a_training_pass_equals_the_passes_of_generation(kind: str, paired: bool) -> None:
    """Each noisy block is computed as in generation: behind the clean text, with all of it visible to itself and the
    window of a layer before it. The clean stream is the causal reading."""
    spec, objective = family("hybrid-uniform", False, block=3)
    net, rows = network(kind), batch() if paired else replace(batch(), prompt=None)
    prepared = objective.prepare(rows, spec, torch.Generator().manual_seed(4))
    request = prepared.request
    width = int(request.positions.max()) + 1
    vectors = torch.randn(len(rows.ids), width, net.config.dim, dtype=torch.float64)
    request = request.with_extra(ExpectedEmbedding(vectors))
    logits, count = net(request), int((request.targets >= 0).sum())
    read = family("autoregressive", False)[1].prepare(rows, spec, torch.Generator())
    torch.testing.assert_close(logits[count:], net(read.request), rtol=1e-9, atol=1e-9)
    begin = request.find(DraftQuery).draft_from  # type: ignore[union-attr]
    row, column = (request.targets >= 0).nonzero(as_tuple=True)
    for number, (r, at) in enumerate(zip(row.tolist(), request.targets[row, column].tolist(), strict=True)):
        assert begin is not None
        start = int(begin[r]) + (at - int(begin[r])) // 3 * 3
        inside = (request.positions[r] >= start) & (request.positions[r] < start + 3)
        x = torch.cat([rows.ids[r, :start], request.tokens[r, inside]])[None]
        pos = torch.arange(x.shape[1])[None]
        before = vectors[r : r + 1] * (torch.arange(width) >= start)[:, None]  # of positions that are open
        extra = (DraftQuery(0, torch.tensor([start])), ExpectedEmbedding(before))
        draft = Forward(x, pos, torch.tensor([[at]]), AttentionPattern("causal", 3), extra=extra)
        torch.testing.assert_close(logits[number : number + 1], net(draft), rtol=1e-9, atol=1e-9)


def test_all_tokens_of_the_blocks_are_learnt_and_blocks_begin_at_the_end_of_the_prompt() -> None:
    spec, objective = family("hybrid-uniform", False, block=3)
    rows = batch()
    assert rows.prompt is not None
    share = []
    for seed in range(40):
        prepared = objective.prepare(rows, spec, torch.Generator().manual_seed(seed))
        request, clean = prepared.request, prepared.request.find(CleanStream)
        assert clean is not None and torch.equal(request.positions[:, 0], rows.prompt)
        assert ((request.positions >= 0).sum(1) % 3 == 0).all()  # the last block is complete
        count = int((request.targets >= 0).sum())
        assert count == int((request.positions >= 0).sum())
        noised = request.tokens[request.targets >= 0] != prepared.target[:count]
        assert not set(request.tokens[request.positions >= 0].tolist()) & set(spec.tokens.forbidden)
        share.append(float(noised.double().mean()))
    assert 0.3 < sum(share) / len(share) < 0.8  # rates are from (0.5, 1], and a random token may be the same


def test_flex_attention_sees_what_the_dense_mask_shows_with_whole_blocks() -> None:
    spec, objective = family("hybrid-uniform", False, block=3)
    net = network("diffusion_gemma")
    request = objective.prepare(batch(), spec, torch.Generator().manual_seed(1)).request
    context = net.context(request).local
    draft = request.find(DraftQuery)
    assert draft is not None and context.mask is not None
    near = torch.cat(
        [draft.begins(request.positions, request.attention), request.streams[1][:, request.tokens.shape[1] :]], 1
    )
    width = request.streams[1].shape[1]
    query = torch.randn(len(near), 1, width, 8)
    flex = streams.flex_attention(compiled=False)
    found = flex(query, query, query, block_mask=streams.flex_mask(request, query.device, 2, near))
    wanted = torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=context.mask)
    real = request.streams[1] >= 0
    torch.testing.assert_close(found.transpose(1, 2)[real], wanted.transpose(1, 2)[real], rtol=1e-4, atol=1e-5)


# ---- the sampler


@pytest.mark.parametrize("bound", [0.0, 0.7, 3.0])
def test_as_many_positions_are_accepted_as_the_bound_allows(bound: float) -> None:
    """The accepted set is the largest one, in the order of entropies, with sum H - max H <= bound."""
    sampler = Renoising(bound=bound)
    entropy = torch.rand(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    entropy[0, 4:] = torch.inf  # no targets
    for row, found in zip(entropy, sampler.accepted(entropy), strict=True):
        real = row.isfinite().nonzero()[:, 0].tolist()
        fitting = [
            chosen
            for size in range(1, len(real) + 1)
            for chosen in combinations(real, size)
            if float(row[list(chosen)].sum() - row[list(chosen)].max()) <= bound
            and float(row[list(chosen)].max())
            <= min([float(row[i]) for i in real if i not in chosen], default=torch.inf)
        ]
        assert set(found.nonzero()[:, 0].tolist()) == set(max(fitting, key=len))


class Certain:
    """A network that is certain of one token for each position."""

    def __init__(self, text: list[int], sharpness: float) -> None:
        self.text, self.sharpness, self.requests = torch.tensor(text), sharpness, list[Forward]()

    def __call__(self, request: Forward, store: object = None) -> Tensor:
        self.requests.append(request)
        wanted = self.text[request.targets[request.targets >= 0]]
        return torch.nn.functional.one_hot(wanted, SIZE) * self.sharpness


def written(sampler: Renoising, sharpness: float, eos: int = -1) -> tuple[list[int], list[Forward]]:
    spec, _ = family("hybrid-uniform", False)
    spec = spec.with_tokens(eos_id=eos)
    text = [A, B, C, A, EOS, B, C, C, A]
    canvas = make_canvas([[A, B, *[None] * 7]], [2], spec, seeds=[0], temperature=1.0)
    net = Certain(text, sharpness)
    for _ in Loop({"main": net}, Method(sampler), spec).run(canvas):
        pass
    assert not (canvas.status == FREE).any()
    return canvas.ids[0].tolist(), net.requests


def test_a_block_is_final_when_the_likeliest_tokens_are_stable_and_sure() -> None:
    text = [A, B, C, A, EOS, B, C, C, A]
    for stable, passes in ((0, 1), (1, 2), (3, 4)):
        ids, requests = written(Renoising(steps=9, block=3, stable=stable), 50.0)
        assert ids == text
        assert len(requests) == 3 * passes  # blocks of 3, 3 and 1
        assert [int(r.find(DraftQuery).draft_from) for r in requests[::passes]] == [2, 5, 8]  # type: ignore[union-attr, arg-type]
    ids, requests = written(Renoising(steps=4, block=7, stable=1, sure=0.005), 1.0)  # stable, never sure
    assert ids == text and len(requests) == 4


def test_nothing_is_written_behind_the_block_of_an_end() -> None:
    ids, requests = written(Renoising(steps=9, block=3), 50.0, eos=EOS)
    assert ids[:5] == [A, B, C, A, EOS] and len(requests) == 2


def test_the_temperature_falls_linearly() -> None:
    seen = []
    spec, _ = family("hybrid-uniform", False)
    canvas = make_canvas([[A, *[None] * 2]], [1], spec, seeds=[0], temperature=0.5)
    sampler = Renoising(steps=4, block=2, t_min=0.2, t_max=1.0, sure=0.0)
    loop = Loop({"main": Certain([A] * 3, 1.0)}, Method(sampler), spec)
    loop.on_answer = lambda request, out: seen.append(float(request.drawing.heat))  # type: ignore[arg-type]
    for _ in loop.run(canvas):
        pass
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([1.0, 0.8, 0.6, 0.4]))


def test_a_schedule_is_a_factor_of_the_temperature() -> None:
    """The same numbers draw the same tokens at temperature 0.5 with the factor 0.6 as at 0.3."""
    from redraft.generation.sampling import sample
    from redraft.types import Drawing, Request

    spec, _ = family("masked", False)
    log_p = torch.randn(64, SIZE, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    found = []
    for temperature, heat in ((0.5, 0.6), (0.3, None)):
        canvas = make_canvas([[None] * 64], [0], spec, seeds=[3], temperature=temperature)
        drawing = Drawing(torch.tensor([0]), heat=None if heat is None else torch.tensor([heat]))
        pos = torch.arange(64)[None]
        found.append(sample(canvas, Request(pos, pos, pos, AttentionPattern(), drawing=drawing), log_p).token)
    assert torch.equal(*found)


def test_other_models_and_samplers_are_refused() -> None:
    uniform, masked = family("hybrid-uniform", False)[0], family("hybrid", False)[0]
    for name, options, spec in (
        ("renoising", {}, masked),
        ("renoising", {"t_min": 0.9}, uniform),
        *((name, {}, uniform) for name in ("draft_verify", "causal_blocks", "self_speculation")),
    ):
        from redraft.registry import find

        canvas = make_canvas([[A, None]], [1], spec, seeds=[0])
        with pytest.raises(UserError, match="random tokens|t_min|uniform noise.*renoising"):
            find("samplers", name)(**options).start(canvas, spec)
    with pytest.raises(UserError, match="process uniform"):
        build_family({"name": "hybrid", "self_condition": 0.5})


# ---- self-conditioning over the vocabulary


class Watched:
    """A network that records its requests and its logits."""

    def __init__(self, network: Any) -> None:
        self.network, self.seen = network, list[tuple[Forward, Tensor]]()

    def __call__(self, request: Forward, store: Any = None) -> Tensor:
        logits: Tensor = self.network(request, store)
        self.seen.append((request, logits.clone()))
        return logits

    def store(self, slots: int, positions: int) -> Any:
        return self.network.store(slots, positions)

    def expected(self, log_p: Tensor) -> Tensor:
        found: Tensor = self.network.expected(log_p)
        return found


@each_network
def test_each_pass_reads_the_mean_embedding_of_the_pass_before(kind: str) -> None:
    """sum_k p_k e_k with p = softmax(logits / T) of the same block; nothing in the first pass over a block."""
    spec, _ = family("hybrid-uniform", False, block=3, self_condition=0.5)
    assert spec.network.self_conditioning == WHOLE
    spec = spec.with_tokens(eos_id=-1)
    net = Watched(network(kind))
    canvas = make_canvas([[A, B, *[None] * 6]], [2], spec, seeds=[0], temperature=1.0)
    sampler = Renoising(steps=3, block=3, t_min=0.4, t_max=1.0, sure=0.0)
    for _ in Loop({"main": net}, Method(sampler, Exact()), spec).run(canvas):
        pass
    heats, table = [1.0, 0.8, 0.6], net.network.embedding.weight
    assert len(net.seen) == 6
    for number, (request, _) in enumerate(net.seen):
        given = request.find(ExpectedEmbedding)
        if number % 3 == 0:
            assert given is None or not given.vectors.any()
            continue
        assert given is not None
        logits = net.seen[number - 1][1].clone()
        logits[:, list(spec.tokens.forbidden)] = -torch.inf
        wanted = (logits.float() / heats[number % 3 - 1]).softmax(-1).to(table) @ table
        found = given.vectors[0, request.targets[0]]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert not given.vectors[0, : int(request.targets.min())].any()


@each_network
def test_training_reads_the_mean_embedding_of_a_first_pass(kind: str) -> None:
    spec, _ = family("hybrid-uniform", False, block=3, self_condition=1.0)
    objective = build_family({"name": "hybrid", "block": 3, "process": "uniform", "self_condition": 1.0})[1].training()
    net, rows = network(kind), batch()
    prepared, ran = prepare_batch(objective, rows, spec, torch.Generator().manual_seed(0), {"main": net})
    given, request = prepared.request.find(ExpectedEmbedding), prepared.request
    assert len(ran) == 1 and given is not None
    plain = objective.inner.prepare(rows, spec, torch.Generator().manual_seed(0)).request
    assert torch.equal(plain.tokens, request.tokens)
    count = int((plain.targets >= 0).sum())
    logits = net(plain)[:count]
    logits[:, list(spec.tokens.forbidden)] = -torch.inf
    row, column = (plain.targets >= 0).nonzero(as_tuple=True)
    table = net.embedding.weight
    wanted = logits.float().softmax(-1).to(table) @ table
    torch.testing.assert_close(given.vectors[row, plain.targets[row, column]], wanted, rtol=1e-5, atol=1e-6)
    none = replace(objective, share=0.0)
    prepared, ran = prepare_batch(none, rows, spec, torch.Generator().manual_seed(0), {"main": net})
    assert not ran and prepared.request.find(ExpectedEmbedding) is None


def test_the_cpu_form_reads_previous_predictions() -> None:
    torch.manual_seed(0)
    net = Transformer(preset("toy", SIZE, shift=1, self_conditioning=True)).requires_grad_(False).eval()
    assert net.self_conditioning is not None
    net.self_conditioning.weight.data.normal_()
    spec, objective = family("hybrid-uniform", block=3)
    request = objective.prepare(batch(), spec, torch.Generator().manual_seed(4)).request
    width = int(request.streams[1].max()) + 1
    request = request.with_extra(ExpectedEmbedding(torch.randn(3, width, net.config.dim)))
    form = CpuTransformer(net)
    torch.testing.assert_close(form(request), net(request), rtol=1e-4, atol=1e-5)
    log_p = torch.randn(2, SIZE).log_softmax(-1)
    torch.testing.assert_close(form.expected(log_p), net.expected(log_p))


# ---- a model of DiffusionGemma's network: caches, batches


def gemma() -> Model:
    tokenizer = Tokenizer.bytes()
    table = {"name": "hybrid", "block": 5, "process": "uniform", "prompt_encoder": False, "self_condition": 0.5}
    net = network("diffusion_gemma", tokenizer.vocab_size)
    net.config = replace(net.config, vocab_size=tokenizer.vocab_size)
    return Model(net, tokenizer, build_family(table)[1], "hybrid", True)


SETTINGS: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "ignore_eos": True, "steps": 4}
PROMPTS = ["a", "a longer prompt", "of three"]


@pytest.mark.parametrize("options", [{"block": 5, "bound": 3.0}, {"block": 4, "bound": 3.0, "sure": 20.0}])
def test_neither_the_cache_nor_the_batch_changes_a_text(options: dict[str, Any]) -> None:
    model = gemma()
    asked = {**SETTINGS, "options": options}
    whole = [text.ids for text in model.generate(PROMPTS, cache="none", **asked)]
    assert [text.ids for text in model.generate(PROMPTS, cache="exact", **asked)] == whole
    alone = [model.generate(p, cache="exact", **{**asked, "seed": n})[0].ids for n, p in enumerate(PROMPTS)]
    assert alone == whole and len({tuple(ids) for ids in whole}) == 3


def test_prompts_are_read_causally() -> None:
    model = gemma()
    with pytest.raises(UserError, match="reads prompts causally"):
        Model(model.network, model.tokenizer, replace(model.family, prompt_encoder=True), "hybrid", True)


def test_the_causal_reading_is_an_autoregressive_model() -> None:
    """Its likelihood is that of next tokens, and it generates left to right."""
    model = gemma()
    text = model.generate("abc", max_new_tokens=5, sampler="autoregressive", ignore_eos=True, temperature=0.0)[0]
    head = model.tokenizer.encode_prompt("abc")
    logits = model.logits(torch.tensor([[*head, *text.ids]]))[0].clone()
    logits[:, list(model.spec.tokens.forbidden)] = -torch.inf
    assert logits[len(head) - 1 : -1].argmax(-1).tolist() == text.ids
    scored = model.score("abc", "de")
    ids = [*model.tokenizer.encode_target("de")]
    log_p = model.logits(torch.tensor([[*head, *ids]]))[0].clone()
    log_p[:, list(model.spec.tokens.forbidden)] = -torch.inf
    nats = -log_p.log_softmax(-1)[torch.arange(len(head) - 1, len(head) + len(ids) - 1), torch.tensor(ids)].sum()
    assert not scored.is_bound
    torch.testing.assert_close(
        torch.tensor(scored.nats), nats.double().float(), rtol=1e-4, atol=1e-4, check_dtype=False
    )
