"""What each sampler of masked models promises beyond the laws of all: its rule, checked against its definition."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from redraft import registry
from redraft.canvas import completion, make_canvas
from redraft.decode import Loop, Method
from redraft.errors import UserError
from redraft.models.transformer import Transformer
from redraft.presets import preset
from redraft.types import DRAFT, FREE, SEALED, Canvas, Forward, Sampler, Step
from tests import tiny

SPEC, _ = tiny.family("masked", conditional=False)
LETTERS = tiny.VOCABULARY.letters


@dataclass
class Fixed:
    """A network whose prediction at a position depends on nothing but the position: rows of logits [L, V]."""

    logits: torch.Tensor

    def __call__(self, ask: Forward, store: object = None) -> torch.Tensor:
        return self.logits[ask.want[ask.want >= 0]].clone()

    def log_p(self) -> torch.Tensor:
        logits = self.logits.clone()
        logits[:, list(SPEC.forbidden)] = -torch.inf
        return logits.log_softmax(-1)


def opinions(length: int, seed: int, sharpness: float = 4.0) -> Fixed:
    """Random predictions; an end-of-text is never among them."""
    logits = torch.randn(length, SPEC.vocab_size, generator=torch.Generator().manual_seed(seed)) * sharpness
    logits[:, SPEC.eos_id] = -torch.inf
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
def test_the_cosine_schedule_leaves_the_cosines_share(free: int, count: int) -> None:
    """After step s of T floor(n cos(pi s / 2T)) are left, save that a step writes at least one."""
    taken = steps(opinions(free + 1, 0), make("confidence", steps=count, schedule="cosine"), board(free))
    left = free
    for number in range(1, len(taken) + 1):
        left = min(left - 1, math.floor(free * math.cos(math.pi / 2 * number / count) + 1e-9))
        assert free - sum(len(s.pos) for s in taken[:number]) == left
    assert left == 0


@pytest.mark.parametrize("order", ["peak", "margin", "entropy", "left"])
def test_position_temperature_draws_positions_by_the_softmax_of_their_scores(order: str) -> None:
    network, count, temperature = opinions(5, 3, 1.0), 4000, 0.5
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
def test_factor_writes_the_most_that_their_doubt_carries(seed: int) -> None:
    network, factor = opinions(16, seed, 8.0), 1.0 + seed % 3
    conf = network.log_p()[1:].amax(-1).exp().double()
    order = conf.argsort(descending=True)
    most = max([n for n in range(1, 16) if (n + 1) * (1 - float(conf[order[n - 1]])) < factor], default=1)
    first = steps(network, make("factor", factor=factor), board(15))[0]
    assert written(first) == {int(i) + 1 for i in order[:most]}


@pytest.mark.parametrize("order", ["entropy", "peak", "margin"])
@pytest.mark.parametrize("seed", range(6))
def test_entropy_bound_writes_the_longest_prefix_within_the_bound(seed: int, order: str) -> None:
    network, gamma = opinions(16, seed, 6.0), 0.05 * 4**seed
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


def test_entropy_bound_of_nothing_still_writes_what_is_certain() -> None:
    """Positions without entropy can't depend on each other: gamma = 0 writes them all at once."""
    logits = torch.zeros(9, SPEC.vocab_size)
    logits[:, 5] = 1e4
    assert len(steps(Fixed(logits), make("entropy_bound", gamma=0.0), board(8))) == 1


@pytest.mark.parametrize("seed", range(8))
def test_hierarchical_splits_every_run(seed: int) -> None:
    network = opinions(21, seed, 3.0)
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
    logits = torch.zeros(8, SPEC.vocab_size)
    logits[:, 5] = 3.0
    first = steps(Fixed(logits), make("hierarchical", threshold=1.0, low=0.0), board(7))[0]
    assert written(first) == {1}


@pytest.mark.parametrize(("gap", "passes"), [(8.0, 1), (6.0, 2), (3.0, 4), (1.0, 6)])
def test_prophet_commits_when_the_gap_reaches_the_bar(gap: float, passes: int) -> None:
    """Six steps; the bar is 7.5 in steps 1 (1/6 < 1/3), 5 in 2 and 3 (1/3, 1/2 < 2/3), 2.5 from step 4 (2/3) on."""
    logits = torch.full((13, SPEC.vocab_size), -50.0)
    logits[:, 5], logits[:, 6] = gap, 0.0
    assert len(steps(Fixed(logits), make("prophet", steps=6), board(12))) == passes


