"""Laws of every objective, tested through the families that use it, and additional laws of masked diffusion."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redraft import likelihood
from redraft.errors import UserError
from redraft.noise.absorbing import Absorbing
from redraft.noise.schedules.geometric import Geometric
from redraft.objectives.autoregressive import Autoregressive
from redraft.objectives.masked import Masked
from redraft.registry import find, names
from redraft.types import Batch, CleanStream, Forward, Network, Prepared, Spec
from tests.tiny import (
    VOCABULARY,
    ArbitraryNetwork,
    Language,
    OracleNetwork,
    changed,
    described,
    families,
    family,
    knowing_family,
    log_probabilities,
    pairs,
)

A, B, C = VOCABULARY.letters
EOS, SEP, BOS = VOCABULARY.eos_id, VOCABULARY.sep_id, VOCABULARY.bos_id

each_family = pytest.mark.parametrize("name", families())
# Families whose targets are the tokens of the sequence. Edits have separate laws (``test_edits.py``).
each_of_tokens = pytest.mark.parametrize("name", [name for name in families() if name != "edit"])
each_kind = pytest.mark.parametrize("paired", [True, False], ids=["paired", "plain"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(paired: bool = True) -> Batch:
    """Rows of different lengths with padding; one of them has end-of-text as its only target."""
    rows = [([A, B, SEP], [C, A, A, EOS]), ([C, SEP], [EOS]), ([B, C, A, A, SEP], [B, B, EOS])]
    made = pairs(rows, length=10)
    return made if paired else replace(made, prompt=None)


def random_logits(prepared: Prepared, spec: Spec, scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(len(prepared.target), spec.output_size, generator=generator(seed)) * scale


def length_positions(prepared: Prepared) -> Tensor:
    """The targets that are lengths [N] bool."""
    found = vars(prepared).get("is_length")
    return torch.zeros(len(prepared.target), dtype=torch.bool) if found is None else found


# ---- every objective


def test_every_objective_belongs_to_a_family() -> None:
    families = [find("families", name)() for name in names("families")]
    used = {type(objective) for family in families for objective in (family.objective(), family.training())}
    assert {find("objectives", name) for name in names("objectives")} <= used


@each_family
@each_kind
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_loss_and_gradient_are_finite(name: str, paired: bool, scale: float) -> None:
    spec, objective = family(name, paired)
    for seed in range(8):
        prepared = objective.prepare(batch(paired), spec, generator(seed))
        logits = random_logits(prepared, spec, scale, seed).requires_grad_()
        terms = objective.loss(logits, prepared)
        terms.loss.backward()
        assert logits.grad is not None
        assert bool(terms.loss.isfinite()) and bool(terms.nats.isfinite().all()) and bool(logits.grad.isfinite().all())
        assert terms.nats.shape == (3,) and float(terms.nats.min()) >= 0
        assert terms.tokens == 8


@each_family
@each_kind
def test_a_batch_without_targets_has_loss_zero(name: str, paired: bool) -> None:
    spec, objective = family(name, paired)
    empty = batch(paired)
    empty.target = torch.zeros_like(empty.target)
    prepared = objective.prepare(empty, spec.with_network(length_head=False), generator())
    terms = objective.loss(random_logits(prepared, spec), prepared)
    assert float(terms.loss) == 0 and terms.nats.tolist() == [0, 0, 0]


@each_family
@each_kind
def test_prompt_and_padding_do_not_affect_the_loss(name: str, paired: bool) -> None:
    """With other prompts and other padding, targets, weights and loss are the same."""
    spec, objective = family(name, paired)
    one, other = batch(paired), batch(paired)
    other.ids = torch.where(other.target, other.ids, C)
    for seed in range(5):
        first, second = (objective.prepare(rows, spec, generator(seed)) for rows in (one, other))
        assert torch.equal(first.request.targets, second.request.targets)
        assert torch.equal(first.target, second.target)
        terms = [objective.loss(random_logits(p, spec), p) for p in (first, second)]
        assert torch.equal(terms[0].loss, terms[1].loss) and torch.equal(terms[0].nats, terms[1].nats)


@each_of_tokens
@each_kind
def test_a_request_keeps_given_tokens_and_has_only_targets_of_the_batch(name: str, paired: bool) -> None:
    """Answers are padded with end-of-text to the end of their last block, and these tokens are targets too."""
    spec, objective = family(name, paired)
    clean = batch(paired)
    end = clean.valid.sum(1)
    for seed in range(10):
        prepared = objective.prepare(clean, spec, generator(seed))
        request = prepared.request
        given, (tokens, positions) = clean.valid & ~clean.target, request.streams
        at = ((positions >= 0) & (positions < clean.ids.shape[1])).nonzero(as_tuple=True)
        there = at[0], positions[at]
        assert torch.equal(tokens[at][given[there]], clean.ids[there][given[there]])
        column = torch.arange(request.tokens.shape[1]).expand(request.tokens.shape)
        first = request.positions[:, :1]  # 0, unless the text before is only in the clean stream
        assert bool(((request.positions == first + column) | (request.positions == -1)).all())
        found = torch.zeros_like(clean.valid).index_put_(there, torch.tensor(True))
        assert torch.equal(found | clean.valid, found)
        parts, clean_stream = [request.targets], request.find(CleanStream)
        if clean_stream is not None and clean_stream.targets is not None:
            parts.append(clean_stream.targets)
        row = torch.cat([(targets >= 0).nonzero()[:, 0] for targets in parts])
        position = torch.cat([targets[targets >= 0] for targets in parts])
        assert torch.equal(row, prepared.row)
        if spec.network.length_head and clean.prompt is not None:
            length = position == clean.prompt[row] - 1
            assert sorted(row[length].tolist()) == [0, 1, 2]
            row, position, target = row[~length], position[~length], prepared.target[~length]
        else:
            target = prepared.target
        behind = position >= end[row]
        assert bool(clean.target[row[~behind], position[~behind]].all())
        assert torch.equal(target[~behind], clean.ids[row[~behind], position[~behind]])
        assert not bool(behind.any()) or (request.attention.kind == "block" and paired)
        assert set(target[behind].tolist()) <= {EOS}


@each_family
@each_kind
def test_forbidden_tokens_have_no_probability(name: str, paired: bool) -> None:
    """Their logits don't affect the loss and get no gradient; a length may have the id of a forbidden token."""
    spec, objective = family(name, paired)
    drawn = (objective.prepare(batch(paired), spec, generator(seed)) for seed in range(10))
    prepared = next(p for p in drawn if len(p.target) > 4)
    is_length = length_positions(prepared)
    banned = (
        sorted({*spec.tokens.forbidden, spec.tokens.mask_id})
        if spec.network.shift == 0
        else list(spec.tokens.forbidden)
    )
    logits = random_logits(prepared, spec).requires_grad_()
    terms = objective.loss(logits, prepared)
    terms.loss.backward()
    assert logits.grad is not None
    assert float(logits.grad[~is_length][:, banned].abs().max()) == 0
    raised = logits.detach().clone()
    raised[:, banned] += torch.where(is_length, 0.0, 50.0)[:, None]
    assert torch.equal(objective.loss(raised, prepared).nats, terms.nats)


