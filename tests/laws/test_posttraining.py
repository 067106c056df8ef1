"""Laws of preferences and rewards, against values that enumeration gives for a toy distribution of two tokens.

The numbers of ``P`` and ``R`` were computed by enumeration, without this package: two positions, two letters, one
number for each context, the probability of the letter A. The conditionals contradict each other, as a network's do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.likelihood import sampler_likelihood
from redraft.models.transformer import Config, Transformer
from redraft.objectives.base import SamplePass, Samples
from redraft.objectives.shared.vocabulary import backward, evaluate
from redraft.posttraining import build_estimator, build_method, build_objective
from redraft.posttraining.base import Weighted, WeightedBatch
from redraft.posttraining.estimators.base import Estimator
from redraft.posttraining.estimators.coupled import Coupled
from redraft.posttraining.estimators.left_to_right import LeftToRight
from redraft.posttraining.estimators.levels import Levels
from redraft.posttraining.estimators.one_step import OneStep
from redraft.posttraining.preference import Preference, PreferenceLoss
from redraft.posttraining.reward import RewardLoss, advantages
from redraft.posttraining.sandwich import SandwichLoss, upper_bound
from redraft.registry import find, names
from redraft.rollouts import prepare_batch
from redraft.samplers.confidence import Confidence
from redraft.types import Batch, Forward, Spec
from tests.tiny import VOCABULARY, changed, family, pairs

A, B, _ = VOCABULARY.letters
SEP, EOS, MASK = VOCABULARY.sep_id, VOCABULARY.eos_id, VOCABULARY.mask_id
TEXTS = [[A, A], [A, B], [B, A], [B, B]]
# Probability of A at: 1 | -, 2 | -, 1 | 2 = a, 1 | 2 = b, 2 | 1 = a, 2 | 1 = b
P, R = (0.6, 0.7, 0.8, 0.3, 0.9, 0.2), (0.5, 0.6, 0.7, 0.4, 0.8, 0.3)
REWARD = {(A, A): 1.0, (B, B): 0.5, (A, B): 0.0, (B, A): 0.0}


class Toy(nn.Module):
    """The table as a network: six logits of A, by position and by what it sees of the other one."""

    def __init__(self, p: Iterable[float]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor([math.log(x / (1 - x)) for x in p], dtype=torch.float64))

    def forward(self, request: Forward, store: object = None) -> Tensor:
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        place = request.targets[row, column] - 1
        other = request.tokens[row, 2 - place]
        entry = torch.where(other == MASK, place, 2 + 2 * place + (other == B).long())
        logits = torch.full((len(row), VOCABULARY.vocab_size), -1e30, dtype=torch.float64)
        one = torch.zeros(VOCABULARY.vocab_size, dtype=torch.float64)
        one[A] = 1.0
        known = torch.isin(torch.arange(VOCABULARY.vocab_size), torch.tensor([A, B]))
        return torch.where(known, self.table[entry][:, None] * one, logits)


def spec(**changes: Any) -> Spec:
    return changed(family("masked")[0], length_head=False, prompt_encoder=False, **changes)


def texts(*rows: list[int]) -> Batch:
    return pairs([([SEP], row) for row in rows])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prepared(
    objective: Weighted, batch: Batch, seed: int, nets: dict[str, Any], sample: Callable[..., Samples] | None = None
) -> WeightedBatch:
    found: WeightedBatch = prepare_batch(objective, batch, spec(), generator(seed), nets, sample=sample)[0]
    return found


def masks(batch: WeightedBatch, row: int) -> tuple[tuple[int, ...], ...]:
    """The hidden positions in each copy of a row."""
    tokens = batch.request.tokens[:, 1:3]
    return tuple(tuple((one == MASK).nonzero()[:, 0].tolist()) for one in tokens[row :: batch.rows])


def nats(network: Any, estimator: Estimator, batch: Batch, seed: int) -> tuple[Tensor, WeightedBatch]:
    objective = RewardLoss(estimator, 2, 0.0)
    made = objective.prepare(batch, spec(), generator(seed))
    return evaluate(network, objective, made).nats.double(), made


# ---- estimators: the mean over all masks is the bound of the table


BOUND = {(A, A): -0.59800, (A, B): -2.61068, (B, A): -2.24592, (B, B): -1.35004}
ONE_STEP = {(A, A): -0.86750, (A, B): -1.71480, (B, A): -1.27297, (B, B): -2.12026}
# One draw: the hidden positions, their chance, and the estimate of log p(aa).
LEVEL = {
    ((0,),): (1 / 4, 2 * math.log(0.8)),
    ((1,),): (1 / 4, 2 * math.log(0.9)),
    ((0, 1),): (1 / 2, math.log(0.6) + math.log(0.7)),
}
PAIR = {
    ((), (0, 1)): (1 / 3, -0.650625),
    ((0, 1), ()): (1 / 3, -0.650625),
    ((0,), (1,)): (1 / 6, -0.492756),
    ((1,), (0,)): (1 / 6, -0.492756),
}


@pytest.mark.parametrize(("estimator", "draws"), [(Levels(1), LEVEL), (Coupled(1), PAIR)], ids=["levels", "coupled"])
def test_draws_have_their_values_and_their_chances(estimator: Estimator, draws: dict[Any, tuple[float, float]]) -> None:
    rows = 1500
    found, made = nats(Toy(P), estimator, texts(*[[A, A]] * rows), 0)
    count = dict.fromkeys(draws, 0)
    for row in range(rows):
        drawn = masks(made, row)
        assert -float(found[row]) == pytest.approx(draws[drawn][1], abs=1e-5)
        count[drawn] += 1
    for drawn, (chance, _) in draws.items():
        assert count[drawn] / rows == pytest.approx(chance, abs=5 * math.sqrt(chance / rows)), drawn
    assert sum(chance * value for chance, value in draws.values()) == pytest.approx(BOUND[A, A], abs=1e-5)


@pytest.mark.parametrize("draws", [2, 5])
def test_levels_of_one_text_are_stratified(draws: int) -> None:
    """Of five draws of two levels, two or three have the lower level; the mean stays that of the bound."""
    found, made = nats(Toy(P), Levels(draws), texts(*[[A, B]] * 1500), 1)
    low = torch.tensor([sum(len(hidden) == 1 for hidden in masks(made, row)) for row in range(1500)])
    assert set(low.tolist()) <= {draws // 2, -(-draws // 2)}
    assert -float(found.mean()) == pytest.approx(BOUND[A, B], abs=5 * float(found.std()) / math.sqrt(1500))


def test_one_step_and_left_to_right() -> None:
    found, _ = nats(Toy(P), OneStep(), texts(*TEXTS), 0)
    assert (-found).tolist() == pytest.approx([ONE_STEP[tuple(text)] for text in TEXTS], abs=1e-5)
    found, made = nats(Toy(P), LeftToRight(), texts(*TEXTS), 0)
    first, second = {A: 0.6, B: 0.4}, {(A, A): 0.9, (A, B): 0.1, (B, A): 0.2, (B, B): 0.8}
    assert (-found).tolist() == pytest.approx([math.log(first[x] * second[x, y]) for x, y in TEXTS], abs=1e-6)


@pytest.mark.parametrize("paired", [True, False])
def test_left_to_right_is_the_likelihood_of_that_order(paired: bool) -> None:
    made = network()
    one = family("masked", paired)[0]
    rows = pairs([([A, SEP], [B, A, B, EOS]), ([SEP], [A, EOS]), ([SEP], [EOS])])
    objective = RewardLoss(LeftToRight(), 2, 0.0)
    found = evaluate(made, objective, objective.prepare(rows, one, generator(0))).nats
    for number, steps in enumerate((3, 1, 1) if paired else (4, 2, 1)):  # a length makes the last end-of-text certain
        row = Batch(**{key: part[number : number + 1] for key, part in vars(rows).items() if part is not None})
        expected = sampler_likelihood(made, [row], Confidence(order="left", steps=steps), one).rows
        assert float(found[number]) == pytest.approx(expected[0], rel=1e-5)


@pytest.mark.parametrize("name", ["coupled", "levels"])
def test_a_network_without_context_makes_all_estimators_equal(name: str) -> None:
    blind = Toy((0.6, 0.7, 0.6, 0.6, 0.7, 0.7))
    exact, _ = nats(blind, LeftToRight(), texts(*TEXTS), 0)
    assert nats(blind, OneStep(), texts(*TEXTS), 0)[0].tolist() == pytest.approx(exact.tolist(), rel=1e-6)
    found, _ = nats(blind, find("posttraining.estimators", name)(), texts(*[[A, B]] * 1500), 0)
    assert float(found.mean()) == pytest.approx(float(exact[1]), abs=5 * float(found.std()) / math.sqrt(1500))


# ---- preferences


def pair_draws(theta: Iterable[float]) -> tuple[dict[Any, float], dict[Any, float]]:
    """s of every pair of masks of the texts aa (preferred) and bb, and the chance of this pair of masks."""
    nets = {"main": Toy(theta), "teacher": Toy(R)}
    objective = PreferenceLoss(Levels(1), 0.2, 0.0)
    margin: dict[Any, float] = {}
    for seed in range(200):
        made = prepared(objective, texts([A, A], [B, B]), seed, nets)
        margin.setdefault((masks(made, 0), masks(made, 1)), made.stats["margin"])
        if len(margin) == 9:
            break
    return margin, {(won, lost): LEVEL[won][0] * LEVEL[lost][0] for won, lost in margin}


def test_shared_noise_has_the_variance_of_the_enumeration() -> None:
    margin, chance = pair_draws(P)
    assert sum(chance.values()) == pytest.approx(1.0)
    mean = sum(chance[key] * s for key, s in margin.items())
    loss = {key: math.log1p(math.exp(-s)) for key, s in margin.items()}
    mean_loss = sum(chance[key] * value for key, value in loss.items())
    assert mean == pytest.approx(0.0810930, abs=1e-6)
    assert sum(chance[key] * (s - mean) ** 2 for key, s in margin.items()) == pytest.approx(0.00646213, abs=1e-7)
    assert mean_loss == pytest.approx(0.6542287, abs=1e-6)
    assert sum(chance[key] * (x - mean_loss) ** 2 for key, x in loss.items()) == pytest.approx(0.00148761, abs=1e-7)


def test_noise_that_is_not_shared_would_have_six_times_the_variance() -> None:
    """beta^2 times the sum of the variances of both networks' estimates of both texts."""
    total = 0.0
    for theta, text in product((P, R), ([A, A], [B, B])):
        found: dict[Any, float] = {}
        for seed in range(40):
            value, made = nats(Toy(theta), Levels(1), texts(text), seed)
            found[masks(made, 0)] = float(value)
        mean = sum(LEVEL[key][0] * value for key, value in found.items())
        total += sum(LEVEL[key][0] * (value - mean) ** 2 for key, value in found.items())
    assert 0.2**2 * total == pytest.approx(0.0375012, abs=1e-6)


