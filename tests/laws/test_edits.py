"""Laws of the edit process: alignment, marginals, loss, bound, and generation."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, permutations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft import likelihood
from redraft.caches.exact import Exact
from redraft.canvas import Growth, completion, extent, make_canvas
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.noise.edit import BLANK, END, Edit, align
from redraft.objectives.edit import Edit as Objective
from redraft.objectives.edit import total_rates
from redraft.presets import preset
from redraft.samplers.edit_flow import EditFlow
from redraft.types import GIVEN, SEALED, Forward, Spec
from tests import tiny

A, B, C = tiny.VOCABULARY.letters
EOS, SEP, V = tiny.VOCABULARY.eos_id, tiny.VOCABULARY.sep_id, tiny.VOCABULARY.vocab_size
DELETE = 2 * V


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- alignment and process


@cache
def distance(x: tuple[int, ...], y: tuple[int, ...]) -> int:
    """The Levenshtein distance, by its definition."""
    if not x or not y:
        return len(x) + len(y)
    if x[-1] == y[-1]:
        return distance(x[:-1], y[:-1])
    return 1 + min(distance(x[:-1], y[:-1]), distance(x[:-1], y), distance(x, y[:-1]))


def ragged(texts: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, texts), default=0)
    return torch.tensor([[*t, *[0] * (width - len(t))] for t in texts]).view(len(texts), width), torch.tensor(
        [len(t) for t in texts]
    )


def test_an_alignment_has_minimal_cost() -> None:
    """All pairs of sequences of up to four letters of an alphabet of two, and longer ones of an alphabet of three, in
    one batch."""
    words = [word for n in range(5) for word in product([A, B], repeat=n)]
    longer = [tuple(torch.randint(5, 8, (n,), generator=generator(n)).tolist()) for n in range(5, 10)]
    pairs = [*product(words, words), *product(longer, longer), *product(longer, words[:6])]
    z0, z1 = align(*ragged([x for x, _ in pairs]), *ragged([y for _, y in pairs]))
    for (x, y), old, new in zip(pairs, z0.tolist(), z1.tolist(), strict=True):
        assert tuple(token for token in old if token >= 0) == x
        assert tuple(token for token in new if token >= 0) == y
        cells = [(a, b) for a, b in zip(old, new, strict=True) if a != END]
        assert all(b != END for _, b in cells) and (BLANK, BLANK) not in cells
        assert old[len(cells) :] == [END] * (len(old) - len(cells))
        assert sum(a != b for a, b in cells) == distance(x, y)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_an_aligned_position_is_final_with_the_probability_of_the_schedule(alpha: float) -> None:
    """Aligned positions are independent, so the number of tokens after an empty start is binomial."""
    rows = 6000
    z0 = torch.tensor([[BLANK, A, B, BLANK, END]]).expand(rows, -1)
    z1 = torch.tensor([[A, B, BLANK, C, END]]).expand(rows, -1)
    found = Edit().mix(z0, z1, torch.full((rows,), alpha, dtype=torch.float64), generator())
    done = (found == z1)[:, :4]
    error = math.sqrt(alpha * (1 - alpha) / rows)
    assert bool(((done.double().mean(0) - alpha).abs() <= 4.5 * error + 1e-12).all())
    assert bool(((found == z0) | (found == z1)).all())
    both = (done[:, 0] & done[:, 2]).double().mean()
    assert float(both) == pytest.approx(alpha**2, abs=4.5 * math.sqrt(alpha**2 * (1 - alpha**2) / rows) + 1e-12)


# ---- requests and loss


def batch(paired: bool = True) -> Any:
    rows = [([A, B, SEP], [C, A, A, EOS]), ([C, SEP], [EOS]), ([B, C, A, A, SEP], [B, B, EOS])]
    made = tiny.pairs(rows, length=10)
    return made if paired else replace(made, prompt=None)


@pytest.mark.parametrize("noise", [0.0, 0.8])
@pytest.mark.parametrize("paired", [True, False])
def test_applying_all_requested_edits_gives_the_final_sequence(noise: float, paired: bool) -> None:
    spec, _ = tiny.family("edit", paired)
    clean = batch(paired)
    for seed in range(60):
        p = Objective(noise=noise).prepare(clean, spec, generator(seed))
        number = torch.full_like(p.request.tokens, -1)
        number[p.request.targets >= 0] = torch.arange(len(p.target))
        assert torch.equal(p.target, p.request.tokens[p.request.targets >= 0])
        for row in range(3):
            wanted: list[int] = []
            for place, token in enumerate(p.request.tokens[row].tolist()):
                n = int(number[row, place])
                if int(p.request.positions[row, place]) < 0:
                    continue
                ops = p.op[p.at == n].tolist() if n >= 0 else []
                assert noise > 0 or all(op < V for op in ops)
                wanted += [op for op in ops if op < V]
                other = [op for op in ops if op >= V]
                assert len(other) <= 1
                wanted += [] if DELETE in other else [other[0] - V] if other else [token]
            text = clean.ids[row][clean.valid[row]].tolist()
            assert wanted == (text if text[-1] == EOS else [*text, EOS])
        closing = p.closing
        assert bool((p.target[closing] == EOS).all()) and int(closing.sum()) == 3
        assert bool((p.op[closing[p.at]] < V).all()), "the closing position is neither deleted nor substituted"


def test_sums_of_rates_and_their_gradient_equal_autograd() -> None:
    draw = generator()
    z = torch.randn(700, 2 * 400 + 1, generator=draw)  # several chunks
    z[3, 4] = 14.0  # above the value where exp is replaced by its tangent
    own, closing = torch.randint(5, 400, (700,), generator=draw), torch.rand(700, generator=draw) < 0.2
    at, op = torch.randint(0, 700, (900,), generator=draw), torch.randint(5, 400, (900,), generator=draw)
    forbidden = torch.tensor([0, 2, 3])
    one, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    total, log_rate = total_rates(one, forbidden, own, closing, at, op)
    barred = torch.zeros(z.shape, dtype=torch.bool)
    barred[:, torch.cat([forbidden, 400 + forbidden])] = True
    barred[torch.arange(700), 400 + own] = True
    barred[closing, 400:] = True
    steep = torch.where(other > 12, math.exp(12) * (1 + other - 12), other.exp())
    expected = steep.masked_fill(barred, 0).sum(1)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(700, generator=draw), torch.randn(900, generator=draw)
    ((total * weights[0]).sum() + (log_rate * weights[1]).sum()).backward()
    ((expected * weights[0]).sum() + (other[at, op] * weights[1]).sum()).backward()
    assert one.grad is not None and other.grad is not None
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


@dataclass
class Oracle:
    """The true log-rates for a language: expected numbers of remaining edits, given the intermediate sequence and time.

    Sequences start empty and end with end-of-text.
    """

    language: tiny.Language
    spec: Spec
    start: int

    def __call__(self, request: Forward, store: object = None) -> Tensor:
        assert request.time is not None and self.spec.family.schedule is not None
        found = []
        for row in range(len(request.tokens)):
            cells = request.tokens[row][request.positions[row] >= self.start].tolist()[:-1]
            alpha = float(self.spec.family.schedule.alpha(request.time[row].double()))
            targets = request.targets[row][request.targets[row] >= 0].tolist()
            expected = self._expected(tuple(cells), alpha)
            found += [expected.get(target - self.start, torch.zeros(2 * V + 1)) for target in targets]
        return torch.stack(found).clamp(min=1e-12).log().float()

    def _expected(self, cells: tuple[int, ...], alpha: float) -> dict[int, Tensor]:
        """For each position, the expected number of edits of each kind [2V + 1]."""
        total, found = 0.0, {place: torch.zeros(2 * V + 1, dtype=torch.float64) for place in range(len(cells) + 1)}
        for text, p in zip(self.language.texts, self.language.p.tolist(), strict=True):
            body = text[:-1]
            for kept in combinations(range(len(body)), len(cells)):
                if tuple(body[i] for i in kept) != cells:
                    continue
                chance = p * alpha ** len(cells) * (1 - alpha) ** (len(body) - len(cells))
                total += chance
                for i in set(range(len(body))) - set(kept):
                    found[sum(k < i for k in kept)][body[i]] += chance
        return {place: value / total for place, value in found.items()} if total else found


def distinct(seed: int = 0) -> tiny.Language:
    """All sequences without repeated letters."""
    texts = [[*word, EOS] for n in range(4) for word in permutations([A, B, C], n)]
    return tiny.Language(texts, torch.randn(len(texts), generator=generator(seed), dtype=torch.float64).softmax(0))


def edit_family() -> tuple[Spec, Objective]:
    """With time conditioning, as true rates depend on time, and a schedule whose estimate has no heavy tail."""
    spec, _ = tiny.family("edit", timed=True, schedule="cosine")
    return spec, Objective(clamp=1e4)


def test_an_oracle_reaches_the_likelihood_of_sequences_without_repeats() -> None:
    language, (spec, objective) = distinct(), edit_family()
    oracle = Oracle(language, spec, 2)
    found = [
        likelihood.score(oracle, [C, SEP], text, objective, spec, samples=1500, seed=seed)
        for seed, text in enumerate(language.texts)
    ]
    for text, one in zip(language.texts, found, strict=True):
        assert one.is_bound and one.nats == pytest.approx(language.nll(text), abs=4.5 * one.stderr + 0.02)
    error = math.sqrt(sum((math.exp(-f.nats) * f.stderr) ** 2 for f in found))
    assert sum(math.exp(-f.nats) for f in found) == pytest.approx(1, abs=4.5 * error + 0.01)


def test_sequences_with_repeats_have_an_upper_bound() -> None:
    spec, objective = edit_family()
    language = tiny.Language.ended([A, B], 3)
    oracle = Oracle(language, spec, 2)
    for seed, text in enumerate(language.texts):
        found = likelihood.score(oracle, [C, SEP], text, objective, spec, samples=1500, seed=seed)
        assert found.nats > language.nll(text) - 4.5 * found.stderr - 0.02


def test_the_loss_is_minimal_at_the_expected_numbers_of_edits() -> None:
    """On average over sequences of a language, any factor on the oracle's rates increases the loss."""
    language, (spec, objective) = distinct(), edit_family()
    texts = [([C, SEP], text) for text, p in zip(language.texts, language.p, strict=True) for _ in range(int(p * 400))]
    rows, oracle = tiny.pairs(texts), Oracle(language, spec, 2)
    prepared = [objective.prepare(rows, spec, generator(seed)) for seed in range(3)]
    costs = {}
    for factor in (0.5, 0.8, 1.0, 1.25, 2.0):
        logits = [oracle(p.request) + math.log(factor) for p in prepared]
        costs[factor] = sum(float(objective.loss(z, p).loss) for z, p in zip(logits, prepared, strict=True))
    assert min(costs, key=lambda factor: costs[factor]) == 1.0