@each_of_tokens
@each_kind
def test_an_oracle_reaches_the_exact_likelihood(name: str, paired: bool) -> None:
    """With the true conditionals, exact objectives are exact and bounds are tight: nats = -log p(x)."""
    spec, objective = knowing_family(name, paired)
    language = Language.ended([A, B], 2) if paired else Language.of_one_length([A, B, EOS], 3)
    prompt = [C, SEP] if paired else [BOS]
    oracle = OracleNetwork(language, spec, len(prompt))
    samples = 2000 if name in ("autoregressive", "masked", "sedd") else 12_000
    for seed, text in enumerate(language.texts[:12]):
        found = likelihood.score(oracle, prompt, text, objective, spec, samples=samples, seed=seed)
        assert found.stderr < 0.2
        assert found.nats == pytest.approx(language.nll(text), abs=4.5 * found.stderr + 1e-4)
        assert found.is_bound or found.stderr == 0


@each_of_tokens
def test_length_and_tokens_form_a_distribution(name: str) -> None:
    """exp(-nats) of an oracle sums to one over all sequences of all lengths, so a conditional bound is complete."""
    spec, objective = knowing_family(name)
    language = Language.ended([A, B], 2, seed=3)
    oracle = OracleNetwork(language, spec, 2)
    found = [likelihood.score(oracle, [C, SEP], text, objective, spec, samples=2000) for text in language.texts]
    error = math.sqrt(sum((math.exp(-f.nats) * f.stderr) ** 2 for f in found))
    assert sum(math.exp(-f.nats) for f in found) == pytest.approx(1, abs=4.5 * error + 1e-4)