def test_a_model_that_equals_its_reference_has_no_margin() -> None:
    margin, _ = pair_draws(R)
    assert set(margin.values()) == {0.0}


@pytest.mark.parametrize("sft", [0.0, 0.05])
def test_value_and_gradient_of_the_preference_loss(sft: float) -> None:
    """Against automatic differentiation of the loss as it is written, for exact likelihoods."""
    policy, reference = Toy(P), Toy(R)
    made = prepared(PreferenceLoss(LeftToRight(), 0.2, sft), PAIRS, 0, {"main": policy, "teacher": reference})
    value = backward(policy, PreferenceLoss(LeftToRight(), 0.2, sft), made, 1.0)
    gradient, policy.table.grad = policy.table.grad, None
    log_p, log_ref = (left_to_right(net.table) for net in (policy, reference))
    gain = {text: log_p[text] - log_ref[text].detach() for text in log_p}
    s = torch.stack([0.2 * (gain[won] - gain[lost]) for won, lost in WON])
    expected = (-torch.nn.functional.logsigmoid(s) - sft * torch.stack([log_p[won] / 2 for won, _ in WON])).mean()
    expected.backward()
    assert float(value) == pytest.approx(float(expected.detach()), abs=1e-6)
    assert torch.allclose(gradient, policy.table.grad, atol=1e-6)  # type: ignore[arg-type]