def test_initial_noise_applies_to_training_only() -> None:
    spec, _ = tiny.family("edit")
    training = Objective(noise=0.5)
    p = training.prepare(batch(), spec, generator())
    assert not training.loss(torch.zeros(len(p.target), spec.output_size), p).is_bound
    assert training.scoring() == Objective()


@pytest.mark.parametrize("wrong", [{"noise": 1.5}, {"clamp": 0.0}], ids=str)
def test_invalid_options_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Objective(**wrong)


# ---- generation


ROWS: list[list[int | None]] = [
    [70, 71, 4, EOS],
    [72, 4, 80, 81, None, None, EOS],
    [73, 74, 75, 4, *[None] * 5, 90, EOS],
]
PROMPTS, LIMITS, GAPS = [3, 2, 4], [12, 13, 14], [[3], [], []]
ORDERS = [EditFlow(steps=6), EditFlow(steps=6, order="leap"), EditFlow(steps=2, stop=0.1)]
each_order = pytest.mark.parametrize("sampler", ORDERS, ids=str)


def untrained(paired: bool = True) -> Model:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "edit"}, tokenizer, preset("toy", tokenizer.vocab_size), paired, seed=1)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    model.network.double().requires_grad_(False)
    return model


def run(model: Model, sampler: EditFlow, numbers: list[int], temperature: float = 1.0, **options: Any) -> Any:
    canvas = make_canvas(
        [ROWS[n] for n in numbers],
        [PROMPTS[n] for n in numbers],
        model.spec,
        seeds=[20 + n for n in numbers],
        temperature=temperature,
        growth=Growth([LIMITS[n] for n in numbers], [GAPS[n] for n in numbers]),
    )
    calls: Counter[int] = Counter()

    def network(request: Forward, store: Any = None) -> Tensor:
        assert request.rows is not None
        calls.update(request.rows.tolist())
        return model.network(request, store)

    network.store = model.network.store  # type: ignore[attr-defined]
    method = Method(sampler, options.get("cache", Exact()))
    steps = list(Loop({"main": network}, method, model.spec).run(canvas))
    assert canvas.nfe.tolist() == [calls[row] for row in range(len(numbers))]
    return canvas, steps