# ---- label smoothing, weights


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5])
def test_label_smoothing_equals_that_of_torch_over_the_allowed_tokens(amount: float) -> None:
    spec, _ = family("autoregressive")
    objective = Autoregressive(label_smoothing=amount)
    prepared = objective.prepare(batch(), spec, generator())
    logits = random_logits(prepared, spec).requires_grad_()
    allowed = [i for i in range(spec.tokens.vocab_size) if i not in spec.tokens.forbidden]
    answer = torch.tensor([allowed.index(i) for i in prepared.target.tolist()])
    expected = F.cross_entropy(logits[:, allowed], answer, label_smoothing=amount)
    (slope,) = torch.autograd.grad(expected, logits)
    terms = objective.loss(logits, prepared)
    terms.loss.backward()
    assert logits.grad is not None
    torch.testing.assert_close(terms.loss, expected)
    torch.testing.assert_close(logits.grad, slope)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.3}, {"weight": "uniform"}, {"length_weight": 5.0}], ids=str)
def test_training_options_do_not_change_the_reported_nats(options: dict[str, Any]) -> None:
    spec, _ = family("masked")
    plain, other = (objective.prepare(batch(), spec, generator(2)) for objective in (Masked(), Masked(**options)))
    logits = random_logits(plain, spec)
    expected, found = Masked().loss(logits.clone(), plain), Masked(**options).loss(logits.clone(), other)
    assert torch.equal(expected.nats, found.nats)
    assert float(expected.loss) != pytest.approx(float(found.loss), abs=1e-4)


def test_the_loss_of_weight_bound_is_the_bound_per_token() -> None:
    spec, objective = family("masked", paired=False, weight="bound")
    prepared = objective.prepare(batch(False), spec, generator(5))
    terms = objective.loss(random_logits(prepared, spec), prepared)
    torch.testing.assert_close(terms.loss, terms.nats.sum() / terms.tokens)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_weight_flat_is_the_mean_over_masked_tokens_and_over_lengths(smoothing: float) -> None:
    spec, objective = family("masked", weight="uniform", length_weight=0.25, label_smoothing=smoothing)
    prepared = objective.prepare(batch(), spec, generator(1))
    is_length = length_positions(prepared)
    logits = random_logits(prepared, spec)
    allowed = [i for i in range(spec.tokens.vocab_size) if i not in spec.tokens.forbidden]
    answer = torch.tensor([allowed.index(i) for i in prepared.target[~is_length].tolist()])
    masked = F.cross_entropy(logits[~is_length][:, allowed], answer, label_smoothing=smoothing)
    assert prepared.target[is_length].tolist() == [4, 1, 3]
    lengths = F.cross_entropy(logits[is_length], prepared.target[is_length])
    torch.testing.assert_close(objective.loss(logits, prepared).loss, masked + 0.25 * lengths)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"weight": "flatt"}, {"label_smoothing": 1.0}], ids=str)
def test_invalid_options_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Masked(**wrong)


# ---- masked diffusion against enumeration, with a network whose conditionals have no joint distribution

TEXT = [C, A, B]


def masked_rows(text: list[int]) -> tuple[Tensor, Tensor]:
    """All maskings of a sequence: rows [2^n, n] and which positions are masked [2^n, n] bool."""
    hidden = torch.tensor(list(product([False, True], repeat=len(text))))
    return torch.where(hidden, VOCABULARY.mask_id, torch.tensor(text)), hidden


def nll_table(network: Network, spec: Spec, text: list[int]) -> dict[tuple[bool, ...], Tensor]:
    """-log p(token | unmasked tokens) at every position [n], for each masking of the sequence."""
    rows, hidden = masked_rows(text)
    logp = log_probabilities(network, spec, rows)
    nll = -logp.gather(2, torch.tensor(text).expand(len(rows), -1)[..., None]).squeeze(2)
    return {tuple(h.tolist()): n for h, n in zip(hidden, nll, strict=True)}