WON = [((A, A), (B, B)), ((B, B), (A, B)), ((A, B), (B, A))]
PAIRS = texts(*[list(won) for won, _ in WON], *[list(lost) for _, lost in WON])


def left_to_right(table: Tensor) -> dict[tuple[int, int], Tensor]:
    """log p of each text from left to right."""
    log_a, log_b = torch.nn.functional.logsigmoid(table), torch.nn.functional.logsigmoid(-table)
    first = {A: log_a[0], B: log_b[0]}
    return {(x, y): first[x] + (log_a if y == A else log_b)[4 + (x == B)] for x, y in product((A, B), (A, B))}


# ---- rewards


def first_hitting() -> dict[tuple[int, int], float]:
    """The probability of each text if positions are filled in a random order."""
    p1, p2, a1, b1, a2, b2 = P
    left = {(A, A): p1 * a2, (A, B): p1 * (1 - a2), (B, A): (1 - p1) * b2, (B, B): (1 - p1) * (1 - b2)}
    right = {(A, A): p2 * a1, (A, B): (1 - p2) * b1, (B, A): p2 * (1 - a1), (B, B): (1 - p2) * (1 - b1)}
    return {text: (left[text] + right[text]) / 2 for text in left}


def autoregressive() -> dict[tuple[int, int], float]:
    return {text: math.exp(value) for text, value in left_to_right(Toy(P).table.detach()).items()}