def test_slow_fast_takes_the_stretch_that_two_looks_agree_on() -> None:
    """Positions 1 to 6 are visible (p >= 0.3), 7 to 12 are not: two slow passes write two of them, and then the fast
    phase stays within the stretch until it is full."""
    logits = torch.zeros(13, SPEC.vocab_size)
    logits[:, list(SPEC.forbidden)] = -torch.inf
    logits[1:7, 5], logits[7:, 5] = 2.0, 0.3  # of four tokens, this gives p = 0.71 and 0.31
    sampler = make("slow_fast", reach=0.4, threshold=0.95)
    asked: list[set[int]] = []

    def network(ask: Forward, store: object = None) -> torch.Tensor:
        asked.append(set(ask.want[ask.want >= 0].tolist()))
        return logits[ask.want[ask.want >= 0]].clone()

    taken = steps(network, sampler, board(12))
    assert [max(places) for places in asked[:2]] == [12, 12]
    assert all(places <= set(range(1, 7)) for places in asked[2:6])
    assert [len(step.pos) for step in taken] == [1] * 12
    assert set().union(*(written(step) for step in taken[:6])) == set(range(1, 7))


@dataclass
class SecondThoughts:
    """Takes a mask for one letter, and once it sees a letter it knows better."""

    def __call__(self, ask: Forward, store: object = None) -> torch.Tensor:
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        at = ask.want[row, column]
        logits = torch.zeros(len(at), SPEC.vocab_size)
        logits[torch.arange(len(at)), torch.where(ask.x[row, at] == SPEC.mask_id, 5, 6)] = 9.0
        return logits


@dataclass
class Changing:
    """Tells other logits [L, V] at each pass, the last ones for ever."""

    turns: list[torch.Tensor]
    passes: int = 0

    def __call__(self, ask: Forward, store: object = None) -> torch.Tensor:
        logits = self.turns[min(self.passes, len(self.turns) - 1)]
        self.passes += 1
        return logits[ask.want[ask.want >= 0]].clone()


def favouring(length: int, p: dict[int, tuple[int, float]]) -> torch.Tensor:
    """Logits [L, V] with a probability of p for a letter at some positions, and 0.3 for letter 5 elsewhere."""
    others = [token for token in range(SPEC.vocab_size) if token not in (*SPEC.forbidden, SPEC.eos_id)]
    logits = torch.full((length, SPEC.vocab_size), -torch.inf)
    for place in range(length):
        token, share = p.get(place, (5, 0.4))
        logits[place, others] = math.log((1 - share) / (len(others) - 1))
        logits[place, token] = math.log(share)
    return logits


def test_klass_writes_in_parallel_what_is_sure_and_stable() -> None:
    """Positions 1 to 4 are sure from the first pass on; 4 changes its mind at every pass. Two calm passes are asked
    for, so that the first two passes write one token each (the surest: 1, then 2), and the third 3 and not 4."""
    sure = {1: (5, 0.97), 2: (5, 0.96), 3: (5, 0.95)}
    turns = [favouring(8, sure | {4: (5 + number % 2, 0.94)}) for number in range(6)]
    taken = steps(Changing(turns), make("klass", threshold=0.9, kl=0.01, history=2), board(7))
    assert [written(step) for step in taken[:3]] == [{1}, {2}, {3}]
    stable = steps(Changing(turns[:1]), make("klass", threshold=0.9, kl=0.01, history=2), board(7))
    assert [written(step) for step in stable[:3]] == [{1}, {2}, {3, 4}]


def test_klass_without_stable_positions_writes_the_most_certain() -> None:
    taken = steps(opinions(13, 0), make("klass", threshold=0.9999, kl=1e-9), board(12))
    assert all(len(step.pos) == 1 for step in taken)


def test_credit_is_what_its_equation_says() -> None:
    """One position, the same prediction p at every pass. After n passes the favourite's credit is
    p^gain (1 + decay + ... + decay^(n-1)), and its raised probability passes the threshold when it must."""
    p, strength, decay, gain = 0.6, 1.4, 0.8, 0.2
    others = SPEC.vocab_size - len(SPEC.forbidden) - 2  # letters besides the favourite; end-of-text is ruled out
    assert others >= 1

    def raised(passes: int) -> float:
        credit = sum(p**gain * decay**n for n in range(passes))
        high = p * (1 + credit) ** strength
        return high / (high + 1 - p)

    need = next(n for n in range(1, 20) if raised(n) > 0.85)
    assert need > 1
    network = Changing([favouring(21, dict.fromkeys(range(21), (6, p)))])
    sampler = make("credit", threshold=0.85, strength=strength, decay=decay, gain=gain)
    taken = steps(network, sampler, board(20))
    assert [len(step.pos) for step in taken[: need - 1]] == [1] * (need - 1)
    assert len(taken) == need, "all that is left passes the threshold at once"
    assert torch.allclose(taken[-1].conf.exp(), torch.tensor(p)), "the log-probability is the model's, not the raised"