def order_nlls(network: Network, spec: Spec, text: list[int]) -> Tensor:
    """-log p(x) if positions are revealed one at a time, for every order."""
    table, found = nll_table(network, spec, text), []
    for order in permutations(range(len(text))):
        hidden, total = [True] * len(text), 0.0
        for position in order:
            total += float(table[tuple(hidden)][position])
            hidden[position] = False
        found.append(total)
    return torch.tensor(found, dtype=torch.float64)


def divergence_sum(network: Network, spec: Spec, text: list[int], steps: int) -> float:
    """D3PM's bound by its definition: sum over steps of E KL(q(x_s | x_t, x_0) || p(x_s | x_t)), where s = 0 is the
    reconstruction term. All noise levels and maskings are enumerated."""
    assert spec.family.schedule is not None
    rows, hidden = masked_rows(text)
    process, total = Absorbing(), 0.0
    clean = F.one_hot(torch.tensor(text), spec.tokens.vocab_size).double().expand(len(rows), -1, -1)
    model = log_probabilities(network, spec, rows).exp()
    for step in range(1, steps + 1):
        t = torch.tensor([(step - 1) / steps, step / steps], dtype=torch.float64)
        a_s, a_t = spec.family.schedule.alpha(t)
        chance = torch.where(hidden, 1 - a_t, a_t).prod(1)
        q = process.posterior(rows, clean, a_s, a_t, spec)
        p = process.posterior(rows, model, a_s, a_t, spec)
        kl = torch.where(q > 0, q * (q / p).log(), 0.0).sum((1, 2))
        total += float((chance * kl).sum())
    return total


def arbitrary(**changes: Any) -> tuple[Spec, ArbitraryNetwork]:
    spec = changed(family("masked", paired=False)[0], **changes)
    return spec, ArbitraryNetwork(spec, len(TEXT))


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("name", names("noise.schedules"))
def test_the_continuous_bound_is_the_mean_over_orders(name: str, timed: bool) -> None:
    """For every schedule (Hoogeboom et al. 2022, arXiv:2110.02037; Ou et al. 2024, arXiv:2406.03736). With ``timed``,
    positions are masked independently."""
    spec, network = arbitrary(schedule=find("noise.schedules", name)(), timed=timed)
    expected = float(order_nlls(network, spec, TEXT).mean())
    found = likelihood.score(network, [], TEXT, Masked(), spec, samples=20_000, seed=1)
    assert found.stderr < 0.02 * expected
    assert found.nats == pytest.approx(expected, abs=4.5 * found.stderr)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial"])
def test_the_discrete_bound_is_the_sum_of_divergences(name: str, steps: int) -> None:
    spec, network = arbitrary(schedule=find("noise.schedules", name)())
    expected = divergence_sum(network, spec, TEXT, steps)
    found = likelihood.score(network, [], TEXT, Masked(steps=steps), spec, samples=20_000, seed=2)
    assert found.stderr < 0.02 * expected
    assert found.nats == pytest.approx(expected, abs=4.5 * found.stderr + 1e-4)


def test_the_bound_is_above_the_exact_nll() -> None:
    """The exact likelihood of the model is that of a random order, p(x) = mean over orders of p(x | order)."""
    for seed in range(4):
        spec, network = arbitrary()
        network.seed = seed
        nlls = order_nlls(network, spec, TEXT)
        exact = -float(torch.logsumexp(-nlls, 0) - math.log(len(nlls)))
        found = likelihood.score(network, [], TEXT, Masked(), spec, samples=20_000, seed=seed)
        assert found.is_bound
        assert found.nats > exact + 2 * found.stderr


