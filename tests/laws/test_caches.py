"""Laws of cache policies: an exact one changes no logit beyond rounding, whatever is asked in whatever order."""

from __future__ import annotations

import pytest
import torch

from redraft.caches.exact import Exact
from redraft.models.transformer import Transformer
from redraft.presets import preset
from redraft.types import Attend, Forward

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


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("attend", "isolate"), SIGHTS)
def test_exact_reuse_equals_recomputing(attend: Attend, isolate: bool, shift: int) -> None:
    """A story of growing, changing, shrinking and regrowing rows of different lengths."""
    net = network(shift=shift)
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
