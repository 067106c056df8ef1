"""Laws of cache policies. An exact one changes no logit beyond rounding, whatever is asked in whatever order; an

approximate one does so when it refreshes at every step, and never makes a row depend on its neighbours.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from redraft import registry
from redraft.caches.exact import Exact
from redraft.canvas import make_canvas
from redraft.decode import CachePolicy, Loop, Method
from redraft.models.transformer import Transformer
from redraft.presets import preset
from redraft.samplers.confidence import Confidence
from redraft.samplers.threshold import Threshold
from redraft.types import Attend, Canvas, Forward, Sampler
from tests import tiny

SIGHTS = [
    pytest.param(Attend("causal"), False, id="causal"),
    pytest.param(Attend("causal"), True, id="causal-isolated-prompt"),
    pytest.param(Attend("full"), True, id="full-isolated-prompt"),
    pytest.param(Attend("full"), False, id="full"),
    pytest.param(Attend("block", 3), True, id="block-isolated-prompt"),
    pytest.param(Attend("block", 3), False, id="block"),
]


def network(seed: int = 0, **changes: int) -> Transformer:
    torch.manual_seed(seed)
    made = Transformer(preset("toy", 40, **changes)).double().requires_grad_(False).eval()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.mul_(5)
    return made


def request(x: torch.Tensor, lengths: list[int], want: list[list[int]], attend: Attend, isolate: bool) -> Forward:
    columns = torch.arange(x.shape[1])
    return Forward(
        x=x,
        pos=torch.where(columns < torch.tensor(lengths)[:, None], columns, -1),
        want=torch.tensor(want),
        attend=attend,
        prompt=torch.tensor([3, 5]) if isolate else None,
        slot=torch.tensor([0, 1]),
    )


@pytest.mark.parametrize(("shift", "window"), [(0, 0), (1, 0), (1, 4)])
@pytest.mark.parametrize(("attend", "isolate"), SIGHTS)
def test_exact_reuse_equals_recomputing(attend: Attend, isolate: bool, shift: int, window: int) -> None:
    """A story of growing, changing, shrinking and regrowing rows of different lengths."""
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
        ([14, 14], [[12, 13], [12, 13]]),  # regrown over stale cells
    ]
    reused = False
    for turn, (lengths, want) in enumerate(story):
        ask = request(x, lengths, want, attend, isolate)
        narrow = policy.narrow(ask, store.tokens[[0, 1]], shift)
        reused |= narrow.x.shape[1] < ask.x.shape[1] and int(narrow.read.max()) > 0
        with_store = net(narrow, store)
        store.record(narrow)
        torch.testing.assert_close(with_store, net(ask), rtol=1e-9, atol=1e-9)
        x = x.clone()
        x[0, 6 + turn] = 5 + turn  # what the next turn sees has changed near the end
        x[1, 8 + turn % 3] = 9 + turn
    assert reused == (attend.kind != "full" or isolate), "the policy never reused anything, or should not have"


def test_reuse_survives_changed_prompts_and_swapped_seats() -> None:
    net = network(shift=1)
    store, policy = net.store(2, 16), Exact()
    x = torch.randint(5, 40, (2, 10), generator=torch.Generator().manual_seed(1))
    for slot in ([0, 1], [1, 0], [0, 1]):
        ask = request(x, [10, 10], [[9], [9]], Attend("causal"), False)
        ask.slot = torch.tensor(slot)
        narrow = policy.narrow(ask, store.tokens[slot], 1)
        torch.testing.assert_close(net(narrow, store), net(ask), rtol=1e-9, atol=1e-9)
        store.record(narrow)
        x = x.clone()
        x[0, 2] += 1 - 2 * int(x[0, 2] > 20)


@pytest.mark.parametrize(("attend", "isolate"), SIGHTS)
def test_a_network_that_is_told_the_time_reuses_nothing_of_another_time(attend: Attend, isolate: bool) -> None:
    net = network(timed=True)
    for name, parameter in net.named_parameters():
        if "modulation" in name:  # zero in a fresh network
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    store, policy = net.store(2, 16), Exact()
    x = torch.randint(5, 40, (2, 10), generator=torch.Generator().manual_seed(0))
    for t in (0.9, 0.5):
        ask = request(x, [10, 10], [[8, 9], [8, 9]], attend, isolate)
        ask.t = torch.full((2,), t)
        narrow = policy.narrow(ask, store.tokens[[0, 1]], 0)
        torch.testing.assert_close(net(narrow, store), net(ask), rtol=1e-9, atol=1e-9)
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


def write(policy: CachePolicy | None, sampler: Sampler, rows: list[int], conditional: bool) -> tuple[Canvas, int]:
    """Texts of these ``ROWS``, and how many positions the network ran for them."""
    spec, _ = tiny.family("masked", conditional=conditional)
    torch.manual_seed(3)
    net = Transformer(preset("toy", spec.vocab_size)).double().requires_grad_(False).eval()
    for parameter in net.parameters():
        if parameter.ndim == 2:
            parameter.mul_(5)
    canvas = make_canvas([ROWS[row] for row in rows], [len(ROWS[0][:3])] * len(rows), spec, seeds=rows, temperature=1.0)
    loop = Loop({"main": net}, Method(sampler, policy), spec)
    for _ in loop.run(canvas):
        pass
    return canvas, loop.counter.queries


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", POLICIES)
def test_a_cached_row_does_not_depend_on_its_neighbours(
    kind: type[CachePolicy], sampler: Sampler, conditional: bool
) -> None:
    together, _ = write(kind(), sampler, [0, 1, 2], conditional)
    for row in range(3):
        alone, _ = write(kind(), sampler, [row], conditional)
        width = len(ROWS[row])
        assert torch.equal(together.ids[row, :width], alone.ids[0, :width])
        assert not together.open[row].any()


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", APPROXIMATE)
def test_refreshing_at_every_step_is_exact(kind: type[CachePolicy], sampler: Sampler, conditional: bool) -> None:
    exact, _ = write(None, sampler, [0, 1, 2], conditional)
    fresh, _ = write(kind(refresh=1), sampler, [0, 1, 2], conditional)  # type: ignore[call-arg]
    assert torch.equal(exact.ids, fresh.ids)
    torch.testing.assert_close(exact.score, fresh.score)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_an_approximate_policy_saves_work(kind: type[CachePolicy]) -> None:
    """It asks the network for far fewer positions in all, and the first time for every one."""
    policy, x, ran = kind(), torch.full((1, 40), 3), []
    x[0, :8] = torch.arange(5, 13)
    cells = np.full((1, 40), -1)
    for step in range(16):  # two tokens a step, in blocks of eight
        begin = 8 + step // 4 * 8
        done = 8 + 2 * step
        ask = request(x, [40], [list(range(done, begin + 8))], Attend("full"), False)
        ask.active, ask.stamp, ask.slot = torch.tensor([[begin, begin + 8]]), torch.tensor([step]), torch.tensor([0])
        narrow = policy.narrow(ask, cells, 0)
        run = narrow.pos[narrow.pos >= 0].tolist()
        assert set(ask.want[0].tolist()) <= set(run), "a position that is wanted must run"
        visible = set(range(int(narrow.read))) | set(run)
        assert visible == set(range(40)), "every position must be seen"
        assert all(cells[0, cell] >= 0 for cell in visible - set(run)), "what is read must have been computed"
        cells[0, run] = x[0, run]
        ran.append(len(run))
        x = x.clone()
        x[0, done : done + 2] = 20 + step
    assert ran[0] == 40 and sum(ran) < 0.75 * 16 * 40


# ---- drift


def test_values_in_store_tell_how_far_they_have_moved() -> None:
    """Against the network's own values: the last layer's, of positions computed twice from the same token."""
    net = network()
    store, x = net.store(2, 16), torch.randint(5, 40, (2, 10), generator=torch.Generator().manual_seed(0))
    store.watch(-1)
    full = Attend("full")

    def run(x: torch.Tensor, where: list[int], read: int) -> torch.Tensor:
        pos = torch.tensor([where, where])
        ask = Forward(x=x[:, where], pos=pos, want=pos[:, -1:], attend=full, slot=torch.tensor([0, 1]))
        ask.read = torch.tensor([read, read])
        net(ask, store)
        store.record(ask)
        return store.pairs[-1][1, :, :, :10].transpose(1, 2).flatten(2).clone()

    first = run(x, list(range(10)), 0)
    assert store.moved.tolist() == [0.0, 0.0], "all was computed"
    x[:, 4] = torch.where(x[:, 4] == 7, 8, 7)
    second = run(x, [4, 6, 8], 10)
    apart = 1 - torch.cosine_similarity(second, first, dim=-1)
    expected = apart[:, [6, 8]].mean(1)  # position 4 has another token now
    assert (expected > 1e-6).all()
    torch.testing.assert_close(torch.from_numpy(store.moved), expected, rtol=1e-4, atol=1e-7)
    third = run(x, [4, 6, 8], 10)
    again = (1 - torch.cosine_similarity(third, second, dim=-1))[:, [4, 6, 8]].mean(1)
    torch.testing.assert_close(torch.from_numpy(store.moved), expected + again, rtol=1e-4, atol=1e-7)
    run(x, list(range(10)), 0)
    assert store.moved.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_smaller_tolerance_of_drift_computes_more(sampler: Sampler) -> None:
    kind = registry.find("caches", "drift")
    never, always = (write(kind(drift=drift), sampler, [0, 1, 2], False)[1] for drift in (1e9, 0.0))
    _, everything = write(None, sampler, [0, 1, 2], False)
    assert never < always <= everything


def test_no_tolerance_of_drift_is_exact() -> None:
    kind = registry.find("caches", "drift")
    canvas, _ = write(kind(drift=-1.0), Confidence(steps=9, block=4), [0, 1, 2], False)
    exact, _ = write(None, Confidence(steps=9, block=4), [0, 1, 2], False)
    assert torch.equal(canvas.ids, exact.ids)