def test_more_steps_tighten_the_bound_towards_continuous_time() -> None:
    """With true conditionals, on average over sequences; one step predicts all tokens independently."""
    spec, _ = arbitrary()
    language = Language.of_one_length([A, B, C], 3)
    oracle = OracleNetwork(language, spec, 0)

    def mean(values: list[float]) -> float:
        return float((language.p * torch.tensor(values, dtype=torch.float64)).sum())

    entropy = mean([language.nll(text) for text in language.texts])
    bounds = [mean([divergence_sum(oracle, spec, x, steps) for x in language.texts]) for steps in (1, 2, 4, 8, 64)]
    assert all(a > b > entropy for a, b in zip(bounds, bounds[1:], strict=False))
    assert bounds[-1] - entropy < 0.05 * (bounds[0] - entropy)
    samples = [
        mean([likelihood.score(oracle, [], x, Masked(steps=steps), spec, samples=2000).nats for x in language.texts])
        for steps in (1, 4)
    ]
    assert samples == pytest.approx([bounds[0], bounds[2]], rel=0.02)


def test_masks_are_uniform_over_subsets_of_the_drawn_size() -> None:
    spec, _ = arbitrary()
    rows = pairs([([], TEXT)] * 6000)
    hidden = Masked().prepare(rows, spec, generator(8)).request.tokens == VOCABULARY.mask_id
    kinds, counts = hidden.unique(dim=0, return_counts=True)
    assert len(kinds) == 7, "every subset except the empty one"
    expected = torch.tensor([2000 / math.comb(3, int(kind.sum())) for kind in kinds])
    assert float(((counts - expected) ** 2 / expected).sum()) < 22.5  # 99.9 % point at 6 degrees of freedom


def test_the_bound_of_a_schedule_that_ends_above_zero_covers_all_noise_levels() -> None:
    """alpha(1) = 0.37: without rescaling, a third of the noise levels would be missing from the bound."""
    spec, network = arbitrary(schedule=Geometric(1e-3, 1.0))
    expected = float(order_nlls(network, spec, TEXT).mean())
    found = likelihood.score(network, [], TEXT, Masked(), spec, samples=20_000)
    assert found.nats == pytest.approx(expected, abs=4.5 * found.stderr)


def test_requests_have_a_time_if_the_network_is_conditioned_on_it() -> None:
    timed, _ = arbitrary(timed=True)
    rows = batch(False)
    t = Masked().prepare(rows, timed, generator()).request.time
    assert t is not None and t.shape == (3,) and t.dtype == torch.float32
    assert Masked().prepare(rows, timed.with_network(timed=False), generator()).request.time is None


def test_the_closing_end_of_text_is_not_masked_if_the_length_is_given() -> None:
    spec, objective = family("masked")
    clean = batch()
    for seed in range(20):
        x = objective.prepare(clean, spec, generator(seed)).request.tokens
        assert bool((x[clean.ids == EOS] == EOS).all())
    seen = [
        objective.prepare(clean, spec.with_network(length_head=False), generator(seed)).request.tokens
        for seed in range(20)
    ]
    assert any(bool((x[clean.ids == EOS] != EOS).any()) for x in seen)


# ---- likelihood


def test_the_reported_error_is_the_deviation_between_seeds() -> None:
    spec, network = arbitrary()
    rows = [pairs([([], TEXT), ([], [A, A, B]), ([], [B, C, A])]), pairs([([], [C, C, A])])]
    found = [likelihood.bound(network, rows, Masked(), spec, samples=8, seed=seed) for seed in range(120)]
    spread = float(torch.tensor([f.nats for f in found]).std())
    stated = math.sqrt(sum(f.stderr**2 for f in found) / len(found))
    assert 0.8 < stated / spread < 1.25


def test_bounds_of_rows_add_up() -> None:
    spec, network = arbitrary()
    rows = [pairs([([], TEXT), ([], [A, A, B])]), pairs([([], [C, C, A])])]
    found = likelihood.bound(network, rows, Masked(), spec, samples=3, seed=5)
    assert found == likelihood.bound(network, rows, Masked(), spec, samples=3, seed=5)
    assert len(found.rows) == 3 and sum(found.rows) == pytest.approx(found.nats)
    assert (found.tokens, found.bytes, found.samples) == (9, 9, 3)
    assert found.nats_per_token == pytest.approx(found.nats / 9)
    assert found.bits_per_byte == pytest.approx(found.nats / 9 / math.log(2))
    assert found.bits_per_byte_stderr == pytest.approx(found.stderr / 9 / math.log(2))


class Counting(nn.Module):
    """A network that records the number of forward passes and its mode."""

    def __init__(self, inner: Network) -> None:
        super().__init__()
        self.inner, self.passes, self.trained = inner, 0, False

    def forward(self, request: Forward, store: object = None) -> Tensor:
        self.passes += 1
        self.trained |= self.training
        return self.inner(request)


