"""Laws of each sampler of masked models: its rule, compared with its definition."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from redraft import registry
from redraft.canvas import completion, make_canvas
from redraft.errors import UserError
from redraft.generation.loop import Loop, Method
from redraft.models.transformer import Transformer
from redraft.presets import preset
from redraft.samplers.base import Sampler
from redraft.types import DRAFT, FREE, SEALED, Canvas, Forward, QueryMask, Step
from tests import tiny

SPEC, _ = tiny.family("masked", paired=False)
LETTERS = tiny.VOCABULARY.letters


@dataclass
class Fixed:
    """A network whose predictions depend only on the position: rows of logits [L, V]."""

    logits: torch.Tensor

    def __call__(self, request: Forward, store: object = None) -> torch.Tensor:
        return self.logits[request.targets[request.targets >= 0]].clone()

    def log_p(self) -> torch.Tensor:
        logits = self.logits.clone()
        logits[:, list(SPEC.tokens.forbidden)] = -torch.inf
        return logits.log_softmax(-1)


def random_network(length: int, seed: int, sharpness: float = 4.0) -> Fixed:
    """A network with random predictions, without end-of-text."""
    logits = torch.randn(length, SPEC.tokens.vocab_size, generator=torch.Generator().manual_seed(seed)) * sharpness
    logits[:, SPEC.tokens.eos_id] = -torch.inf
    return Fixed(logits)


def make(name: str, **options: Any) -> Sampler:
    return registry.find("samplers", name)(**options)


def board(free: int, rows: int = 1, temperature: float = 0.0) -> Canvas:
    return make_canvas([[2, *[None] * free]] * rows, [1] * rows, SPEC, seeds=list(range(rows)), temperature=temperature)


def steps(network: Any, sampler: Sampler, canvas: Canvas) -> list[Step]:
    return list(Loop({"main": network}, Method(sampler), SPEC).run(canvas))


def written(step: Step) -> set[int]:
    return set(step.pos.tolist())


@pytest.mark.parametrize(("free", "count"), [(12, 8), (12, 12), (7, 3), (20, 1)])
def test_the_cosine_schedule_leaves_its_share(free: int, count: int) -> None:
    """After step s of T, floor(n cos(pi s / 2T)) positions remain, except that a step writes at least one."""
    trace = steps(random_network(free + 1, 0), make("confidence", steps=count, schedule="cosine"), board(free))
    left = free
    for number in range(1, len(trace) + 1):
        left = min(left - 1, math.floor(free * math.cos(math.pi / 2 * number / count) + 1e-9))
        assert free - sum(len(s.pos) for s in trace[:number]) == left
    assert left == 0


@pytest.mark.parametrize("order", ["peak", "margin", "entropy", "left"])
def test_position_temperature_samples_positions_by_the_softmax_of_their_scores(order: str) -> None:
    network, count, temperature = random_network(5, 3, 1.0), 4000, 0.5
    canvas = board(4, count, temperature=1.0)
    sampler = make("confidence", steps=4, order=order, position_temperature=temperature)
    first = steps(network, sampler, canvas)[0]
    p = network.log_p()[1:].exp().double()
    top = p.topk(2, -1).values
    score = {
        "peak": top[:, 0],
        "margin": top[:, 0] - top[:, 1],
        "entropy": torch.special.xlogy(p, p).sum(-1),
        "left": -torch.arange(1.0, 5.0, dtype=torch.float64),
    }[order]
    observed = torch.bincount(first.pos - 1, minlength=4)
    assert chisquare(observed.tolist(), ((score / temperature).softmax(0) * count).tolist()).pvalue > 1e-3


@pytest.mark.parametrize("seed", range(12))
def test_factor_writes_as_many_positions_as_its_inequality_allows(seed: int) -> None:
    network, factor = random_network(16, seed, 8.0), 1.0 + seed % 3
    conf = network.log_p()[1:].amax(-1).exp().double()
    order = conf.argsort(descending=True)
    most = max([n for n in range(1, 16) if (n + 1) * (1 - float(conf[order[n - 1]])) < factor], default=1)
    first = steps(network, make("factor", factor=factor), board(15))[0]
    assert written(first) == {int(i) + 1 for i in order[:most]}


@pytest.mark.parametrize("order", ["entropy", "peak", "margin"])
@pytest.mark.parametrize("seed", range(6))
def test_entropy_bound_writes_the_longest_prefix_within_the_bound(seed: int, order: str) -> None:
    network, gamma = random_network(16, seed, 6.0), 0.05 * 4**seed
    p = network.log_p()[1:].exp().double()
    entropy = -torch.special.xlogy(p, p).sum(-1)
    top = p.topk(2, -1).values
    score = {"entropy": -entropy, "peak": top[:, 0], "margin": top[:, 0] - top[:, 1]}[order]
    ranked = score.argsort(descending=True)

    def dependence(k: int) -> float:
        h = entropy[ranked[:k]]
        return float(h.sum() - h.max())

    most = max(k for k in range(1, 16) if k == 1 or dependence(k) <= gamma)
    first = steps(network, make("entropy_bound", gamma=gamma, order=order), board(15))[0]
    assert written(first) == {int(i) + 1 for i in ranked[:most]}


def test_an_entropy_bound_of_zero_writes_all_certain_positions() -> None:
    """Positions with zero entropy are independent: gamma = 0 writes all of them at once."""
    logits = torch.zeros(9, SPEC.tokens.vocab_size)
    logits[:, 5] = 1e4
    assert len(steps(Fixed(logits), make("entropy_bound", gamma=0.0), board(8))) == 1


@pytest.mark.parametrize("seed", range(8))
def test_hierarchical_splits_every_run(seed: int) -> None:
    network = random_network(21, seed, 3.0)
    conf = network.log_p().amax(-1).exp()
    row = [2, *(5 if place % 6 == 5 else None for place in range(1, 21))]
    canvas = make_canvas([row], [1], SPEC, seeds=[0])
    free = [place for place, token in enumerate(row) if token is None]
    runs = [[place for _, place in run] for _, run in groupby(enumerate(free), lambda item: item[1] - item[0])]
    heads = [max(run, key=lambda place: float(conf[place])) for run in runs]
    expected = {place for place in free if conf[place] > 0.9} | {place for place in heads if conf[place] > 0.5}
    expected |= {max(free, key=lambda place: float(conf[place]))}
    first = steps(network, make("hierarchical", threshold=0.9, low=0.5), canvas)[0]
    assert written(first) == expected


def test_hierarchical_takes_the_leftmost_of_equals() -> None:
    logits = torch.zeros(8, SPEC.tokens.vocab_size)
    logits[:, 5] = 3.0
    first = steps(Fixed(logits), make("hierarchical", threshold=1.0, low=0.0), board(7))[0]
    assert written(first) == {1}


@pytest.mark.parametrize(("gap", "passes"), [(8.0, 1), (6.0, 2), (3.0, 4), (1.0, 6)])
def test_prophet_writes_all_when_the_gap_reaches_the_threshold(gap: float, passes: int) -> None:
    """Six steps; the threshold is 7.5 in step 1 (1/6 < 1/3), 5 in 2 and 3 (1/3, 1/2 < 2/3), 2.5 from step 4 (2/3)."""
    logits = torch.full((13, SPEC.tokens.vocab_size), -50.0)
    logits[:, 5], logits[:, 6] = gap, 0.0
    assert len(steps(Fixed(logits), make("prophet", steps=6), board(12))) == passes


def test_slow_fast_fixes_the_stretch_that_two_estimates_agree_on() -> None:
    """Positions 1 to 6 have p >= 0.3, 7 to 12 do not: two slow passes write two of them, and then the fast phase
    predicts only the stretch until it is full."""
    logits = torch.zeros(13, SPEC.tokens.vocab_size)
    logits[:, list(SPEC.tokens.forbidden)] = -torch.inf
    logits[1:7, 5], logits[7:, 5] = 2.0, 0.3  # of four tokens, this gives p = 0.71 and 0.31
    sampler = make("slow_fast", reach=0.4, threshold=0.95)
    requested: list[set[int]] = []

    def network(request: Forward, store: object = None) -> torch.Tensor:
        requested.append(set(request.targets[request.targets >= 0].tolist()))
        return logits[request.targets[request.targets >= 0]].clone()

    trace = steps(network, sampler, board(12))
    assert [max(places) for places in requested[:2]] == [12, 12]
    assert all(places <= set(range(1, 7)) for places in requested[2:6])
    assert [len(step.pos) for step in trace] == [1] * 12
    assert set().union(*(written(step) for step in trace[:6])) == set(range(1, 7))


@dataclass
class Revising:
    """Predicts one letter at masks, and another one at letters."""

    def __call__(self, request: Forward, store: object = None) -> torch.Tensor:
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        at = request.targets[row, column]
        logits = torch.zeros(len(at), SPEC.tokens.vocab_size)
        logits[torch.arange(len(at)), torch.where(request.tokens[row, at] == SPEC.tokens.mask_id, 5, 6)] = 9.0
        return logits


@dataclass
class Changing:
    """Gives other logits [L, V] at each pass, and the last ones at all later passes."""

    logits: list[torch.Tensor]
    passes: int = 0

    def __call__(self, request: Forward, store: object = None) -> torch.Tensor:
        logits = self.logits[min(self.passes, len(self.logits) - 1)]
        self.passes += 1
        return logits[request.targets[request.targets >= 0]].clone()


def favouring(length: int, p: dict[int, tuple[int, float]]) -> torch.Tensor:
    """Logits [L, V] with a probability of p for a letter at some positions, and 0.3 for letter 5 elsewhere."""
    others = [
        token for token in range(SPEC.tokens.vocab_size) if token not in (*SPEC.tokens.forbidden, SPEC.tokens.eos_id)
    ]
    logits = torch.full((length, SPEC.tokens.vocab_size), -torch.inf)
    for place in range(length):
        token, share = p.get(place, (5, 0.4))
        logits[place, others] = math.log((1 - share) / (len(others) - 1))
        logits[place, token] = math.log(share)
    return logits


def test_klass_writes_confident_and_stable_positions_in_parallel() -> None:
    """Positions 1 to 4 are confident from the first pass on; the prediction at 4 changes at every pass. Two stable
    passes are required, so the first two passes write one token each (1, then 2), and the third writes 3 and not 4."""
    sure = {1: (5, 0.97), 2: (5, 0.96), 3: (5, 0.95)}
    turns = [favouring(8, sure | {4: (5 + number % 2, 0.94)}) for number in range(6)]
    trace = steps(Changing(turns), make("klass", threshold=0.9, kl=0.01, history=2), board(7))
    assert [written(step) for step in trace[:3]] == [{1}, {2}, {3}]
    stable = steps(Changing(turns[:1]), make("klass", threshold=0.9, kl=0.01, history=2), board(7))
    assert [written(step) for step in stable[:3]] == [{1}, {2}, {3, 4}]


def test_klass_without_stable_positions_writes_the_most_confident() -> None:
    trace = steps(random_network(13, 0), make("klass", threshold=0.9999, kl=1e-9), board(12))
    assert all(len(step.pos) == 1 for step in trace)


def test_credit_follows_its_equation() -> None:
    """The same prediction p at every pass. After n passes the credit of the likeliest token is
    p^gain (1 + decay + ... + decay^(n-1)), and its raised probability exceeds the threshold at the expected pass."""
    p, strength, decay, gain = 0.6, 1.4, 0.8, 0.2
    others = (
        SPEC.tokens.vocab_size - len(SPEC.tokens.forbidden) - 2
    )  # letters besides the likeliest one; end-of-text is excluded
    assert others >= 1

    def raised(passes: int) -> float:
        credit = sum(p**gain * decay**n for n in range(passes))
        high = p * (1 + credit) ** strength
        return high / (high + 1 - p)

    need = next(n for n in range(1, 20) if raised(n) > 0.85)
    assert need > 1
    network = Changing([favouring(21, dict.fromkeys(range(21), (6, p)))])
    sampler = make("credit", threshold=0.85, strength=strength, decay=decay, gain=gain)
    trace = steps(network, sampler, board(20))
    assert [len(step.pos) for step in trace[: need - 1]] == [1] * (need - 1)
    assert len(trace) == need, "all that is left passes the threshold at once"
    assert torch.allclose(trace[-1].conf.exp(), torch.tensor(p)), "the log-probability is the model's, not the raised"


def test_no_credit_is_a_threshold() -> None:
    for seed in range(5):
        network = random_network(13, seed)
        canvases = [board(12), board(12)]
        found = steps(network, make("credit", threshold=0.6, strength=0.0), canvases[0])
        plain = steps(network, make("threshold", threshold=0.6), canvases[1])
        assert [written(step) for step in found] == [written(step) for step in plain]


def test_position_calibrated_prefers_rare_tokens_and_the_left(tmp_path: Path) -> None:
    """Letter 5 is common, 6 is rare. With equal confidence, 6 comes first; with strong decay, the leftmost."""
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({"5": 10_000, "6": 3, "7": 100}))
    network = Changing([favouring(7, {1: (5, 0.9), 2: (7, 0.9), 3: (6, 0.9), 4: (7, 0.9), 5: (5, 0.9), 6: (6, 0.9)})])
    plain = make("position_calibrated", steps=6, decay=0.0, frequencies=str(file))
    order = [step.pos.item() for step in steps(network, plain, board(6))]
    assert order == [3, 6, 2, 4, 1, 5]
    leaning = make("position_calibrated", steps=6, decay=9.0, frequencies=str(file))
    assert [step.pos.item() for step in steps(network, leaning, board(6))] == [1, 2, 3, 4, 5, 6]


def test_position_calibrated_takes_frequencies_from_the_first_predictions() -> None:
    """Letter 5 is predicted four times and 6 once: with equal confidence, 6 comes first."""
    network = Changing([favouring(6, {place: (6 if place == 4 else 5, 0.8) for place in range(6)})])
    first = steps(network, make("position_calibrated", steps=5, decay=0.0), board(5))[0]
    assert written(first) == {4}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_joint_threshold_replaces_wrong_tokens(temperature: float) -> None:
    canvas = board(6, temperature=temperature)
    trace = steps(Revising(), make("joint_threshold", threshold=0.5, edit=0.9), canvas)
    assert canvas.ids[0, 1:].tolist() == [6] * 6
    assert {int(s) for step in trace[:-1] for s in step.status} == {DRAFT}
    assert {int(s) for s in trace[-1].status} == {SEALED}


@dataclass
class NeverStable:
    """Predicts a letter other than the current one."""

    def __call__(self, request: Forward, store: object = None) -> torch.Tensor:
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        at = request.targets[row, column]
        logits = torch.zeros(len(at), SPEC.tokens.vocab_size)
        logits[torch.arange(len(at)), torch.where(request.tokens[row, at] == 5, 6, 5)] = 9.0
        return logits


def test_joint_threshold_ends_after_its_rounds() -> None:
    trace = steps(NeverStable(), make("joint_threshold", threshold=0.5, edit=0.5, rounds=5), board(6))
    assert len(trace) == 1 + 5


def test_tokens_that_nothing_makes_doubtful_stay() -> None:
    """With a threshold of 0 no token is doubted, and the sampler is that of token editing without edits."""
    network, ours, theirs = random_network(9, 4), board(8), board(8)
    trace = steps(network, make("token_to_mask", threshold=0.6, doubt=0.0), ours)
    expected = steps(network, make("joint_threshold", threshold=0.6, edit=1.0), theirs)
    assert [(written(a), a.token.tolist()) for a in trace] == [(written(b), b.token.tolist()) for b in expected]


@pytest.mark.parametrize(("by", "doubt"), [("replacement", 0.5), ("probability", 0.5), ("change", 0.5)])
@pytest.mark.parametrize("most", [0, 2])
def test_a_position_is_masked_again_at_most_so_often(by: str, doubt: float, most: int) -> None:
    canvas, again = board(6), Counter[int]()
    sampler = make("token_to_mask", threshold=0.5, by=by, doubt=doubt, most=most, rounds=50, share=1.0)
    trace = steps(NeverStable(), sampler, canvas)
    for step in trace:
        again.update(step.pos[step.status == FREE].tolist())
    assert all(again[place] == (0 if by == "change" and not most else most) for place in range(1, 7))
    assert bool((canvas.status[0, 1:] == SEALED).all()) and len(trace) <= 2 * 6 + 3 * 6 * max(most, 1)


@dataclass
class Contextual:
    """Predicts one letter until something is written elsewhere in the row, then another one, at masks and letters."""

    def __call__(self, request: Forward, store: object = None) -> torch.Tensor:
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        at = request.targets[row, column]
        letters = (request.tokens >= 5).sum(1)[row] - (request.tokens[row, at] >= 5).long()
        logits = torch.zeros(len(at), SPEC.tokens.vocab_size)
        logits[torch.arange(len(at)), torch.where(letters > 0, 6, 5)] = 9.0
        return logits


def test_a_doubtful_token_is_written_again() -> None:
    canvas = board(6)
    trace = steps(Contextual(), make("token_to_mask", threshold=0.5, by="probability", doubt=0.3, share=0.5), canvas)
    assert canvas.ids[0, 1:].tolist() == [6] * 6
    assert trace[0].token.tolist() == [5] * 6, "all were written at once, before the context was known"


def _blocks_in_flight(
    network: Fixed, free: int, block: int, entropy: float, add: float, active: float
) -> list[set[int]]:
    """The positions that each pass writes, by the definition: blocks are added and become active one by one."""
    p = network.log_p()[1:].exp().double()
    h = -torch.special.xlogy(p, p).sum(-1)
    left, passes = set(range(free)), []
    blocks = [set(range(begin, min(begin + block, free))) for begin in range(0, free, block)]
    while left:
        reached = []
        for share in (add, active):
            last = 0
            while last + 1 < len(blocks) and len(blocks[last] - left) >= share * len(blocks[last]):
                last += 1
            reached.append(last)
        now = {i for own in blocks[: reached[0] + 1] for i in own & left if h[i] < entropy}
        idle = [own & left for own in blocks[: min(reached) + 1] if own & left and not own & now]
        if idle:
            now.add(min(idle[0], key=lambda i: (float(h[i]), i)))
        left -= now
        passes.append({i + 1 for i in now})
    return passes


@pytest.mark.parametrize(("add", "active"), [(0.5, 0.5), (0.1, 0.95), (1.0, 1.0), (0.25, 0.25)])
@pytest.mark.parametrize("entropy", [0.0, 0.3, 0.9, 1e6])
def test_several_blocks_are_in_flight(entropy: float, add: float, active: float) -> None:
    network = random_network(15, 5, 3.0)
    sampler = make("multi_block", block=4, threshold=entropy, add=add, active=active)
    trace = steps(network, sampler, board(14))
    assert [written(step) for step in trace] == _blocks_in_flight(network, 14, 4, entropy, add, active)
    assert len(trace) <= 14
    if entropy > 100:
        assert len(trace) == 4, "a pass writes all blocks that were added"


@pytest.mark.parametrize("isolate", [True, False])
def test_a_shadow_predicts_as_if_its_draft_were_masked(isolate: bool) -> None:
    """This is exact in a network of one layer, where no other position depends on the draft's token."""
    torch.manual_seed(0)
    shape = preset("toy", 40, layers=1)
    network = Transformer(shape).double().requires_grad_(False).eval()
    for parameter in network.parameters():
        if parameter.ndim == 2:
            parameter.mul_(5)
    spec = SPEC.with_tokens(vocab_size=40).with_network(prompt_encoder=isolate)
    rows = [[2, 7, *[None] * 8], [2, 7, 9, 11, *[None] * 4]]
    canvas = make_canvas(rows, [2, 4], spec, seeds=[0, 1])
    drafts = [(0, 3), (0, 6), (1, 5)]
    for row, place in drafts:
        canvas.status[row, place], canvas.ids[row, place] = DRAFT, 20 + place
    sampler = make("wino")
    (request,) = sampler.plan(canvas, sampler.start(canvas, spec), spec)
    found, own = network(request), request.find(QueryMask)
    assert own is not None and own.query_ids is not None
    row, column = (request.targets >= 0).nonzero(as_tuple=True)
    checked = 0
    for number, (r, w) in enumerate(zip(row.tolist(), column.tolist(), strict=True)):
        place, x = int(request.targets[r, w]), canvas.ids[r : r + 1, : len(rows[r])].clone()
        if place >= canvas.ids.shape[1]:
            place = int(request.positions[r][own.query_ids[r] == place])
            assert (r, place) in drafts
            x[0, place] = spec.tokens.mask_id
            checked += 1
        pos = torch.arange(x.shape[1])[None]
        prompt = canvas.prompt[r : r + 1] if isolate else None
        plain = network(
            Forward(
                tokens=x,
                positions=pos,
                targets=torch.tensor([[place]]),
                attention=spec.network.attention,
                prompt=prompt,
            )
        )
        torch.testing.assert_close(found[number], plain[0], rtol=1e-9, atol=1e-9)
    assert checked == len(drafts)