@dataclass
class Drawn:
    """Texts in place of generated ones."""

    texts: tuple[tuple[int, int], ...]
    reward: dict[tuple[int, int], float]

    def __call__(self, asked: SamplePass) -> Samples:
        batch = texts(*map(list, self.texts))
        reward = torch.tensor([self.reward[text] for text in self.texts], dtype=torch.float64)
        return Samples(batch, reward, torch.zeros(len(reward), dtype=torch.bool))


def expected_gradient(
    estimator: Estimator,
    policy: dict[tuple[int, int], float],
    reward: dict[tuple[int, int], float],
    kl: float = 0.0,
    kinds: dict[Any, float] | None = None,
) -> Tensor:
    """Minus the gradient of the loss in expectation over all groups of two texts, and over all masks.

    ``kinds``: chances of the kinds of masks of a row, for estimators with random ones; masks of a kind are equivalent.
    """
    objective, total = RewardLoss(estimator, 2, kl), torch.zeros(6, dtype=torch.float64)
    kinds = kinds or {None: 1.0}
    for group in product(policy, policy):
        chance, seen = policy[group[0]] * policy[group[1]], set[Any]()
        for seed in range(100):
            nets = {"main": Toy(P), "teacher": Toy(R)}
            made = prepared(objective, texts([A, A]), seed, nets, Drawn(group, reward))
            key = tuple(len(masks(made, row)[0]) % 2 if len(kinds) > 1 else None for row in range(2))
            if key not in seen:
                backward(nets["main"], objective, made, 1.0)
                assert nets["main"].table.grad is not None
                total -= chance * math.prod(kinds[each] for each in key) * nets["main"].table.grad
                seen.add(key)
            if len(seen) == len(kinds) ** 2:
                break
        assert len(seen) == len(kinds) ** 2
    return total


def test_the_gradient_of_exact_likelihoods_is_that_of_the_expected_reward() -> None:
    found = expected_gradient(LeftToRight(), autoregressive(), REWARD)
    assert found.tolist() == pytest.approx([0.12, 0, 0, 0, 0.054, -0.032], abs=1e-6)