def test_an_exact_objective_takes_one_pass_and_has_error_zero() -> None:
    spec, objective = family("autoregressive")
    network = Counting(OracleNetwork(Language.ended([A, B], 2), spec, 2))
    found = likelihood.bound(network, [pairs([([C, SEP], [A, EOS]), ([C, SEP], [B, A, EOS])])], objective, spec, 16)
    assert network.passes == 1 and found.samples == 1
    assert not found.is_bound and found.stderr == 0
    assert network.training and not network.trained, "scored in evaluation mode, then restored"


def test_invalid_scoring_requests_are_rejected() -> None:
    spec, network = arbitrary()
    with pytest.raises(UserError):
        likelihood.bound(network, [pairs([([], TEXT)])], Masked(), spec, samples=1)
    with pytest.raises(UserError):
        likelihood.score(network, [A], [], Masked(), spec)


# ---- uniform noise and scores: pointwise equalities


def questions(name: str, **fields: Any) -> tuple[Prepared, Spec, Any]:
    """Sixteen noisy copies of the batch, prepared by the objective of a family."""
    spec, objective = family(name, **fields)
    rows = pairs([([A, B, SEP], [C, A, A, B, C, EOS]), ([C, SEP], [B, A, EOS])] * 16)
    return objective.prepare(rows, spec, generator(3)), spec, objective


def normalised(prepared: Prepared, spec: Spec) -> Tensor:
    """Random log-probabilities over the allowed tokens; the others are random and must not affect the loss."""
    logits = random_logits(prepared, spec, scale=2.0)
    banned = torch.tensor(sorted({*spec.tokens.forbidden, spec.tokens.mask_id}))
    allowed = logits.index_fill(1, banned, -torch.inf).log_softmax(1)
    return torch.where(allowed.isfinite(), allowed, logits)


def test_normalised_absorbing_scores_have_the_masked_loss() -> None:
    masked, spec, objective = questions("masked", timed=True)
    scored, score_spec, score = questions("sedd", timed=True, schedule="linear")
    assert torch.equal(masked.request.tokens, scored.request.tokens)
    logits = normalised(masked, spec)
    n = spec.tokens.vocab_size - len(spec.tokens.forbidden)
    token = ~scored.is_length
    scores = logits + token[:, None] * math.log(n)
    torch.testing.assert_close(score.loss(scores, scored).nats, objective.loss(logits.clone(), masked).nats)
    off = (scores + 0.5 * token[:, None]).clone()
    costs = score.loss(off, scored).nats - score.loss(scores, scored).nats
    some = torch.zeros(scored.rows).index_add(0, scored.row, token.float()) > 0
    assert bool((costs[some] > 0).all()), "scores with a wrong sum have a higher loss"


def test_uniform_scores_of_a_prediction_have_the_loss_and_gradient_of_uniform_diffusion() -> None:
    """s_y = pbar_y / pbar_z, with f = log(alpha p + (1 - alpha) / n)."""
    plain, spec, objective = questions("uniform", timed=True)
    scored, _, score = questions("sedd-uniform", timed=True)
    assert torch.equal(plain.request.tokens, scored.request.tokens)
    logits = normalised(plain, spec).double().requires_grad_()
    alpha, token = scored.alpha[:, None], ~scored.is_length[:, None]
    banned = torch.tensor(sorted({*spec.tokens.forbidden, spec.tokens.mask_id}))
    p = logits.index_fill(1, banned, -torch.inf).softmax(1)
    f = torch.where(token, (alpha * p + (1 - alpha) / (spec.tokens.vocab_size - len(banned))).log(), logits)
    terms = score.loss(f, scored), objective.loss(logits.float(), plain)
    torch.testing.assert_close(terms[0].nats, terms[1].nats, rtol=1e-4, atol=1e-4)
    slopes = [torch.autograd.grad(term.loss, logits)[0] for term in terms]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_the_loss_of_a_uniform_step_is_the_divergence_of_its_posteriors(steps: int) -> None:
    """By the definition, with the posterior of ``noise``: T KL(q(x_s | x_t, x_0) || q(x_s | x_t, p))."""
    prepared, spec, _ = questions("uniform")
    objective, process = find("objectives", "uniform")(steps=steps), find("noise", "uniform")()
    clean = pairs([([A, B, SEP], [C, A, A, B, C, EOS]), ([C, SEP], [B, A, EOS])] * 16)
    prepared = objective.prepare(clean, spec.with_network(length_head=False), generator(3))
    logits = normalised(prepared, spec)
    alpha_t, alpha_s, own = prepared.alpha, prepared.before, prepared.own
    truth = F.one_hot(prepared.target, spec.tokens.vocab_size).double()
    p = logits.double().index_fill(1, torch.tensor(spec.tokens.forbidden), -torch.inf).softmax(1)
    q = process.posterior(own, truth, alpha_s, alpha_t, spec)
    model = process.posterior(own, p, alpha_s, alpha_t, spec)
    divergence = steps * torch.where(q > 0, q * (q / model).log(), 0.0).sum(1)
    expected = torch.zeros(prepared.rows, dtype=torch.float64).index_add(0, prepared.row, divergence)
    torch.testing.assert_close(objective.loss(logits, prepared).nats.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["masked", "uniform"])
