"""Laws of cache policies. An exact one changes no logit beyond rounding, whatever is requested in whatever order; an
approximate one does so when it refreshes at every step, and never makes a row depend on its neighbours.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from redraft import registry
from redraft.caches.base import CachePolicy
from redraft.caches.exact import Exact
from redraft.canvas import make_canvas
from redraft.generation.loop import Loop, Method
from redraft.models.transformer import Transformer
from redraft.presets import preset
from redraft.samplers.base import Sampler
from redraft.samplers.confidence import Confidence
from redraft.samplers.threshold import Threshold
from redraft.types import AttentionPattern, CacheHint, Canvas, Drawing, Request
from tests import tiny

SIGHTS = [
    pytest.param(AttentionPattern("causal"), False, id="causal"),
    pytest.param(AttentionPattern("causal"), True, id="causal-isolated-prompt"),
    pytest.param(AttentionPattern("full"), True, id="full-isolated-prompt"),
    pytest.param(AttentionPattern("full"), False, id="full"),
    pytest.param(AttentionPattern("block", 3), True, id="block-isolated-prompt"),
    pytest.param(AttentionPattern("block", 3), False, id="block"),
]


def network(seed: int = 0, **changes: int) -> Transformer:
    torch.manual_seed(seed)
    made = Transformer(preset("toy", 40, **changes)).double().requires_grad_(False).eval()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.mul_(5)
    return made


def make_request(
    x: torch.Tensor, lengths: list[int], want: list[list[int]], attend: AttentionPattern, isolate: bool
) -> Request:
    columns = torch.arange(x.shape[1])
    return Request(
        tokens=x,
        positions=torch.where(columns < torch.tensor(lengths)[:, None], columns, -1),
        targets=torch.tensor(want),
        attention=attend,
        prompt=torch.tensor([3, 5]) if isolate else None,
        drawing=Drawing(torch.tensor([0, 1])),
        cache=CacheHint(kv_slot=torch.tensor([0, 1])),
    )


@pytest.mark.parametrize(("shift", "window"), [(0, 0), (1, 0), (1, 4)])
@pytest.mark.parametrize(("attend", "isolate"), SIGHTS)
def test_exact_reuse_equals_recomputing(attend: AttentionPattern, isolate: bool, shift: int, window: int) -> None:
    """Rows of different lengths that grow, change, shrink and grow again."""
    net = network(shift=shift, window=window)
    store, policy = net.store(2, 16), Exact()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(5, 40, (2, 16), generator=generator)
    story: list[tuple[list[int], list[list[int]]]] = [
        ([6, 8], [[5], [7]]),
        ([7, 9], [[6], [8]]),
        ([12, 14], [[7, 8, 11], [9, 13, -1]]),
        ([12, 14], [[9, 10, 11], [12, 13, -1]]),
        ([8, 7], [[6], [6]]),  # shrunk
        ([14, 14], [[12, 13], [12, 13]]),  # grown again over stale positions
    ]
    reused = False
    for number, (lengths, want) in enumerate(story):
        request = make_request(x, lengths, want, attend, isolate)
        narrow = policy.narrow(request, store.tokens[[0, 1]], shift)
        reused |= narrow.tokens.shape[1] < request.tokens.shape[1] and int(narrow.cache.visible_below.max()) > 0
        with_store = tiny.cached(net, narrow, store)
        store.record(narrow)
        torch.testing.assert_close(with_store, net(request), rtol=1e-9, atol=1e-9)
        x = x.clone()
        x[0, 6 + number] = 5 + number  # change a token near the end for the next round
        x[1, 8 + number % 3] = 9 + number
    assert reused == (attend.kind != "full" or isolate), "the policy never reused anything, or should not have"


def test_reuse_is_exact_with_changed_prompts_and_swapped_slots() -> None:
    net = network(shift=1)
    store, policy = net.store(2, 16), Exact()
    x = torch.randint(5, 40, (2, 10), generator=torch.Generator().manual_seed(1))
    for slot in ([0, 1], [1, 0], [0, 1]):
        request = make_request(x, [10, 10], [[9], [9]], AttentionPattern("causal"), False)
        request.cache.kv_slot = torch.tensor(slot)
        narrow = policy.narrow(request, store.tokens[slot], 1)
        torch.testing.assert_close(tiny.cached(net, narrow, store), net(request), rtol=1e-9, atol=1e-9)
        store.record(narrow)
        x = x.clone()
        x[0, 2] += 1 - 2 * int(x[0, 2] > 20)


@pytest.mark.parametrize(("attend", "isolate"), SIGHTS)
def test_a_network_with_time_reuses_nothing_of_another_time(attend: AttentionPattern, isolate: bool) -> None:
    net = network(timed=True)
    for name, parameter in net.named_parameters():
        if "modulation" in name:  # zero in a fresh network
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    store, policy = net.store(2, 16), Exact()
    x = torch.randint(5, 40, (2, 10), generator=torch.Generator().manual_seed(0))
    for t in (0.9, 0.5):
        request = make_request(x, [10, 10], [[8, 9], [8, 9]], attend, isolate)
        request.time = torch.full((2,), t)
        narrow = policy.narrow(request, store.tokens[[0, 1]], 0)
        torch.testing.assert_close(tiny.cached(net, narrow, store), net(request), rtol=1e-9, atol=1e-9)
        store.record(narrow)


# ---- approximate policies, through the loop

POLICIES = [registry.find("caches", name) for name in registry.names("caches")]
APPROXIMATE = [policy for policy in POLICIES if not policy.exact]
SAMPLERS = [
    pytest.param(Confidence(steps=9, block=4), id="confidence"),
    pytest.param(Threshold(threshold=0.3, block=5), id="threshold"),
    pytest.param(Confidence(steps=6), id="no-blocks"),
]
ROWS: list[list[int | None]] = [[5, 6, 7, *[None] * 12], [6, *[None] * 7, 5, 6, *[None] * 3], [7, 7, 5, 5, *[None] * 9]]


def write(policy: CachePolicy | None, sampler: Sampler, rows: list[int], paired: bool) -> tuple[Canvas, int]:
    """The canvas of these ``ROWS`` after generation, and the number of positions that the network ran."""
    spec, _ = tiny.family("masked", paired=paired)
    torch.manual_seed(3)
    net = Transformer(preset("toy", spec.tokens.vocab_size)).double().requires_grad_(False).eval()
    for parameter in net.parameters():
        if parameter.ndim == 2:
            parameter.mul_(5)
    canvas = make_canvas([ROWS[row] for row in rows], [len(ROWS[0][:3])] * len(rows), spec, seeds=rows, temperature=1.0)
    loop = Loop({"main": net}, Method(sampler, policy), spec)
    for _ in loop.run(canvas):
        pass
    return canvas, loop.counter.queries


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", POLICIES)
def test_a_cached_row_does_not_depend_on_other_rows(kind: type[CachePolicy], sampler: Sampler, paired: bool) -> None:
    together, _ = write(kind(), sampler, [0, 1, 2], paired)
    for row in range(3):
        alone, _ = write(kind(), sampler, [row], paired)
        width = len(ROWS[row])
        assert torch.equal(together.ids[row, :width], alone.ids[0, :width])
        assert not together.open[row].any()


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", APPROXIMATE)
def test_refreshing_at_every_step_is_exact(kind: type[CachePolicy], sampler: Sampler, paired: bool) -> None:
    exact, _ = write(None, sampler, [0, 1, 2], paired)
    fresh, _ = write(kind(refresh=1), sampler, [0, 1, 2], paired)  # type: ignore[call-arg]
    assert torch.equal(exact.ids, fresh.ids)
    torch.testing.assert_close(exact.score, fresh.score)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_an_approximate_policy_saves_work(kind: type[CachePolicy]) -> None:
    """The network runs far fewer positions in total, and all of them in the first pass."""
    policy, x, ran = kind(), torch.full((1, 40), 3), []
    x[0, :8] = torch.arange(5, 13)
    cells = np.full((1, 40), -1)
    for step in range(16):  # two tokens a step, in blocks of eight
        begin = 8 + step // 4 * 8
        done = 8 + 2 * step
        request = make_request(x, [40], [list(range(done, begin + 8))], AttentionPattern("full"), False)
        request.drawing = Drawing(torch.tensor([0]), noise_step=torch.tensor([step]))
        request.cache = CacheHint(kv_slot=torch.tensor([0]), active_region=torch.tensor([[begin, begin + 8]]))
        narrow = policy.narrow(request, cells, 0)
        run = narrow.positions[narrow.positions >= 0].tolist()
        assert set(request.targets[0].tolist()) <= set(run), "a position that is wanted must run"
        visible = set(range(int(narrow.cache.visible_below))) | set(run)
        assert visible == set(range(40)), "every position must be seen"
        assert all(cells[0, cell] >= 0 for cell in visible - set(run)), "what is read must have been computed"
        cells[0, run] = x[0, run]
        ran.append(len(run))
        x = x.clone()
        x[0, done : done + 2] = 20 + step
    assert ran[0] == 40 and sum(ran) < 0.75 * 16 * 40


# ---- drift


def test_the_store_measures_the_change_of_its_values() -> None:
    """Compared with the network's values in the last layer, at positions computed twice from the same token."""
    net = network()
    store, x = net.store(2, 16), torch.randint(5, 40, (2, 10), generator=torch.Generator().manual_seed(0))
    store.watch(-1)
    full = AttentionPattern("full")

    def run(x: torch.Tensor, where: list[int], read: int) -> torch.Tensor:
        pos = torch.tensor([where, where])
        request = Request(
            tokens=x[:, where],
            positions=pos,
            targets=pos[:, -1:],
            attention=full,
            drawing=Drawing(torch.tensor([0, 1])),
            cache=CacheHint(kv_slot=torch.tensor([0, 1]), visible_below=torch.tensor([read, read])),
        )
        tiny.cached(net, request, store)
        store.record(request)
        return store.pairs[-1][1, :, :, :10].transpose(1, 2).flatten(2).clone()

    first = run(x, list(range(10)), 0)
    assert store.moved.tolist() == [0.0, 0.0], "all was computed"
    x[:, 4] = torch.where(x[:, 4] == 7, 8, 7)
    second = run(x, [4, 6, 8], 10)
    apart = 1 - torch.cosine_similarity(second, first, dim=-1)
    expected = apart[:, [6, 8]].mean(1)  # the token at position 4 has changed
    assert (expected > 1e-6).all()
    torch.testing.assert_close(torch.from_numpy(store.moved), expected, rtol=1e-4, atol=1e-7)
    third = run(x, [4, 6, 8], 10)
    again = (1 - torch.cosine_similarity(third, second, dim=-1))[:, [4, 6, 8]].mean(1)
    torch.testing.assert_close(torch.from_numpy(store.moved), expected + again, rtol=1e-4, atol=1e-7)
    run(x, list(range(10)), 0)
    assert store.moved.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_smaller_drift_threshold_runs_more_positions(sampler: Sampler) -> None:
    kind = registry.find("caches", "drift")
    never, always = (write(kind(drift=drift), sampler, [0, 1, 2], False)[1] for drift in (1e9, 0.0))
    _, everything = write(None, sampler, [0, 1, 2], False)
    assert never < always <= everything


def test_a_drift_threshold_of_zero_is_exact() -> None:
    kind = registry.find("caches", "drift")
    canvas, _ = write(kind(drift=-1.0), Confidence(steps=9, block=4), [0, 1, 2], False)
    exact, _ = write(None, Confidence(steps=9, block=4), [0, 1, 2], False)
    assert torch.equal(canvas.ids, exact.ids)
