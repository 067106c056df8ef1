"""Laws of block diffusion: its single training pass, its bound between chain rule and masked diffusion, sampling."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.nn import functional as F

from redraft import likelihood, registry
from redraft.caches.exact import Exact
from redraft.canvas import completion, make_canvas
from redraft.errors import UserError
from redraft.generation.loop import Loop, Method
from redraft.models.cpu.transformer import CpuTransformer
from redraft.models.parts import streams
from redraft.models.parts.attention import attention_context
from redraft.models.parts.flops import attended_pairs
from redraft.models.transformer import Transformer
from redraft.objectives.block import INTERVALS, Block
from redraft.objectives.masked import Masked
from redraft.objectives.shared import blocks as blocks
from redraft.presets import preset
from redraft.samplers.base import Sampler
from redraft.samplers.wrappers.blockwise import Blockwise
from redraft.types import FREE, GIVEN, AttentionPattern, Batch, Canvas, CleanStream, DraftQuery, Forward, Spec, Step
from tests.laws.test_samplers import Scripted, home, samplers
from tests.tiny import VOCABULARY, Language, OracleNetwork, family, pairs

A, B, C = VOCABULARY.letters
EOS, SEP, BOS = VOCABULARY.eos_id, VOCABULARY.sep_id, VOCABULARY.bos_id
MASK = VOCABULARY.mask_id


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(**changes: Any) -> Transformer:
    """Large random weights."""
    torch.manual_seed(0)
    made = Transformer(preset("toy", VOCABULARY.vocab_size, **changes)).double().requires_grad_(False).eval()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.mul_(5)
    return made


def batch(paired: bool = True) -> Batch:
    if paired:
        return pairs([([A, B, SEP], [C, A, A, B, EOS]), ([C, SEP], [EOS]), ([B, C, A, A, SEP], [B, B, EOS])], length=10)
    made = pairs([([BOS], [C, A, A, B, EOS, A]), ([BOS], [A, B])], length=8)
    return replace(made, prompt=None)


# ---- the training pass


def two_streams(paired: bool, attend: AttentionPattern, causal: bool) -> Forward:
    """Noisy rows of different lengths with their clean streams."""
    spec = family("block", paired)[0].with_network(attention=attend)
    rows = blocks.complete_blocks(batch(paired), attend, spec)
    pos = torch.where(rows.valid, torch.arange(rows.ids.shape[1]), -1)
    hidden = rows.target & (torch.rand(rows.ids.shape, generator=generator(3)) < 0.6)
    clean = blocks.clean_stream(rows, spec, AttentionPattern("causal") if causal else attend, rows.valid.sum(1))
    prompt = rows.prompt if spec.network.prompt_encoder else None
    extra = () if clean is None else (clean,)
    return Forward(rows.ids.masked_fill(hidden, MASK), pos, pos, attend, prompt, extra=extra)


each_clean_pattern = pytest.mark.parametrize("causal", [False, True], ids=["block-clean", "causal-clean"])
each_kind = pytest.mark.parametrize("paired", [True, False], ids=["paired", "plain"])
each_size = pytest.mark.parametrize("size", [1, 2, 3, 20])


@each_clean_pattern
@each_kind
@each_size
def test_the_mask_of_two_streams_follows_its_definition(paired: bool, size: int, causal: bool) -> None:
    request = two_streams(paired, AttentionPattern("block", size), causal)
    stream = request.find(CleanStream)
    assert stream is not None
    mask = streams.dense_mask(request)[:, 0]
    pairs_seen = 0
    for row in range(len(request.tokens)):
        prompt = 0 if request.prompt is None else int(request.prompt[row])
        places = [(int(p), False) for p in request.positions[row]] + [(int(p), True) for p in stream.positions[row]]

        def block(position: int, prompt: int = prompt) -> int:
            return (position - prompt) // size if position >= prompt else -1

        for i, (query, query_clean) in enumerate(places):
            for j, (key, key_clean) in enumerate(places):
                if query < 0:
                    continue
                if key < 0:
                    expected = False
                elif key < prompt:
                    expected = not key_clean
                elif key_clean and query_clean:
                    expected = key <= query if causal else block(key) <= block(query)
                elif key_clean:
                    expected = block(key) < block(query)
                else:
                    expected = not query_clean and block(key) == block(query)
                assert bool(mask[row, i, j]) == expected
                pairs_seen += expected
    assert attended_pairs(request) == pairs_seen
    assert bool(mask.any(2).all()), "an empty row of the mask would give NaN"


@each_clean_pattern
@each_kind
@each_size
def test_flex_attention_equals_the_dense_mask(paired: bool, size: int, causal: bool) -> None:
    request = two_streams(paired, AttentionPattern("block", size), causal)
    rows, width = request.streams[1].shape
    torch.manual_seed(1)
    query, key, value = torch.randn(3, rows, 2, width, 16)
    real = request.streams[1] >= 0
    table = torch.zeros(64, 2, 8)
    for radius in (None, 2):
        context = attention_context(request, table, None, False, radius)
        dense = F.scaled_dot_product_attention(query, key, value, (context.local or context).mask)
        mask = streams.flex_mask(request, query.device, radius)
        flex = streams.flex_attention(compiled=False)(query, key, value, block_mask=mask)
        torch.testing.assert_close(flex.transpose(1, 2)[real], dense.transpose(1, 2)[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [0, 3])
@each_kind
@each_size
def test_one_pass_equals_a_pass_for_every_block(paired: bool, size: int, window: int) -> None:
    """A noisy block predicts the same with a clean stream as in a separate pass after the clean tokens."""
    net, attend = network(window=window), AttentionPattern("block", size)
    request = two_streams(paired, attend, causal=False)
    stream = request.find(CleanStream)
    assert stream is not None
    logits = net(request)
    written = torch.where(stream.positions >= 0, stream.tokens, request.tokens[:, :1])
    text = request.tokens.scatter(1, stream.positions.clamp(min=0), written)
    row, column = (request.targets >= 0).nonzero(as_tuple=True)
    stage = request.group(request.positions)
    for number in range(int(stage.max()) + 1):
        x = torch.where(stage == number, request.tokens, text)
        pos = request.positions.masked_fill(stage > number, -1)
        alone = Forward(x, pos, request.targets.masked_fill(stage != number, -1), attend, request.prompt)
        torch.testing.assert_close(logits[stage[row, column] == number], net(alone), rtol=1e-9, atol=1e-9)


@each_kind
def test_the_hybrid_pass_equals_the_autoregressive_and_the_drafting_pass(paired: bool) -> None:
    """The clean stream equals a pass of an autoregressive model, and the noisy stream a drafting pass from any
    position."""
    spec, objective = family("hybrid", paired, block=3)
    net, rows = network(shift=1), batch(paired)
    prepared = objective.prepare(rows, spec, generator(4))
    logits, request = net(prepared.request), prepared.request
    count = int((request.targets >= 0).sum())
    plain = family("autoregressive", paired)[1].prepare(rows, spec, generator())
    torch.testing.assert_close(logits[count:], net(plain.request), rtol=1e-9, atol=1e-9)
    assert torch.equal(prepared.target[count:], plain.target)
    row, column = (request.targets >= 0).nonzero(as_tuple=True)
    end = rows.valid.sum(1)
    for number, (r, c) in enumerate(zip(row.tolist(), column.tolist(), strict=True)):
        prompt = int(rows.prompt[r]) if rows.prompt is not None else 0
        start = prompt + (c - prompt) // 3 * 3
        x, stop = request.tokens[r : r + 1].clone(), int((request.positions[r] >= 0).sum())
        x[0, :start] = rows.ids[r, :start]
        pos = torch.where(torch.arange(x.shape[1]) < min(start + 3, stop), torch.arange(x.shape[1]), -1)[None]
        assert start <= int(end[r])
        draft = Forward(
            x,
            pos,
            torch.tensor([[c]]),
            AttentionPattern("causal"),
            prompt=rows.prompt[r : r + 1] if paired and rows.prompt is not None else None,
            extra=(DraftQuery(0, torch.tensor([start])),),
        )
        torch.testing.assert_close(logits[number : number + 1], net(draft), rtol=1e-9, atol=1e-9)


def test_the_cpu_form_runs_two_streams_and_drafts() -> None:
    torch.manual_seed(0)
    net = Transformer(preset("toy", VOCABULARY.vocab_size, shift=1)).requires_grad_(False).eval()
    spec, objective = family("hybrid", block=3)
    request = objective.prepare(batch(), spec, generator(4)).request
    torch.testing.assert_close(CpuTransformer(net)(request), net(request), rtol=1e-4, atol=1e-5)


# ---- the bound


def nll(net: Any, spec: Spec, row: list[int], start: int, shown: set[int], position: int) -> float:
    """-log p(row[position] | visible positions of its block and all earlier blocks), from one pass over them."""
    stage = spec.network.attention.group(
        torch.arange(len(row))[None], torch.tensor([start]) if spec.network.prompt_encoder else None
    )[0]
    x = torch.tensor([[t if i in shown or stage[i] < stage[position] else MASK for i, t in enumerate(row)]])
    x[0, :start] = torch.tensor(row[:start])
    pos = torch.where(stage <= stage[position], torch.arange(len(row)), -1)[None]
    prompt = torch.tensor([start]) if spec.network.prompt_encoder else None
    logits = net(Forward(x, pos, torch.tensor([[position]]), spec.network.attention, prompt))[0].double()
    logits[sorted({*spec.tokens.forbidden, spec.tokens.mask_id})] = -torch.inf
    return -float(logits.log_softmax(-1)[row[position]])


def groups(spec: Spec, row: list[int], start: int) -> list[list[int]]:
    """Target positions by block."""
    stage = spec.network.attention.group(
        torch.arange(len(row))[None], torch.tensor([start]) if spec.network.prompt_encoder else None
    )[0]
    found: dict[int, list[int]] = {}
    for position in range(start, len(row)):
        found.setdefault(int(stage[position]), []).append(position)
    return list(found.values())


def by_order(net: Any, spec: Spec, row: list[int], start: int, group: list[int]) -> list[float]:
    """-log p if the tokens of a block are revealed one at a time, for every order."""
    known: dict[tuple[frozenset[int], int], float] = {}

    def of(shown: frozenset[int], position: int) -> float:
        if (shown, position) not in known:
            known[shown, position] = nll(net, spec, row, start, set(shown), position)
        return known[shown, position]

    return [sum(of(frozenset(order[:k]), p) for k, p in enumerate(order)) for order in permutations(group)]


@each_kind
@pytest.mark.parametrize(("size", "shift"), [(1, 0), (2, 0), (3, 0), (6, 0), (1, 1), (3, 1)])
def test_the_bound_is_the_mean_over_orders_within_each_block_and_above_the_exact_value(
    paired: bool, size: int, shift: int
) -> None:
    """Answers consist of whole blocks, so that no padding is needed."""
    spec, objective = family("block", paired, block=size, shift=shift)
    net = network(shift=shift)
    prompt, text = ([C, SEP], [A, C, B, B, A, EOS]) if paired else ([BOS], [A, C, B, B, A])
    row, start = prompt + text, len(prompt)
    orders = [by_order(net, spec, row, start, group) for group in groups(spec, row, start)]
    bound = sum(sum(found) / len(found) for found in orders)
    exact = sum(-math.log(sum(math.exp(-value) for value in found) / len(found)) for found in orders)
    found = likelihood.score(net, prompt, text, objective, spec, samples=4000, seed=1)
    assert found.is_bound
    assert found.nats == pytest.approx(bound, abs=4.5 * found.stderr + 1e-6)
    if size == 1:
        assert found.stderr == 0 and bound == pytest.approx(exact), (
            "with one token per block it is exactly the chain rule"
        )
    else:
        assert found.nats > exact - 2 * found.stderr and bound > exact


@each_kind
def test_shifted_blocks_of_one_token_are_the_autoregressive_model(paired: bool) -> None:
    """Every token opens a block and is predicted at the clean token before it: the same nats, row by row."""
    spec, objective = family("block", paired, block=1, shift=1)
    plain, exact = family("autoregressive", paired)
    net, rows = network(shift=1), batch(paired)
    prepared, other = objective.prepare(rows, spec, generator()), exact.prepare(rows, plain, generator())
    mine, theirs = (kind.loss(net(one.request), one).nats for kind, one in ((objective, prepared), (exact, other)))
    torch.testing.assert_close(mine, theirs)


@each_kind
def test_one_block_is_masked_diffusion(paired: bool) -> None:
    """With the same masks, targets and bound are the same, and there is no clean stream."""
    spec, objective = family("block", paired, block=10)
    masked, plain = family("masked", paired, length_head=False, weight="bound")
    masked = masked.with_network(attention=spec.network.attention)
    rows = batch(paired)
    if paired:  # answers that fill their block need no padding
        rows = pairs([([A, B, SEP], [C, A, A, B, A, A, C, B, A, EOS]), ([C, SEP], [B, A, A, C, C, B, A, A, A, EOS])])
    hidden = rows.target & (torch.rand(rows.ids.shape, generator=generator(2)) < 0.5)
    weight = rows.target.sum(1) / hidden.sum(1)
    assert isinstance(objective, Block) and isinstance(plain, Masked)
    tokens = int(rows.target.sum())
    mine = objective.request(rows, spec, hidden, weight[:, None].expand_as(hidden), tokens)
    theirs = plain.request(rows, masked, hidden, weight, torch.zeros(len(weight)))
    assert mine.request.find(CleanStream) is None
    assert torch.equal(mine.request.tokens, theirs.request.tokens) and torch.equal(
        mine.request.targets, theirs.request.targets
    )
    logits = network()(mine.request)
    one, other = objective.loss(logits.clone(), mine), plain.loss(logits.clone(), theirs)
    torch.testing.assert_close(one.nats, other.nats)
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(logits, network()(replace(theirs.request, attention=AttentionPattern("full"))))


@each_kind
def test_one_block_and_masked_diffusion_draw_the_same_noise(paired: bool) -> None:
    """The distribution of the masks of one block is uniform over subsets of the drawn size, as in masked diffusion."""
    rows = pairs([([], [A, B, C])] * 6000)
    stage = torch.zeros_like(rows.ids)
    hidden, weight = blocks.hide(rows.target, stage, 0.0, 1.0, generator(8))
    kinds, counts = hidden.unique(dim=0, return_counts=True)
    assert len(kinds) == 7
    expected = torch.tensor([2000 / math.comb(3, int(kind.sum())) for kind in kinds])
    assert float(((counts - expected) ** 2 / expected).sum()) < 22.5  # 99.9 % point at 6 degrees of freedom
    torch.testing.assert_close(weight[:, 0], 3 / hidden.sum(1))


@pytest.mark.parametrize(("rate_min", "rate_max"), INTERVALS)
def test_every_block_has_a_masking_rate_within_the_interval(rate_min: float, rate_max: float) -> None:
    target = torch.ones(40, 20, dtype=torch.bool)
    stage = torch.arange(20).div(5, rounding_mode="floor").expand(40, -1)
    found = []
    for seed in range(20):
        hidden, weight = blocks.hide(target, stage, rate_min, rate_max, generator(seed))
        count = hidden.view(40, 4, 5).sum(2)
        torch.testing.assert_close(weight.view(40, 4, 5), (5 / count)[..., None].expand(-1, -1, 5))
        found.append(count)
    share = torch.bincount(torch.cat(found).flatten(), minlength=6)[1:] / (20 * 160)
    edges = torch.arange(6) / 5
    expected = (edges[1:].clamp(max=rate_max) - edges[:-1].clamp(min=rate_min)).clamp(min=0) / (rate_max - rate_min)
    torch.testing.assert_close(share, expected, rtol=0, atol=0.01)


def test_the_rates_of_a_batch_are_stratified() -> None:
    """Stratified over rows and blocks: in a batch of 4 x 4 blocks of 16 tokens, every number of masks occurs once."""
    target = torch.ones(4, 64, dtype=torch.bool)
    stage = torch.arange(64).div(16, rounding_mode="floor").expand(4, -1)
    for seed in range(10):
        counts = blocks.hide(target, stage, 0.0, 1.0, generator(seed))[0].view(4, 4, 16).sum(2)
        assert sorted(counts.flatten().tolist())[1:-1] == pytest.approx(list(range(2, 16)), abs=1)
        assert all(int(row.max() - row.min()) >= 8 for row in counts), "every row covers the whole range"


def variance(net: Any, spec: Spec, row: list[int], rate_min: float, rate_max: float) -> float:
    """Variance of the estimated bound of one block; all numbers of masks and all subsets are enumerated."""
    n, first, second = len(row), 0.0, 0.0
    for k in range(1, n + 1):
        chance = max(0.0, min(k / n, rate_max) - max((k - 1) / n, rate_min)) / (rate_max - rate_min)
        for hidden in combinations(range(n), k):
            value = n / k * sum(nll(net, spec, row, 0, set(range(n)) - set(hidden), p) for p in hidden)
            first += chance / math.comb(n, k) * value
            second += chance / math.comb(n, k) * value**2
    return second - first**2


def test_loss_std_is_the_standard_deviation_that_the_search_minimises() -> None:
    spec, _ = family("block", paired=False, block=4)
    net, row = network(), [A, C, B, A]
    rows = pairs([([], row)])
    found = {}
    for rate_min, rate_max in INTERVALS[:2]:
        expected = math.sqrt(variance(net, spec, row, rate_min, rate_max))
        found[rate_min, rate_max] = likelihood.loss_std(
            net, [rows], Block(rate_min=rate_min, rate_max=rate_max), spec, samples=600
        )
        assert found[rate_min, rate_max] == pytest.approx(expected, rel=0.15)
    assert len({round(value, 1) for value in found.values()}) > 1


def test_the_reported_bound_covers_all_noise_levels_if_training_is_restricted() -> None:
    spec, _ = family("block", paired=False, block=4)
    rows = [pairs([([], [A, C, B, A])])]
    plain, clipped = (
        likelihood.bound(network(), rows, o, spec, 16) for o in (Block(), Block(rate_min=0.5, search=True))
    )
    assert plain == clipped
    assert [(o.rate_min, o.rate_max) for o in Block(search=True).candidates()] == list(INTERVALS)
    assert not Block().candidates()


@pytest.mark.parametrize(
    "wrong",
    [{"rate_min": 0.5, "rate_max": 0.5}, {"rate_min": -0.1}, {"rate_max": 1.1}, {"rate_min": 0.8, "rate_max": 0.2}],
)
def test_an_invalid_interval_is_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="interval"):
        Block(**wrong)


@pytest.mark.parametrize("name", ["block", "hybrid"])
def test_an_empty_block_is_rejected(name: str) -> None:
    with pytest.raises(UserError, match="block"):
        family(name, block=0)[1]


# ---- sampling

ROWS: list[list[int | None]] = [
    [A, B, SEP, *[None] * 9],
    [C, SEP, None, None, A, B, None, None, None],
    [B, B, A, C, C, SEP, *[None] * 4, B],
]
PROMPTS = [3, 2, 6]
WRITERS = [
    case
    for case in samplers()
    if home(case.values[0]) == "masked" and case.values[0].width == 1 and not case.values[0].block_size
]


def run(net: Any, spec: Spec, sampler: Sampler, canvas: Canvas, cache: bool = True) -> list[Step]:
    return list(Loop({"main": net}, Method(Blockwise(sampler), Exact() if cache else None), spec).run(canvas))


def free_canvas(spec: Spec, rows: list[list[int | None]], prompts: list[int], **options: Any) -> Canvas:
    return make_canvas(rows, prompts, spec, **{"seeds": list(range(len(rows))), **options})


@each_kind
@pytest.mark.parametrize("sampler", WRITERS)
def test_blocks_are_generated_one_after_the_other(sampler: Sampler, paired: bool) -> None:
    """Given tokens are kept, no position stays open, and a block starts when the previous one is finished."""
    spec, _ = family("block", paired, block=4)
    canvas = free_canvas(spec, ROWS, PROMPTS, temperature=1.0)
    before, given = canvas.ids.clone(), canvas.status == GIVEN
    origin = canvas.prompt if paired else torch.zeros(3, dtype=torch.int64)
    current = torch.zeros(3, dtype=torch.int64)
    for step in run(network(), spec, sampler, canvas):
        number = (step.pos - origin[step.row]).div(4, rounding_mode="floor")
        for row in range(3):
            if len(mine := number[(step.row == row) & (step.status != FREE)]):
                assert len(set(mine.tolist())) == 1 and int(mine[0]) >= int(current[row])
                current[row] = mine[0]
    assert (canvas.ids[given] == before[given]).all()
    assert not canvas.open.any()


@each_kind
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("sampler", WRITERS)
def test_a_row_depends_neither_on_other_rows_nor_on_the_cache(
    sampler: Sampler, temperature: float, paired: bool
) -> None:
    spec, _ = family("block", paired, block=4)
    net = network()
    together = free_canvas(spec, ROWS, PROMPTS, temperature=temperature)
    run(net, spec, sampler, together)
    for number, (row, prompt) in enumerate(zip(ROWS, PROMPTS, strict=True)):
        alone = free_canvas(spec, [row], [prompt], seeds=[number], temperature=temperature)
        run(net, spec, sampler, alone, cache=False)
        assert completion(together, number, EOS) == completion(alone, 0, EOS)
        assert float(together.score[number]) == pytest.approx(float(alone.score[0]), abs=1e-6)
        assert int(together.nfe[number]) == int(alone.nfe[0])


class RecordingNetwork:
    """A network that records its requests."""

    def __init__(self, net: Any) -> None:
        self.net, self.asks = net, list[Forward]()

    def __call__(self, request: Forward, store: object = None) -> Tensor:
        self.asks.append(request)
        return self.net(request, store)

    def store(self, slots: int, positions: int) -> object:
        return self.net.store(slots, positions)


def test_only_the_current_block_is_run_and_no_position_twice() -> None:
    """With a cache, a pass runs the current block, and its first pass also the previous block, which is now finished.
    The number of positions is linear in the length, and no pass only fills the cache."""
    spec, _ = family("block", paired=False, block=4)
    net = RecordingNetwork(network())
    net.net.embedding.weight[EOS] = 0  # an early end-of-text would reduce the number of passes
    canvas = free_canvas(spec, [[BOS, *[None] * 39]], [1])
    run(net, spec, registry.find("samplers", "confidence")(steps=2), canvas)
    assert len(net.asks) == 2 * 10
    for number, request in enumerate(net.asks):
        block = number // 2
        first = 4 * block if number % 2 or not block else 4 * (block - 1)
        assert request.positions[0].tolist() == list(range(first, 4 * block + 4))


def test_generation_stops_after_the_block_with_end_of_text() -> None:
    """Independent of the canvas: with 1,000 free positions, only the blocks of the sequence are run."""
    spec, _ = family("block", paired=False, block=4)
    net = RecordingNetwork(Scripted(spec, end=9))
    canvas = free_canvas(spec, [[BOS, *[None] * 1000]], [1])
    run(net, spec, registry.find("samplers", "confidence")(steps=4), canvas, cache=False)
    assert completion(canvas, 0, EOS) == ([5] * 8, "stop")
    assert len(net.asks) <= 3 * 4 and max(int(request.positions.max()) for request in net.asks) == 11


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_exact_sampler_samples_from_the_joint_distribution(size: int) -> None:
    language = Language.of_one_length([A, B, C], 3)
    spec, _ = family("block", block=size)
    count = 6000
    canvas = free_canvas(spec, [[B, SEP, None, None, None]] * count, [2] * count, temperature=1.0)
    run(OracleNetwork(language, spec, 2), spec, registry.find("samplers", "first_hitting")(), canvas, cache=False)
    drawn = Counter(tuple(row) for row in canvas.ids[:, 2:].tolist())
    observed = [drawn[tuple(text)] for text in language.texts]
    assert sum(observed) == count
    assert chisquare(observed, (language.p * count).tolist()).pvalue > 1e-3


@pytest.mark.parametrize("sampler", WRITERS)
def test_a_known_sequence_is_recovered(sampler: Sampler) -> None:
    language = Language([[A, B, C, A, C, EOS]], torch.ones(1, dtype=torch.float64))
    spec, _ = family("block", block=4)
    canvas = free_canvas(spec, [[B, SEP, *[None] * 12]], [2])
    run(OracleNetwork(language, spec, 2), spec, sampler, canvas, cache=False)
    assert completion(canvas, 0, EOS) == ([A, B, C, A, C], "stop")


def test_a_sampler_with_its_own_blocks_is_rejected() -> None:
    spec, _ = family("block")
    sampler = registry.find("samplers", "confidence")(block=3)
    with pytest.raises(UserError, match="in blocks of 2"):
        run(Scripted(spec, end=3), spec, sampler, free_canvas(spec, ROWS, PROMPTS), cache=False)


def test_more_steps_than_positions_of_a_block_are_rejected() -> None:
    spec, _ = family("block", block=4)
    sampler = registry.find("samplers", "confidence")(steps=5)
    with pytest.raises(UserError, match="steps = 5 is larger than the 4"):
        run(Scripted(spec, end=3), spec, sampler, free_canvas(spec, ROWS, PROMPTS), cache=False)


def test_completed_answers_end_at_a_block_boundary() -> None:
    spec, _ = family("block", block=4)
    rows = batch()
    full = blocks.complete_blocks(rows, spec.network.attention, spec)
    assert rows.prompt is not None
    size = full.target.sum(1)
    assert size.tolist() == [8, 4, 4] and (full.valid.sum(1) == rows.prompt + size).all()
    behind = full.target.clone()
    behind[:, : rows.ids.shape[1]] &= ~rows.target
    assert set(full.ids[behind].tolist()) == {EOS}
    plain = replace(rows, prompt=None)
    assert blocks.complete_blocks(plain, spec.network.attention, spec) is plain


def test_an_empty_clean_stream_is_omitted() -> None:
    spec, _ = family("block", block=8)
    rows = batch()
    end = rows.prompt
    assert end is not None
    assert blocks.clean_stream(rows, spec, spec.network.attention, end) is None
    kept = blocks.clean_stream(rows, spec, spec.network.attention, end + 1)
    assert isinstance(kept, CleanStream) and kept.tokens.shape == (3, 1)


@pytest.mark.parametrize(("length", "size", "pairs"), [(4, 1, 20), (4, 2, 24), (4, 4, 32), (8, 2, 80)])
def test_two_streams_attend_to_the_square_of_the_length_and_a_block_for_each_position(
    length: int, size: int, pairs: int
) -> None:
    attend, pos = AttentionPattern("block", size), torch.arange(length)[None]
    request = Forward(pos, pos, pos, attend, extra=(CleanStream(pos, pos, attend),))
    assert attended_pairs(request) == length**2 + length * size == pairs


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("encoder", [True, False])
def test_of_a_sample_and_its_twin_every_token_is_learnt_once_and_the_padding_never(shift: int, encoder: bool) -> None:
    options = {"weight": "uniform", "complementary": True, "padding": "mask"}
    spec, objective = family("block", True, shift=shift, prompt_encoder=encoder, **options)
    rows = batch()
    made = objective.prepare(rows, spec, generator(1))
    place = torch.cat([targets[targets >= 0] for targets in made.request.target_lists])
    assert sorted(map(list, zip(made.row.tolist(), place.tolist(), strict=True))) == rows.target.nonzero().tolist()
    assert torch.equal(made.target, rows.ids[made.row, place]) and made.tokens == len(made.target)
    torch.testing.assert_close(made.weight, torch.ones(len(made.target)))
    assert made.rows == len(rows.ids) and len(made.request.tokens) == 2 * made.rows
    assert rows.prompt is not None
    begin = rows.prompt if encoder else torch.zeros_like(rows.prompt)
    real = (made.request.positions >= 0).sum(1) - begin.repeat(2)
    assert bool((real % 2 == 0).all()), "blocks of two are whole"
    padding = (made.request.positions >= 0) & (made.request.positions >= rows.valid.sum(1).repeat(2)[:, None])
    assert bool(padding.any()) and bool((made.request.tokens[padding] == MASK).all())
    terms = objective.loss(torch.randn(len(made.target), VOCABULARY.vocab_size), made)
    assert isinstance(objective, Block) and not terms.is_bound
    assert objective.scoring() == Block(weight="uniform", padding="mask")


def test_complementary_blocks_need_equal_weights() -> None:
    with pytest.raises(UserError, match="no bound"):
        Block(complementary=True)