def test_one_step_gives_no_gradient_to_context() -> None:
    found = expected_gradient(OneStep(), first_hitting(), REWARD)
    assert found.tolist() == pytest.approx([0.12344, 0.09955, 0, 0, 0, 0], abs=1e-5)
    assert found[2:].tolist() == [0.0] * 4


def test_the_sequence_bound_has_a_small_bias_and_no_dead_coordinates() -> None:
    one_each, both = sum(PAIR[key][0] for key in PAIR if len(key[0]) == 1), PAIR[(), (0, 1)][0] * 2
    found = expected_gradient(Coupled(1), first_hitting(), REWARD, kinds={1: one_each, 0: both})
    expected = [0.06172, 0.04977, 0.04749, -0.01066, 0.03177, -0.02519]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    true = torch.tensor([0.06, 0.04725, 0.056, -0.01575, 0.027, -0.016], dtype=torch.float64)
    assert float(torch.cosine_similarity(found, true, 0)) == pytest.approx(0.9895, abs=1e-4)


def test_the_penalty_has_the_gradient_of_the_divergence() -> None:
    found = expected_gradient(LeftToRight(), autoregressive(), dict.fromkeys(REWARD, 0.3), kl=1.0)
    assert (-found).tolist() == pytest.approx([0.09994, 0, 0, 0, 0.04379, -0.0345], abs=1e-5)


@pytest.mark.parametrize("estimator", [Levels(2), Coupled(1), OneStep(), LeftToRight()], ids=lambda one: one.name)
def test_equal_rewards_give_no_gradient_at_all(estimator: Estimator) -> None:
    net = Toy(P)
    objective, drawn = RewardLoss(estimator, 2, 0.0), Drawn(((A, A), (B, A)), dict.fromkeys(REWARD, 0.1))
    made = prepared(objective, texts([A, A]), 3, {"main": net}, drawn)
    backward(net, objective, made, 1.0)
    assert made.stats["identical"] == 1.0 and net.table.grad is not None
    assert net.table.grad.tolist() == [0.0] * 6


def test_advantages_leave_out_the_own_reward() -> None:
    reward = torch.tensor([1.0, 0.5, 0.0, 2.0, 2.0, 2.0], dtype=torch.float64)
    assert advantages(reward, 3).tolist() == [0.75, 0.0, -0.75, 0.0, 0.0, 0.0]
    assert advantages(torch.tensor([0.1] * 7), 7).tolist() == [0.0] * 7


# ---- sandwiched between bounds

# Draws in the proportion of their chances, with their weights in the bound: {0}, {1}, {0, 1}, {0, 1}.
UPPER = {(A, A): -0.56197, (A, B): -2.24369, (B, A): -1.81531, (B, B): -1.06589}
EXACT = {(A, A): -0.59784, (A, B): -2.59027, (B, A): -2.20727, (B, B): -1.32803}