def test_no_credit_is_a_threshold() -> None:
    for seed in range(5):
        network = opinions(13, seed)
        canvases = [board(12), board(12)]
        found = steps(network, make("credit", threshold=0.6, strength=0.0), canvases[0])
        plain = steps(network, make("threshold", threshold=0.6), canvases[1])
        assert [written(step) for step in found] == [written(step) for step in plain]


def test_position_calibrated_prefers_rare_tokens_and_the_left(tmp_path: Path) -> None:
    """Letter 5 is common, 6 is rare. Equal confidence: rare first; with a strong decay the leftmost first."""
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({"5": 10_000, "6": 3, "7": 100}))
    network = Changing([favouring(7, {1: (5, 0.9), 2: (7, 0.9), 3: (6, 0.9), 4: (7, 0.9), 5: (5, 0.9), 6: (6, 0.9)})])
    plain = make("position_calibrated", steps=6, decay=0.0, frequencies=str(file))
    order = [step.pos.item() for step in steps(network, plain, board(6))]
    assert order == [3, 6, 2, 4, 1, 5]
    leaning = make("position_calibrated", steps=6, decay=9.0, frequencies=str(file))
    assert [step.pos.item() for step in steps(network, leaning, board(6))] == [1, 2, 3, 4, 5, 6]


def test_position_calibrated_learns_what_is_common_from_the_first_predictions() -> None:
    """Letter 5 is predicted four times and 6 once: with equal confidence 6 says more."""
    network = Changing([favouring(6, {place: (6 if place == 4 else 5, 0.8) for place in range(6)})])
    first = steps(network, make("position_calibrated", steps=5, decay=0.0), board(5))[0]
    assert written(first) == {4}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_joint_threshold_edits_what_it_sees_to_be_wrong(temperature: float) -> None:
    canvas = board(6, temperature=temperature)
    taken = steps(SecondThoughts(), make("joint_threshold", threshold=0.5, edit=0.9), canvas)
    assert canvas.ids[0, 1:].tolist() == [6] * 6
    assert {int(s) for step in taken[:-1] for s in step.status} == {DRAFT}
    assert {int(s) for s in taken[-1].status} == {SEALED}


@dataclass
class NeverContent:
    """Wants another letter whatever it sees."""

    def __call__(self, ask: Forward, store: object = None) -> torch.Tensor:
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        at = ask.want[row, column]
        logits = torch.zeros(len(at), SPEC.vocab_size)
        logits[torch.arange(len(at)), torch.where(ask.x[row, at] == 5, 6, 5)] = 9.0
        return logits


def test_joint_threshold_ends_where_edits_would_not() -> None:
    taken = steps(NeverContent(), make("joint_threshold", threshold=0.5, edit=0.5, rounds=5), board(6))
    assert len(taken) == 1 + 5


@pytest.mark.parametrize("isolate", [True, False])
def test_a_shadow_predicts_as_if_its_twin_were_masked(isolate: bool) -> None:
    """Exactly so in a network of one layer, where no other position has carried the twin's token anywhere."""
    torch.manual_seed(0)
    shape = preset("toy", 40, layers=1)
    network = Transformer(shape).double().requires_grad_(False).eval()
    for parameter in network.parameters():
        if parameter.ndim == 2:
            parameter.mul_(5)
    spec = replace(SPEC, vocab_size=40, isolate_prompt=isolate)
    rows = [[2, 7, *[None] * 8], [2, 7, 9, 11, *[None] * 4]]
    canvas = make_canvas(rows, [2, 4], spec, seeds=[0, 1])
    drafts = [(0, 3), (0, 6), (1, 5)]
    for row, place in drafts:
        canvas.status[row, place], canvas.ids[row, place] = DRAFT, 20 + place
    sampler = make("wino")
    (ask,) = sampler.plan(canvas, sampler.start(canvas, spec), spec)
    found = network(ask)
    row, column = (ask.want >= 0).nonzero(as_tuple=True)
    checked = 0
    for number, (r, w) in enumerate(zip(row.tolist(), column.tolist(), strict=True)):
        place, x = int(ask.want[r, w]), canvas.ids[r : r + 1, : len(rows[r])].clone()
        if place >= canvas.ids.shape[1]:
            place = int(ask.pos[r][ask.cell[r] == place])
            assert (r, place) in drafts
            x[0, place] = spec.mask_id
            checked += 1
        pos = torch.arange(x.shape[1])[None]
        prompt = canvas.prompt[r : r + 1] if isolate else None
        plain = network(Forward(x=x, pos=pos, want=torch.tensor([[place]]), attend=spec.attend, prompt=prompt))
        torch.testing.assert_close(found[number], plain[0], rtol=1e-9, atol=1e-9)
    assert checked == len(drafts)


