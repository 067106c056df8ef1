"""Laws of requests and their extras: joined with others and split again, each is answered as it is alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft import registry
from redraft.caches.shared import narrowing
from redraft.generation.loop import Call
from redraft.models import diffusion_gemma, drafter, embedding_transformer, latent_transformer, transformer
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.self_conditioning import ExpectedEmbedding
from redraft.models.parts.store import KeyValueView
from redraft.serve.batching import groups, merge, split
from redraft.types import (
    AttentionPattern,
    CacheHint,
    CleanStream,
    DraftBlocks,
    DraftQuery,
    Drawing,
    Extra,
    Forward,
    QueryMask,
    Request,
    SelfConditioning,
    StateQuery,
    VectorQuery,
)
from tests.tiny import cached

for folder in ("samplers", "objectives", "families", "caches", "guidance"):  # a method may declare extras of its own
    for name in registry.names(folder):
        registry.find(folder, name)

FULL, CAUSAL, BLOCK = AttentionPattern("full"), AttentionPattern("causal"), AttentionPattern("block", 3)
SHAPES = [(1, 7, 3), (2, 10, 4), (1, 5, 2)]  # rows, positions and prompt of the requests that are joined
SLACK = 10**6


def network(kind: str = "transformer") -> Backbone:
    """A tiny network of random weights far from their initial ones, in float64."""
    base = {"vocab_size": 40, "dim": 24, "layers": 2, "heads": 2, "max_length": 64}
    torch.manual_seed(0)
    made: Backbone
    if kind == "transformer":
        made = transformer.Transformer(transformer.Config(**base, self_conditioning=True))
    elif kind == "embedding":
        made = embedding_transformer.EmbeddingTransformer(embedding_transformer.Config(**base, width=8))
    elif kind == "gemma":
        made = diffusion_gemma.DiffusionGemma(
            diffusion_gemma.Config(
                **{**base, "heads": 4}, head_dim=6, distant_head_dim=8, mlp_dim=20, window=4, distant=(1,)
            )
        )
    elif kind == "drafter":
        made = drafter.Drafter(drafter.Config(transformer.Config(**base, shift=1)))
    else:
        shape = latent_transformer.Config(**base, width=8, ratio=2, window=4, auto_dim=16)
        made = latent_transformer.LatentTransformer(shape)
    made.double().eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def random(rows: int, width: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 * rows + width)


def plain(rows: int, width: int, prompt: int, attention: AttentionPattern = FULL) -> Request:
    """Rows of which the last one is a position shorter, with every position after the prompt requested."""
    tokens = torch.randint(5, 40, (rows, width), generator=random(rows, width))
    positions = torch.arange(width).repeat(rows, 1)
    positions[-1, -1] = -1
    return Request(
        tokens=tokens,
        positions=positions,
        targets=torch.where(positions >= prompt, positions, -1),
        attention=attention,
        prompt=torch.full((rows,), prompt),
        drawing=Drawing(torch.arange(rows)),
        cache=CacheHint(kv_slot=torch.arange(rows)),
    )


# ---- a request with each kind of extra


def clean_stream(rows: int, width: int, prompt: int) -> Request:
    return _with_clean_stream(rows, width, prompt, targets=False)


def clean_stream_with_targets(rows: int, width: int, prompt: int) -> Request:
    return _with_clean_stream(rows, width, prompt, targets=True)


def _with_clean_stream(rows: int, width: int, prompt: int, targets: bool) -> Request:
    request = plain(rows, width, prompt, BLOCK)
    tokens = torch.randint(5, 40, (rows, width - prompt), generator=random(rows, width + 50))
    positions = request.positions[:, prompt:]
    stream = CleanStream(tokens, positions, BLOCK, positions.clone() if targets else None)
    return request.with_extra(stream)


def vectors(rows: int, width: int, prompt: int) -> Request:
    return _with_vectors(rows, width, prompt, previous=False)


def vectors_with_previous(rows: int, width: int, prompt: int) -> Request:
    return _with_vectors(rows, width, prompt, previous=True)


def _with_vectors(rows: int, width: int, prompt: int, previous: bool) -> Request:
    request = plain(rows, width, prompt)
    vectors, last = torch.randn(2, rows, width, 8, generator=random(rows, width), dtype=torch.float64)
    query = VectorQuery("predict", vectors, request.positions >= prompt, last if previous else None)
    return replace(request, time=torch.linspace(0.2, 0.9, rows)).with_extra(query)


def encoding(rows: int, width: int, prompt: int) -> Request:
    request = plain(rows, width, prompt)
    some = (request.positions - prompt) < (width - prompt - 1) // 2  # vectors of two tokens each
    return replace(request, targets=torch.where(some, request.targets, -1)).with_extra(VectorQuery("encode"))


def decoding(rows: int, width: int, prompt: int) -> Request:
    request = plain(rows, width, prompt)
    noisy = (request.positions >= prompt) & (request.positions < prompt + (width - prompt) // 2)
    z = torch.randn(rows, width, 8, generator=random(rows, width), dtype=torch.float64)
    targets = torch.where(noisy, request.positions, -1)
    return replace(request, targets=targets).with_extra(VectorQuery("decode", z, noisy))


def self_conditioning(rows: int, width: int, prompt: int) -> Request:
    request = plain(rows, width, prompt)
    return request.with_extra(last_prediction(request))


def last_prediction(request: Forward) -> SelfConditioning:
    rows, width = request.tokens.shape
    token = torch.randint(5, 40, (rows, width, 2), generator=random(rows, width))
    weight = torch.rand(rows, width, 2, generator=random(rows, width)) / 2
    return SelfConditioning(token, weight * (request.positions >= 4)[..., None])


def query_mask(rows: int, width: int, prompt: int) -> Request:
    request = plain(rows, width, prompt)
    mask = torch.rand(rows, width, width, generator=random(rows, width)) < 0.6
    return request.with_extra(QueryMask(mask | torch.eye(width, dtype=torch.bool)))


def query_mask_with_ids(rows: int, width: int, prompt: int) -> Request:
    """Two more queries at positions that run already; their targets are named by ids beyond the sequence."""
    request = query_mask(rows, width, prompt)
    own = request.find(QueryMask)
    assert own is not None
    at = torch.tensor([prompt, prompt + 1]).repeat(rows, 1)
    ids = torch.cat([request.positions, 20 + at], 1)
    mask = torch.nn.functional.pad(own.mask, (0, 2, 0, 2), value=False)
    mask[:, -2:, :prompt] = True
    mask |= torch.eye(width + 2, dtype=torch.bool)
    return replace(
        request,
        tokens=torch.cat([request.tokens, torch.full_like(at, 3)], 1),
        positions=torch.cat([request.positions, at], 1),
        targets=torch.cat([request.targets, 20 + at], 1),
    ).with_extra(QueryMask(mask, ids))


def draft(rows: int, width: int, prompt: int) -> Request:
    request = plain(rows, width, prompt, CAUSAL)
    return request.with_extra(DraftQuery(0, torch.full((rows,), width - 3)))


def shifted_draft(rows: int, width: int, prompt: int) -> Request:
    return plain(rows, width, prompt, CAUSAL).with_extra(DraftQuery(1))


def draft_blocks(rows: int, width: int, prompt: int) -> Request:
    """Blocks of three positions: rows differ in the number of their anchors, and the last may reach beyond the text."""
    request, size = plain(rows, width, prompt, CAUSAL), 3
    anchors = torch.arange(prompt, width - 1).repeat(rows, 1)
    anchors[-1, -1] = -1
    targets = anchors[:, :, None] + torch.arange(1, size)
    real = (anchors >= 0)[:, :, None] & (targets < width - 1)
    return replace(request, targets=torch.where(real, targets, -1).flatten(1)).with_extra(DraftBlocks(anchors, size))


def several(rows: int, width: int, prompt: int) -> Request:
    request = draft(rows, width, prompt)
    return request.with_extra(last_prediction(request))


def expected(rows: int, width: int, prompt: int) -> Request:
    """A block after text, with its last prediction."""
    request = draft(rows, width, prompt)
    vectors = torch.randn(rows, width, 24, generator=random(rows, width), dtype=torch.float64)
    return request.with_extra(ExpectedEmbedding(vectors * (request.positions >= width - 3)[..., None]))


def states(rows: int, width: int, prompt: int) -> Request:
    return plain(rows, width, prompt).with_extra(StateQuery((0.0, 0.5, 1.0)))


@dataclass(frozen=True)
class Case:
    make: Callable[[int, int, int], Request]
    kind: type[Extra]
    network: str = "transformer"
    cached: bool = True  # it may run with a key-value store


CASES = [
    Case(clean_stream, CleanStream, cached=False),
    Case(clean_stream_with_targets, CleanStream, cached=False),
    Case(vectors, VectorQuery, "embedding"),
    Case(vectors_with_previous, VectorQuery, "embedding"),
    Case(vectors_with_previous, VectorQuery, "latent"),
    Case(encoding, VectorQuery, "latent", cached=False),
    Case(decoding, VectorQuery, "latent", cached=False),
    Case(self_conditioning, SelfConditioning),
    Case(query_mask, QueryMask, cached=False),
    Case(query_mask_with_ids, QueryMask, cached=False),
    Case(draft, DraftQuery),
    Case(shifted_draft, DraftQuery),
    Case(draft_blocks, DraftBlocks, "drafter", cached=False),
    Case(several, SelfConditioning),
    Case(several, SelfConditioning, "gemma"),
    Case(draft, DraftQuery, "gemma"),
    Case(states, StateQuery, cached=False),
    Case(expected, ExpectedEmbedding),
    Case(expected, ExpectedEmbedding, "gemma"),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.make.__name__}-{case.network}")


def logits(net: Backbone, call: Call) -> Tensor:
    found: Tensor = net(call.request, call.store)
    return found


def joined_logits(net: Backbone, calls: list[Call]) -> list[Tensor]:
    """Logits [N, V] of each call, from one forward pass for all of them, as the server runs them."""
    [order] = groups(calls, SLACK)
    assert sorted(order) == list(range(len(calls)))
    members = [calls[index] for index in order]
    parts = dict(zip(order, split(logits(net, merge(members)), members), strict=True))
    return [parts[index] for index in range(len(calls))]


def test_every_extra_has_a_case() -> None:
    assert {case.kind for case in CASES} == {
        kind for kind in Extra.__subclasses__() if kind.__module__.startswith("redraft.")
    }


@each_case
def test_joined_and_split_each_request_is_answered_as_it_is_alone(case: Case) -> None:
    net, calls = network(case.network), [Call(case.make(*shape), None) for shape in SHAPES]
    for call, own in zip(calls, joined_logits(net, calls), strict=True):
        alone = logits(net, call)
        assert len(alone) and bool(alone.isfinite().all())
        torch.testing.assert_close(own, alone, rtol=1e-9, atol=1e-9)


@each_case
def test_an_extra_decides_what_the_network_answers(case: Case) -> None:
    """Otherwise the laws of joining would say nothing about it."""
    request = case.make(*SHAPES[1])
    net, extra = network(case.network), request.find(case.kind)
    assert extra is not None
    if isinstance(extra, VectorQuery):
        other: Extra = replace(extra, vectors=None if extra.vectors is None else extra.vectors + 1)
        changed = (
            request.with_extra(other) if extra.vectors is not None else replace(request, tokens=request.tokens + 1)
        )
    else:
        changed = replace(request, extra=())
        if isinstance(extra, QueryMask) and extra.query_ids is not None:
            changed = request.with_extra(QueryMask(extra.mask.transpose(1, 2), extra.query_ids))
    before, after = net(request), net(changed)
    assert before.shape != after.shape or not torch.allclose(before, after)


@each_case
def test_what_a_cache_narrows_a_request_to_has_its_part_of_the_extra(case: Case) -> None:
    """Any of the positions are computed again, the others are read from a store: the same logits."""
    request = case.make(*SHAPES[1])
    rows, width = request.tokens.shape
    if not case.cached:
        part = torch.arange(width)
        for extra in request.extra:
            columns = extra.columns(part)
            assert all(columns is extra or torch.equal(*both) for both in _tensors(columns, extra))
        return
    net = network(case.network)
    store = net.store(rows, width)
    whole = request.with_cache(visible_below=torch.zeros(rows, dtype=torch.int64))
    expected = cached(net, whole, store)
    torch.testing.assert_close(expected, net(request), rtol=1e-9, atol=1e-9)
    shift = request.shift(0)
    for seed in range(4):
        again = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < 0.5
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        again[row, request.targets[row, column] - shift] = True  # what is predicted has to run
        again &= request.positions >= 0
        kept = narrowing.only(request, again.numpy(), narrowing.extent(request))
        assert kept.tokens.shape[1] < width or bool((kept.positions < 0).any())
        torch.testing.assert_close(cached(net, kept, store), expected, rtol=1e-9, atol=1e-9)
    begin = int(request.prompt[0]) - 1 if request.prompt is not None else 0
    behind = narrowing.drop_prefix(request, torch.full((rows,), begin).numpy())
    assert behind.tokens.shape[1] == width - begin
    torch.testing.assert_close(cached(net, behind, store), expected, rtol=1e-9, atol=1e-9)


def _tensors(one: Extra, other: Extra) -> list[tuple[Tensor, Tensor]]:
    """Pairs of the tensors of two extras."""
    found = [(vars(one)[name], vars(other)[name]) for name in vars(one)]
    return [pair for pair in found if isinstance(pair[0], Tensor)]


@each_case
def test_joined_requests_read_and_write_a_shared_store_as_each_does_alone(case: Case) -> None:
    if not case.cached:
        return
    net, slots = network(case.network), 0
    alone, together = net.store(4, 16), net.store(4, 16)
    calls, expected = [], []
    for shape in SHAPES:
        request = case.make(*shape)
        own = torch.arange(slots, slots + shape[0])
        slots += shape[0]
        below = torch.zeros(shape[0], dtype=torch.int64)
        calls.append(Call(request, KeyValueView(together, own, below)))
        expected.append(net(request, KeyValueView(alone, own, below)))
    for own, other in zip(joined_logits(net, calls), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(together.pairs, alone.pairs, strict=True):
        for slot, (_, width, _) in zip((0, 1, 3), SHAPES, strict=True):
            held = slice(0, width - 1)
            torch.testing.assert_close(mine[:, slot, :, held], theirs[:, slot, :, held], rtol=1e-9, atol=1e-9)


# ---- signatures


def variants() -> list[Request]:
    """Requests of one size, no two of which may share a forward pass."""
    base = plain(1, 7, 3)
    made = [make(1, 7, 3) for make in dict.fromkeys(case.make for case in CASES)]  # of whatever network
    unlike: list[Any] = [
        base,
        replace(base, prompt=None),
        replace(base, time=torch.ones(1)),
        replace(base, network="drafter"),
        replace(base, attention=CAUSAL),
        replace(base, attention=BLOCK),
        replace(base, attention=AttentionPattern("block", 4)),
        base.with_extra(DraftQuery(0)),
        clean_stream(1, 7, 3).with_extra(replace(_stream(), attention=CAUSAL)),
        base.with_extra(VectorQuery("predict")),
        base.with_extra(VectorQuery("decode")),
    ]
    return [*unlike, *made]


def _stream() -> CleanStream:
    found = clean_stream(1, 7, 3).find(CleanStream)
    assert found is not None
    return found


def test_unlike_requests_do_not_share_a_pass() -> None:
    calls = [Call(request, None) for request in variants()]
    assert sorted(map(sorted, groups(calls, SLACK))) == [[number] for number in range(len(calls))]


def test_requests_with_different_stores_do_not_share_a_pass() -> None:
    net, request, below = network(), plain(1, 7, 3), torch.zeros(1, dtype=torch.int64)
    stores = [net.store(2, 16), net.store(2, 16)]
    calls = [Call(request, None), *(Call(request, KeyValueView(store, torch.tensor([0]), below)) for store in stores)]
    calls.append(Call(request, KeyValueView(stores[0], torch.tensor([1]), below)))
    assert sorted(map(sorted, groups(calls, SLACK))) == [[0], [1, 3], [2]]


def test_the_order_of_extras_does_not_keep_requests_apart() -> None:
    net, one, other = network(), several(1, 7, 3), several(2, 10, 4)
    other = replace(other, extra=other.extra[::-1])
    calls = [Call(one, None), Call(other, None)]
    for call, own in zip(calls, joined_logits(net, calls), strict=True):
        torch.testing.assert_close(own, logits(net, call), rtol=1e-9, atol=1e-9)


# ---- finding and replacing extras


def test_an_extra_is_found_by_its_type_and_replaced_by_another_of_it() -> None:
    request = several(1, 7, 3)
    first = request.find(DraftQuery)
    assert first is not None and request.find(SelfConditioning) is not None and request.find(QueryMask) is None
    second = request.with_extra(DraftQuery(1))
    assert second.find(DraftQuery) == DraftQuery(1) and second.find(SelfConditioning) is request.find(SelfConditioning)
    assert request.find(DraftQuery) is first and len(second.extra) == len(request.extra)
    assert isinstance(second, Request) and second.shift(5) == 1 and plain(1, 7, 3).shift(5) == 5


def test_requests_with_a_mask_of_their_own_run_without_a_cache() -> None:
    for case in CASES:
        assert case.make(1, 7, 3).uncached == (case.kind is QueryMask)


def test_targets_that_are_named_by_a_query_stand_at_its_position() -> None:
    request = query_mask_with_ids(1, 7, 3)
    assert request.target_positions[:, -2:].tolist() == [[3, 4]]
    assert torch.equal(request.target_positions[:, :-2], request.targets[:, :-2])
    for case in CASES:
        if case.make is not query_mask_with_ids:
            request = case.make(1, 7, 3)
            assert torch.equal(request.target_positions, request.targets)