def bounds(table: Tensor, text: tuple[int, int], beta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """U of a text over all draws, its ELBO, the derivative of U by each log-probability, and these, [6]."""
    network, draws = Toy(P), [(0,), (1,), (0, 1), (0, 1)]
    network.table = nn.Parameter(table)
    tokens = torch.tensor([[SEP, *[MASK if at in draw else text[at] for at in (0, 1)]] for draw in draws])
    targets = torch.tensor([[-1, *[at + 1 if at in draw else -1 for at in (0, 1)]] for draw in draws])
    pos = torch.arange(3).expand(4, 3)
    logits = network(Forward(tokens, pos, targets, spec().network.attention))
    place = torch.cat([row[row >= 0] for row in targets]) - 1
    log_p = logits.log_softmax(1).gather(1, torch.tensor(text)[place][:, None])[:, 0]
    weight = torch.cat([torch.full((len(draw),), 2 / len(draw) / 4) for draw in draws]).double()
    value, share = upper_bound(log_p, weight, torch.zeros(6, dtype=torch.int64), place, beta)
    return value[0], (weight * log_p).sum(), share, log_p


@pytest.mark.parametrize("text", UPPER)
def test_the_upper_bound_of_each_text(text: tuple[int, int]) -> None:
    """For beta of the length it lies above the likelihood, as the lower one lies below."""
    upper, lower, _, _ = bounds(Toy(P).table.detach(), text, 2.0)
    assert upper.item() == pytest.approx(UPPER[text], abs=1e-5)
    assert lower.item() == pytest.approx(BOUND[text], abs=1e-5)
    assert lower.item() <= EXACT[text] <= upper.item()


def test_with_a_smaller_exponent_it_is_no_bound() -> None:
    """Where it is tight for beta 2, at ln .41, it is ln .25 for beta 1."""
    table = Toy((0.9, 0.1, 0.1, 0.5, 0.9, 0.5)).table.detach()  # p1, p2, p1|a, p2|a are what aa reads
    upper, first = (bounds(table, (A, A), beta)[0].item() for beta in (2.0, 1.0))
    assert upper == pytest.approx(math.log(0.41), abs=1e-6) and first == pytest.approx(math.log(0.25), abs=1e-6)


def test_the_shares_are_the_derivative_of_the_upper_bound() -> None:
    table = Toy(P).table.detach().requires_grad_()
    upper, _, share, log_p = bounds(table, (A, B), 1.5)
    [direct] = torch.autograd.grad(upper, log_p, retain_graph=True)
    torch.testing.assert_close(share.detach(), direct)


@pytest.mark.parametrize("mixture", [0.0, 0.5, 1.0])
def test_only_texts_that_get_unlikelier_have_the_upper_bound(mixture: float) -> None:
    loss = SandwichLoss(Levels(4), 2, 0.0, 2.0, mixture)
    drawn = Drawn(((A, A), (B, A)), REWARD)
    nets = {"main": Toy(P)}
    made = prepared(loss, texts([A, A]), 0, nets, drawn)
    plain = prepared(RewardLoss(Levels(4), 2, 0.0), texts([A, A]), 0, nets, drawn)
    better = made.row == 0
    torch.testing.assert_close(made.weight[better], plain.weight[better])
    same = torch.allclose(made.weight[~better], plain.weight[~better])
    assert same == (mixture == 0.0) and bool((made.weight[~better] < 0).all())
    if mixture == 1.0:  # each position counts once: the derivative of log E is a mean
        place = torch.cat([row[row >= 0] for row in made.request.targets])[~better]
        for position in (1, 2):
            assert float(made.weight[~better][place == position].sum()) == pytest.approx(-1.0, abs=1e-6)


# ---- laws of real networks


def network(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    made = Transformer(Config(vocab_size=VOCABULARY.vocab_size, dim=16, layers=1, heads=2, max_length=32))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


FITTING = [("masked", name) for name in ("levels", "coupled", "one_step", "left_to_right")]
FITTING += [("block", "blocks"), ("autoregressive", "exact")]
each_estimator = pytest.mark.parametrize(("kind", "name"), FITTING)


def objective_of(kind: str, name: str) -> tuple[Spec, PreferenceLoss]:
    own, inner = family(kind)
    method = Preference(estimator=name, sft=0.05)
    built = build_objective(method, inner, own)
    assert isinstance(built, PreferenceLoss) and built.estimator.name == name
    return own, built


def preferences() -> Batch:
    chosen = [([A, SEP], [B, A, B, EOS]), ([B, SEP], [A, EOS])]
    rejected = [([A, SEP], [A, EOS]), ([B, SEP], [B, B, A, A, A, EOS])]
    return pairs([*chosen, *rejected], length=10)


def test_every_estimator_is_in_these_tests() -> None:
    assert {name for _, name in FITTING} == {*names("posttraining.estimators")}


@each_estimator
def test_a_network_that_equals_its_reference_has_no_margin_to_the_bit(kind: str, name: str) -> None:
    own, objective = objective_of(kind, name)
    made, _ = prepare_batch(objective, preferences(), own, generator(0), {"main": network(), "teacher": network()})
    assert made.stats == {"margin": 0, "accuracy": 0.5, "chosen_gain": 0, "rejected_gain": 0, "drift": 0}


@each_estimator
def test_only_tokens_of_the_answers_are_targets(kind: str, name: str) -> None:
    """Nothing of the prompt but the length, and nothing of the padding."""
    own, objective = objective_of(kind, name)
    batch = preferences()
    made, _ = prepare_batch(objective, batch, own, generator(1), {"main": network(), "teacher": network(1)})
    assert made.rows == len(batch.ids)
    prompt = batch.prompt
    assert prompt is not None
    last = int(batch.valid.sum(1).max())
    for positions in made.request.target_lists:
        real = positions[positions >= 0]
        assert int(real.min()) >= int(prompt.min()) - 1 and int(real.max()) < last + 1  # a block may be completed
    other = replace(batch, ids=torch.where(batch.valid, batch.ids, A))
    again, _ = prepare_batch(objective, other, own, generator(1), {"main": network(), "teacher": network(1)})
    assert again.stats == made.stats


@pytest.mark.parametrize(("kind", "name"), [("masked", "left_to_right"), ("autoregressive", "exact")])
def test_a_batch_in_two_parts_has_the_same_gradient(kind: str, name: str) -> None:
    """The loss is a mean over pairs: parts count by their pairs. Random estimates would draw other masks."""
    own, objective = objective_of(kind, name)
    whole = preferences()
    nets = {"main": network(), "teacher": network(1)}

    def gradient(*parts: Batch) -> list[Tensor]:
        nets["main"].zero_grad()
        units = sum(map(objective.units, parts))
        for part in parts:
            made, _ = prepare_batch(objective, part, own, generator(0), nets)
            backward(nets["main"], objective, made, made.tokens / units)
        return [p.grad.clone() for p in nets["main"].parameters() if p.grad is not None]

    def rows(*numbers: int) -> Batch:
        index = torch.tensor(numbers)
        return Batch(**{key: None if part is None else part[index] for key, part in vars(whole).items()})

    once, twice = gradient(whole), gradient(rows(0, 2), rows(1, 3))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(once, twice, strict=True))


@each_estimator
def test_the_number_of_rows_is_the_one_that_is_planned(kind: str, name: str) -> None:
    own, objective = objective_of(kind, name)
    batch = preferences()
    made = objective.prepare(batch, own, generator(0))
    longest = int(batch.target.sum(1).max())
    streams = made.request.streams[0].numel() / made.request.tokens.shape[1]  # two streams count twice
    assert streams <= objective.estimator.rows(longest) * len(batch.ids)


# ---- choosing


@pytest.mark.parametrize(("kind", "name"), [("masked", "levels"), ("block", "blocks"), ("autoregressive", "exact")])
def test_the_default_fits_the_family(kind: str, name: str) -> None:
    own, inner = family(kind)
    assert build_estimator(Preference(), "auto", {}, inner, own).name == name


def test_what_does_not_fit_is_an_error_that_names_what_does() -> None:
    own, inner = family("masked")
    with pytest.raises(UserError, match="'autoregressive'.*coupled, left_to_right, levels, one_step"):
        build_estimator(Preference(), "exact", {}, inner, own)
    with pytest.raises(UserError, match="time conditioning"):
        build_estimator(Preference(), "auto", {}, *reversed(family("masked", timed=True)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Use a masked, block or autoregressive model"):
        build_estimator(Preference(), "auto", {}, *reversed(family("uniform")))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Did you mean 'levels'"):
        build_estimator(Preference(), "level", {}, inner, own)
    with pytest.raises(UserError, match="Did you mean 'draws'"):
        build_estimator(Preference(), "levels", {"draw": 2}, inner, own)


def test_methods_are_built_from_tables() -> None:
    assert build_method({}) is None
    assert build_method({"name": "preference", "beta": 0.1}) == Preference(beta=0.1)
    with pytest.raises(UserError, match="Did you mean 'preference'"):
        build_method({"name": "preferense"})
    with pytest.raises(UserError, match="beta = 0"):
        build_method({"name": "preference", "beta": 0.0})
    with pytest.raises(UserError, match="'reward' is missing"):
        build_method({"name": "reward"})