@each_order
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_given_tokens_are_kept_and_no_position_stays_open(sampler: EditFlow, temperature: float) -> None:
    model = untrained()
    canvas, steps = run(model, sampler, [0, 1, 2], temperature)
    assert not bool(canvas.open.any())
    for number, row in enumerate(ROWS):
        given = [token for token in row if token is not None]
        assert canvas.ids[number][canvas.status[number] == GIVEN].tolist() == given
        assert int(extent(canvas)[number]) <= LIMITS[number]
    written = set(canvas.ids[canvas.status == SEALED].tolist())
    assert not written & {*model.spec.tokens.forbidden, EOS}
    assert any(step.source is not None for step in steps)
    assert int(canvas.nfe.max()) <= 2 * sampler.steps


@each_order
def test_an_output_does_not_depend_on_other_rows(sampler: EditFlow) -> None:
    model = untrained()
    together, _ = run(model, sampler, [0, 1, 2])
    again, _ = run(model, sampler, [0, 1, 2])
    assert torch.equal(together.ids, again.ids)
    for number in range(3):
        alone, _ = run(model, sampler, [number])
        assert completion(together, number, EOS) == completion(alone, 0, EOS)
        assert float(together.score[number]) == pytest.approx(float(alone.score[0]), abs=1e-5)