def test_wino_masks_drafts_that_their_shadows_reject() -> None:
    """A network that predicts 6 after a 5, and 5 elsewhere: adjacent positions drafted together are inconsistent."""

    def network(request: Forward, store: object = None) -> torch.Tensor:
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        own = request.find(QueryMask)
        name = request.positions if own is None or own.query_ids is None else own.query_ids
        logits = torch.zeros(len(row), SPEC.tokens.vocab_size)
        for number, (r, w) in enumerate(zip(row.tolist(), column.tolist(), strict=True)):
            query = int((name[r] == request.targets[r, w]).nonzero())
            place = int(request.positions[r, query])
            visible = torch.ones(request.tokens.shape[1], dtype=torch.bool) if own is None else own.mask[r, query]
            left = (request.positions[r] == place - 1) & visible
            logits[number, 6 if bool((request.tokens[r][left] == 5).any()) else 5] = 5.0
        return logits

    canvas = board(12)
    trace = steps(network, make("wino", threshold=0.5, verify=0.5), canvas)
    assert any((step.status == FREE).any() for step in trace)
    text = canvas.ids[0, 1:].tolist()
    # Tokens of the last pass are not verified: of six inconsistent pairs, one may remain.
    assert sum(b != 6 for a, b in itertools.pairwise(text) if a == 5) <= 1
    assert len(trace) < 12