def test_wino_takes_back_what_its_shadow_would_not_write() -> None:
    """A network that writes letter 5 into a lone mask, and 6 beside a 5: neighbours drafted together are at odds."""

    def network(ask: Forward, store: object = None) -> torch.Tensor:
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        cell = ask.pos if ask.cell is None else ask.cell
        logits = torch.zeros(len(row), SPEC.vocab_size)
        for number, (r, w) in enumerate(zip(row.tolist(), column.tolist(), strict=True)):
            query = int((cell[r] == ask.want[r, w]).nonzero())
            place = int(ask.pos[r, query])
            visible = torch.ones(ask.x.shape[1], dtype=torch.bool) if ask.mask is None else ask.mask[r, query]
            left = (ask.pos[r] == place - 1) & visible
            logits[number, 6 if bool((ask.x[r][left] == 5).any()) else 5] = 5.0
        return logits

    canvas = board(12)
    taken = steps(network, make("wino", threshold=0.5, verify=0.5), canvas)
    assert any((step.status == FREE).any() for step in taken)
    text = canvas.ids[0, 1:].tolist()
    # nobody verifies what the last pass writes: one pair may be left at odds, of the six that were
    assert sum(b != 6 for a, b in itertools.pairwise(text) if a == 5) <= 1
    assert len(taken) < 12


STRATEGIES = ("cap", "rescale", "loop", "forward_backward")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_remdm_keeps_the_share_of_masks(strategy: str) -> None:
    """Every turn writes something on so long a canvas, so the canvas after pass k is x at t_k: its share of masks is
    1 - alpha(t_k), with remasking as without."""
    length, rows, count = 200, 100, 8
    sampler = make("remdm", steps=count, strategy=strategy, eta=0.3)
    canvas = board(length, rows)
    again = 0
    for number, step in enumerate(Loop({"main": opinions(length + 1, 0)}, Method(sampler), SPEC).run(canvas), 1):
        t = 1 - number / count
        alpha = 1 - t if strategy != "loop" else 2 * (1 - t) if t > 0.55 else 0.9 if t > 0.05 else 1.0
        share = float((canvas.status == FREE).double().mean())
        deviation = math.sqrt(max(alpha * (1 - alpha), 1e-9) / (rows * length))
        assert abs(share - (1 - alpha)) < 5 * deviation
        again += int((step.status == FREE).sum())
    assert again > 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_remdm_draws_independent_letters_from_their_distributions(strategy: str) -> None:
    """Where positions are independent no step size errs: what masks again without looking at the tokens must draw the
    product distribution. (conf looks at them, and so favours likely tokens.)"""
    network, count = opinions(3, 1, 1.0), 4000
    canvas = board(2, count, temperature=1.0)
    steps(network, make("remdm", steps=12, strategy=strategy, eta=0.3), canvas)
    p = network.log_p()[1:].double().softmax(-1)
    joint = (p[0][:, None] * p[1][None]).flatten()
    keep = joint > 0
    drawn = Counter((canvas.ids[:, 1] * SPEC.vocab_size + canvas.ids[:, 2]).tolist())
    observed = torch.tensor([drawn[index] for index in range(len(joint))])
    assert int(observed.sum()) == int(observed[keep].sum()) == count
    assert chisquare(observed[keep].tolist(), (joint[keep] * count).tolist()).pvalue > 1e-3


def test_remdm_spends_no_pass_on_turns_that_write_nothing() -> None:
    canvas = board(4)
    taken = steps(opinions(5, 0), make("remdm", steps=1000, eta=0.02), canvas)
    assert len(taken) < 200
    assert int(canvas.nfe[0]) == len(taken)


@pytest.mark.parametrize("name", ["confidence", "threshold", "factor", "entropy_bound", "hierarchical", "slow_fast"])
def test_nothing_is_written_after_an_end_of_text(name: str) -> None:
    """Position 4 is certain to end the text: it is written first, then what stands before it and nothing else."""
    logits = torch.zeros(31, SPEC.vocab_size)
    logits[:, 5] = 1.0
    logits[4, SPEC.eos_id] = 30.0
    options = {"steps": 30} if name == "confidence" else {}
    canvas = board(30)
    taken = steps(Fixed(logits), make(name, **options), canvas)
    assert set().union(*(written(step) for step in taken[1:])) <= {1, 2, 3}
    assert completion(canvas, 0, SPEC.eos_id) == ([5, 5, 5], "stop")


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
def test_wrong_options_are_refused_in_words(name: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        steps(opinions(9, 0), make(name, **options), board(8))