@each_order
def test_an_exact_cache_does_not_change_outputs(sampler: EditFlow) -> None:
    model = untrained()
    assert torch.equal(run(model, sampler, [0, 1, 2])[0].ids, run(model, sampler, [0, 1, 2], cache=None)[0].ids)


@dataclass
class KnownSequence:
    """Rates of the edits that lead from any sequence to one final sequence, by an alignment computed here."""

    text: tuple[int, ...]
    start: int

    def __call__(self, request: Forward, store: object = None) -> Tensor:
        found = []
        for row in range(len(request.tokens)):
            cells = tuple(request.tokens[row][request.positions[row] >= self.start].tolist()[:-1])
            rates = torch.full((len(cells) + 1, 2 * V + 1), 1e-9)
            i, j = len(cells), len(self.text)
            while i or j:
                here = distance(cells[:i], self.text[:j])
                same = i > 0 and j > 0 and cells[i - 1] == self.text[j - 1]
                if i and j and distance(cells[: i - 1], self.text[: j - 1]) + (not same) == here:
                    if not same:
                        rates[i - 1, V + self.text[j - 1]] = 1.0
                    i, j = i - 1, j - 1
                elif i and distance(cells[: i - 1], self.text[:j]) + 1 == here:
                    rates[i - 1, DELETE] = 1.0
                    i -= 1
                else:
                    rates[i, self.text[j - 1]] += 1.0
                    j -= 1
            found.append(rates[request.targets[row][request.targets[row] >= 0] - self.start])
        return torch.cat(found).log()


@pytest.mark.parametrize("start", [0, 1, 4, 9])
@pytest.mark.parametrize("steps", [1, 3, 12])
def test_a_known_sequence_is_reached_from_any_start(start: int, steps: int) -> None:
    """From an empty start, and from too many or too few random tokens."""
    spec, _ = tiny.family("edit")
    text = (A, B, C, A, A, C)
    canvas = make_canvas(
        [[6, 4, *[None] * start, EOS]] * 5, [2] * 5, spec, seeds=[*range(5)], growth=Growth([20] * 5, [[2]] * 5)
    )
    for _ in Loop({"main": KnownSequence(text, 2)}, Method(EditFlow(steps=max(steps, 5))), spec).run(canvas):
        pass
    for row in range(5):
        assert completion(canvas, row, EOS) == (list(text), "stop")


def test_many_steps_sample_from_the_language() -> None:
    """With true rates, more steps have less error: total variation over 16 sequences. That of 1500 samples by chance
    is about 0.04."""
    language = distinct(3)
    spec, _ = tiny.family("edit", timed=True, schedule="linear")
    oracle, found = Oracle(language, spec, 2), []
    oracle._expected = cache(oracle._expected)  # type: ignore[method-assign]
    for steps in (2, 40):
        count = 1500
        canvas = make_canvas(
            [[6, 4, EOS]] * count,
            [2] * count,
            spec,
            seeds=[*range(count)],
            temperature=1.0,
            growth=Growth([8] * count, [[2]] * count),
        )
        for _ in Loop({"main": oracle}, Method(EditFlow(steps=steps, order="leap")), spec).run(canvas):
            pass
        drawn = Counter(tuple(completion(canvas, row, EOS)[0]) for row in range(count))
        share = torch.tensor([drawn[tuple(text[:-1])] / count for text in language.texts], dtype=torch.float64)
        found.append(0.5 * (float((share - language.p).abs().sum()) + 1 - float(share.sum())))
    assert found[0] > 0.12 > found[1]


def test_incompatible_samplers_and_models_are_rejected() -> None:
    model = untrained()
    for name in ("confidence", "posterior", "analytic"):
        with pytest.raises(UserError):
            model.generate("a", max_new_tokens=4, sampler=name)
    tokenizer = Tokenizer.bytes()
    masked = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True)
    with pytest.raises(UserError, match="edits"):
        masked.generate("a", max_new_tokens=4, sampler="edit_flow")


def test_rates_of_the_cpu_form_equal_those_of_the_network() -> None:
    from redraft.models.cpu.transformer import CpuTransformer

    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "edit"}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=1)
    ids = torch.randint(5, 261, (2, 9), generator=generator())
    pos = torch.arange(9).expand(2, -1)
    request = Forward(
        tokens=ids, positions=pos, targets=pos, attention=model.spec.network.attention, prompt=torch.tensor([3, 4])
    )
    network = model.network.eval()
    with torch.inference_mode():
        torch.testing.assert_close(CpuTransformer(network)(request), network(request), rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]