STRATEGIES = ("cap", "rescale", "loop", "forward_backward")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_remdm_keeps_the_share_of_masks(strategy: str) -> None:
    """Every grid step writes positions on such a long canvas, so the canvas after pass k is x at t_k: its share of
    masks is 1 - alpha(t_k), as without remasking."""
    length, rows, count = 200, 100, 8
    sampler = make("remdm", steps=count, strategy=strategy, eta=0.3)
    canvas = board(length, rows)
    again = 0
    for number, step in enumerate(Loop({"main": random_network(length + 1, 0)}, Method(sampler), SPEC).run(canvas), 1):
        t = 1 - number / count
        alpha = 1 - t if strategy != "loop" else 2 * (1 - t) if t > 0.55 else 0.9 if t > 0.05 else 1.0
        share = float((canvas.status == FREE).double().mean())
        deviation = math.sqrt(max(alpha * (1 - alpha), 1e-9) / (rows * length))
        assert abs(share - (1 - alpha)) < 5 * deviation
        again += int((step.status == FREE).sum())
    assert again > 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_remdm_samples_independent_letters_from_their_distributions(strategy: str) -> None:
    """For independent positions there is no discretisation error: remasking that does not depend on the tokens must
    sample from the product distribution. (conf depends on them, and so prefers likely tokens.)"""
    network, count = random_network(3, 1, 1.0), 4000
    canvas = board(2, count, temperature=1.0)
    steps(network, make("remdm", steps=12, strategy=strategy, eta=0.3), canvas)
    p = network.log_p()[1:].double().softmax(-1)
    joint = (p[0][:, None] * p[1][None]).flatten()
    keep = joint > 0
    drawn = Counter((canvas.ids[:, 1] * SPEC.tokens.vocab_size + canvas.ids[:, 2]).tolist())
    observed = torch.tensor([drawn[index] for index in range(len(joint))])
    assert int(observed.sum()) == int(observed[keep].sum()) == count
    assert chisquare(observed[keep].tolist(), (joint[keep] * count).tolist()).pvalue > 1e-3