def test_many_steps_have_the_loss_of_continuous_time(name: str) -> None:
    """Pointwise, with the same times, noise and network output."""
    spec, _ = family(name)
    objective = find("objectives", name)
    rows = pairs([([A, B, SEP], [C, A, A, B, C, EOS])] * 64)
    can = rows.target & (rows.ids != EOS)
    t = torch.linspace(0.1, 0.9, 64, dtype=torch.float64)
    assert spec.family.schedule is not None
    alpha, steps = spec.family.schedule.alpha(t), 100_000
    before = spec.family.schedule.alpha(t - 1 / steps)
    if name == "masked":
        noisy = Absorbing().corrupt(rows.ids, alpha, can, spec, generator(1))
        hidden = can & (noisy == spec.tokens.mask_id)
        found = [objective(steps=k) for k in (0, steps)]
        asked = [o.request(rows, spec, hidden, o.rate(spec, t), t) for o in found]
    else:
        noisy = find("noise", "uniform")().corrupt(rows.ids, alpha, can, spec, generator(1))
        found = [objective(), objective(steps=steps)]
        rate = torch.full_like(t, steps)
        asked = [
            found[0].request(rows, spec, can, noisy, t, alpha, -spec.family.schedule.dalpha(t) / alpha),
            found[1].request(rows, spec, can, noisy, t, alpha, rate, before),
        ]
    logits = random_logits(asked[0], spec)
    nats = [o.loss(logits.clone(), a).nats for o, a in zip(found, asked, strict=True)]
    torch.testing.assert_close(nats[1], nats[0], rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", ["masked", "uniform", "sedd", "sedd-uniform"])
def test_a_restricted_interval_of_times_applies_to_training_only(name: str) -> None:
    """Times are between low and high, and the nats of a restricted interval are not a bound."""
    table = described(name)
    built = find("families", table.pop("name"))(**table, t_min=0.4, t_max=0.6, timed=True)
    spec = built.spec(VOCABULARY)
    rows = pairs([([A, SEP], [B, C, EOS])] * 50)
    whole, part = (kind.prepare(rows, spec, generator()) for kind in (built.objective(), built.training()))
    assert float(whole.request.time.min()) < 0.1 and float(whole.request.time.max()) > 0.9
    assert float(part.request.time.min()) > 0.39 and float(part.request.time.max()) <= 0.6
    logits = random_logits(part, spec)
    assert built.objective().loss(random_logits(whole, spec), whole).is_bound
    assert not built.training().loss(logits, part).is_bound


def test_discrete_steps_of_training_leave_the_bound_continuous() -> None:
    built = find("families", "masked")(train_steps=4, weight="bound", timed=True)
    spec, rows = built.spec(VOCABULARY), pairs([([A, SEP], [B, C, EOS])] * 50)
    trained, scored = (o.prepare(rows, spec, generator()).request.time for o in (built.training(), built.objective()))
    assert set((4 * trained).tolist()) == {1.0, 2.0, 3.0, 4.0}
    assert len(set(scored.tolist())) == 50


@pytest.mark.parametrize("wrong", [{"t_min": 0.5, "t_max": 0.4}, {"t_max": 1.2}, {"t_min": 0.2, "steps": 4}], ids=str)
def test_invalid_intervals_of_times_are_rejected(wrong: dict[str, Any]) -> None:
    for name in ("masked", "uniform"):
        with pytest.raises(UserError):
            find("objectives", name)(**wrong)


def test_score_losses_and_gradients_of_extreme_predictions_are_finite_and_not_zero() -> None:
    """The loss still increases with the sum of the scores if the sum is extremely large."""
    scored, spec, score = questions("sedd")
    logits = torch.full((len(scored.target), spec.tokens.vocab_size), 200.0, requires_grad=True)
    terms = score.loss(logits, scored)
    terms.loss.backward()
    assert bool(terms.loss.isfinite()) and logits.grad is not None
    assert float(logits.grad[~scored.is_length].sum()) > 0


@pytest.mark.parametrize("free", [False, True])
def test_sums_over_the_vocabulary_and_their_gradient_equal_autograd(free: bool) -> None:
    from redraft.objectives.shared.mixture import mixture

    logits = torch.randn(700, 900, generator=generator(), dtype=torch.float32)  # several chunks
    forbidden, ids = torch.tensor([0, 3]), torch.randint(4, 900, (700, 2), generator=generator(1))
    scale, floor = torch.rand(2, 700, generator=generator(2)) + 0.1
    loose = torch.arange(700) % 5 == 0 if free else None
    one, other = (logits.clone().requires_grad_() for _ in range(2))
    total, log_p = mixture(one, forbidden, scale, floor, ids, loose)
    barred = torch.zeros(700, 900, dtype=torch.bool)
    barred[:, forbidden] = True
    if loose is not None:
        barred[loose] = False
    expected = other.masked_fill(barred, -torch.inf).log_softmax(1)
    sums = (scale[:, None] * expected.exp() + floor[:, None]).log().masked_fill(barred, 0.0).sum(1)
    torch.testing.assert_close(log_p, expected.gather(1, ids))
    torch.testing.assert_close(total, sums, rtol=1e-4, atol=1e-3)
    weights = torch.randn(700, generator=generator(4))
    (total * weights).sum().add((log_p * weights[:, None]).sum()).backward()
    (sums * weights).sum().add((expected.gather(1, ids) * weights[:, None]).sum()).backward()
    assert one.grad is not None and other.grad is not None
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_complementary_rows_mask_every_token_once() -> None:
    """The loss is the mean cross-entropy over all tokens that noise may change, each of which is a target once."""
    spec, _ = family("masked", paired=True)
    spec, clean = spec.with_network(length_head=False), batch()
    can = clean.target.clone()
    for seed in range(5):
        prepared = Masked(weight="uniform", complementary=True).prepare(clean, spec, generator(seed))
        rows, at = (prepared.request.targets >= 0).nonzero(as_tuple=True)
        seen = torch.zeros_like(can, dtype=torch.int64).index_put_((rows % 3, at), torch.tensor(1), accumulate=True)
        assert seen.tolist() == can.long().tolist()
        assert prepared.request.tokens[rows, at].unique().tolist() == [spec.tokens.mask_id]
        assert int((prepared.request.tokens == spec.tokens.mask_id).sum()) == len(
            rows
        )  # the other tokens of both copies are visible
        logits = random_logits(prepared, spec)
        log_p = (
            logits.clone()
            .index_fill(1, torch.tensor([*spec.tokens.forbidden, spec.tokens.mask_id]), -torch.inf)
            .log_softmax(1)
        )
        expected = F.nll_loss(log_p, prepared.target)
        terms = Masked(weight="uniform", complementary=True).loss(logits, prepared)
        assert float(terms.loss) == pytest.approx(float(expected), rel=1e-5)
        assert terms.tokens == 8 and not terms.is_bound


def test_complementary_rows_need_flat_weights_and_no_time() -> None:
    with pytest.raises(UserError, match="no bound"):
        Masked(weight="bound", complementary=True)
    spec, _ = family("masked")
    with pytest.raises(UserError, match="time conditioning"):
        Masked(weight="uniform", complementary=True).prepare(batch(), spec.with_network(timed=True), generator())