def test_remdm_takes_no_pass_for_grid_steps_that_write_nothing() -> None:
    canvas = board(4)
    trace = steps(random_network(5, 0), make("remdm", steps=1000, eta=0.02), canvas)
    assert len(trace) < 200
    assert int(canvas.nfe[0]) == len(trace)


@pytest.mark.parametrize("name", ["confidence", "threshold", "factor", "entropy_bound", "hierarchical", "slow_fast"])
def test_nothing_is_written_after_an_end_of_text(name: str) -> None:
    """Position 4 is end-of-text with certainty: it is written first, then only the positions before it."""
    logits = torch.zeros(31, SPEC.tokens.vocab_size)
    logits[:, 5] = 1.0
    logits[4, SPEC.tokens.eos_id] = 30.0
    options = {"steps": 30} if name == "confidence" else {}
    canvas = board(30)
    trace = steps(Fixed(logits), make(name, **options), canvas)
    assert set().union(*(written(step) for step in trace[1:])) <= {1, 2, 3}
    assert completion(canvas, 0, SPEC.tokens.eos_id) == ([5, 5, 5], "stop")


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("confidence", {"schedule": "cosin"}, "cosine"),
        ("confidence", {"position_temperature": -1.0}, "position_temperature"),
        ("entropy_bound", {"gamma": -0.1}, "gamma"),
        ("entropy_bound", {"order": "entrop"}, "entropy"),
        ("factor", {"factor": 0.0}, "factor"),
        ("klass", {"kl": 0.0}, "kl"),
        ("klass", {"history": 0}, "history"),
        ("credit", {"decay": 1.0}, "decay"),
        ("credit", {"strength": -1.0}, "strength"),
        ("position_calibrated", {"steps": 4, "decay": -1.0}, "decay"),
        ("position_calibrated", {"steps": 4, "cap": 0.0}, "cap"),
        ("position_calibrated", {"steps": 4, "frequencies": "/nowhere.json"}, "nowhere"),
        ("hierarchical", {"low": 0.95}, "low"),
        ("hierarchical", {"threshold": 0.0}, "threshold"),
        ("joint_threshold", {"edit": 1.5}, "edit"),
        ("joint_threshold", {"rounds": 0}, "rounds"),
        ("multi_block", {"add": 0.0}, "add"),
        ("multi_block", {"block": 0}, "block"),
        ("token_to_mask", {"by": "age"}, "by"),
        ("token_to_mask", {"share": 0.0}, "share"),
        ("prophet", {"steps": 4, "late": -1.0}, "late"),
        ("remdm", {"strategy": "caps"}, "cap"),
        ("remdm", {"eta": 2.0}, "eta"),
        ("remdm", {"steps": 0}, "steps"),
        ("remdm", {"t_on": 0.01}, "t_on"),
        ("remdm", {"alpha_on": 1.0}, "alpha_on"),
        ("wino", {"verify": 0.0}, "verify"),
        ("slow_fast", {"reach": 0.0}, "reach"),
        ("slow_fast", {"explore": 0}, "explore"),
    ],
)
def test_invalid_options_are_refused(name: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        steps(random_network(9, 0), make(name, **options), board(8))
