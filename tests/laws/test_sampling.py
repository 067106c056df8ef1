"""Laws of sampling tokens: random numbers keyed by (seed, noise step, position), and inverse CDF from them."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chisquare, kstest

from redraft import runtime
from redraft.canvas import best_rows, completion, make_canvas
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.length import choose_lengths
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.presets import preset
from redraft.runtime import gumbel_max, inverse_cdf, keyed_uniform, noise_keys
from redraft.samplers.confidence import Confidence
from redraft.types import Sampling
from tests import tiny


def test_keyed_noise_is_uniform_along_every_key() -> None:
    many, one = torch.arange(20_000), torch.zeros(1, dtype=torch.int64)
    by_seed = keyed_uniform(many, torch.zeros_like(many), torch.zeros(20_000, 1, dtype=torch.int64))[:, 0]
    by_step = keyed_uniform(torch.zeros_like(many), many, torch.zeros(20_000, 1, dtype=torch.int64))[:, 0]
    by_position = keyed_uniform(one, one, many[None])[0]
    for drawn in (by_seed, by_step, by_position):
        assert kstest(drawn.numpy(), "uniform").pvalue > 1e-3
        lagged = torch.corrcoef(torch.stack([drawn[:-1], drawn[1:]]))[0, 1]
        assert abs(float(lagged)) < 0.03
        assert float(drawn.min()) > 0 and float(drawn.max()) < 1
    between = torch.corrcoef(torch.stack([by_seed, by_step, by_position]))
    assert float((between - torch.eye(3)).abs().max()) < 0.03


def test_keyed_noise_depends_on_its_keys_alone() -> None:
    seed, step, pos = torch.tensor([3, 9]), torch.tensor([1, 4]), torch.tensor([[0, 5, 7], [2, 3, 7]])
    both = keyed_uniform(seed, step, pos)
    for row in range(2):
        for column in range(3):
            alone = keyed_uniform(seed[row : row + 1], step[row : row + 1], pos[row : row + 1, column : column + 1])
            assert float(alone) == float(both[row, column])


def sample_many(
    logits: torch.Tensor, count: int, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> torch.Tensor:
    uniform = keyed_uniform(torch.zeros(1), torch.zeros(1), torch.arange(count)[None])[0]
    sampling = Sampling.of(count, temperature=temperature, top_k=top_k, top_p=top_p)
    tokens = inverse_cdf(logits.expand(count, -1), uniform, sampling)
    return torch.bincount(tokens, minlength=len(logits))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, -torch.inf, 1.0])
    counts = sample_many(logits, 20_000, temperature)
    p = (logits / temperature).softmax(0).double()
    assert counts[3] == 0
    keep = p > 0
    expected = p[keep] / p[keep].sum() * 20_000
    assert chisquare(counts[keep].tolist(), expected.tolist()).pvalue > 1e-3


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))
    assert (sample_many(logits, 2000, 1.0, top_k=2) > 0).tolist() == [False, True, False, True]
    assert (sample_many(logits, 2000, 1.0, top_k=1) > 0).tolist() == [False, True, False, False]
    # 0.4 is less than 0.65, and 0.4 + 0.3 reaches it: two tokens are kept
    assert (sample_many(logits, 2000, 1.0, top_p=0.65) > 0).tolist() == [False, True, False, True]
    assert (sample_many(logits, 2000, 1.0, top_p=0.71) > 0).tolist() == [False, True, True, True]
    assert (sample_many(logits, 2000, 1.0, top_p=0.0) > 0).tolist() == [False, True, False, False]
    two = sample_many(logits, 20_000, 1.0, top_k=2)[[1, 3]]
    assert chisquare(two.tolist(), [20_000 * 4 / 7, 20_000 * 3 / 7]).pvalue > 1e-3


def test_the_tail_of_a_large_vocabulary_is_sampled() -> None:
    """One token has all but 1e-6 of the mass, and 100,000 others share the rest: they must be sampled at their rate."""
    logits = torch.zeros(100_001)
    logits[0] = torch.log(torch.tensor(1e5 * (1 - 1e-6) / 1e-6))
    uniform = torch.tensor([1 - 0.75e-6, 1 - 0.25e-6], dtype=torch.float64)
    tokens = inverse_cdf(logits.expand(2, -1), uniform, Sampling.of(2))
    assert tokens.tolist() == pytest.approx([25_000, 75_000], rel=0.2)


def keys(count: int) -> torch.Tensor:
    return noise_keys(torch.zeros(1), torch.zeros(1), torch.arange(count)[None])[0]


@pytest.mark.parametrize("own", [3, 256])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gumbel_frequencies_are_the_softmax(own: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where most tokens share one Gumbel number."""
    monkeypatch.setattr(runtime, "GUMBEL_TOKENS", own)
    logits, count = torch.tensor([2.0, -1.0, 0.5, -torch.inf, 1.0, 1.5, 0.0]), 40_000
    tokens = gumbel_max(logits.expand(count, -1), keys(count), Sampling.of(count, temperature=temperature))
    counts, p = torch.bincount(tokens, minlength=7), (logits / temperature).softmax(0).double()
    keep = p > 0
    assert counts[3] == 0
    assert chisquare(counts[keep].tolist(), (p[keep] / p[keep].sum() * count).tolist()).pvalue > 1e-3


def test_gumbel_draws_respect_truncation_and_do_not_depend_on_their_batch() -> None:
    logits, count = torch.tensor([1.0, 4.0, 2.0, 3.0]), 500
    tokens = gumbel_max(logits.expand(count, -1), keys(count), Sampling.of(count, top_k=2))
    assert set(tokens.tolist()) == {1, 3}
    alone = gumbel_max(logits[None], keys(count)[7:8], Sampling.of(1, top_k=2))
    assert int(alone) == int(tokens[7])


def test_coupled_draws_agree_as_often_as_the_closed_form_says_in_every_order_of_the_vocabulary() -> None:
    """P(agree) = sum_i 1 / sum_j max(p_j / p_i, q_j / q_i) = 0.693548, and at most 1 - TV(p, q) = 0.7 is possible.
    With inverse CDF the agreement is the overlap of the tokens' intervals: 0.5 to 0.7, and 0.6 in this order."""
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    ratio = torch.maximum(p[None] / p[:, None], q[None] / q[:, None])
    assert float((1 / ratio.sum(1)).sum()) == pytest.approx(0.693548, abs=1e-6)
    assert float(torch.minimum(p, q).sum()) == pytest.approx(0.7)
    count, overlaps = 40_000, []
    for order in itertools.permutations(range(3)):
        one, other = (
            gumbel_max(each[list(order)].log().expand(count, -1), keys(count), Sampling.of(count)) for each in (p, q)
        )
        assert float((one == other).double().mean()) == pytest.approx(0.693548, abs=4 * (0.25 / count) ** 0.5)
        ends = torch.stack([p[list(order)].cumsum(0), q[list(order)].cumsum(0)])
        begins = ends - torch.stack([p[list(order)], q[list(order)]])
        overlaps.append(float((ends.amin(0) - begins.amax(0)).clamp(min=0).sum()))
    assert overlaps[0] == pytest.approx(0.6)
    assert (min(overlaps), max(overlaps)) == pytest.approx((0.5, 0.7))


def paired(seed: int = 0) -> Model:
    tokenizer = Tokenizer.bytes()
    return Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed)


def test_lengths_come_from_the_length_head() -> None:
    """The oracle predicts P(length): rows get its likeliest lengths in order, and end with end-of-text."""
    language = tiny.Language.ended([5, 6, 7], 3, seed=5)
    spec, _ = tiny.family("masked")
    network = tiny.OracleNetwork(language, spec, start=2)
    mass = torch.zeros(6, dtype=torch.float64)
    for text, p in zip(language.texts, language.p, strict=True):
        mass[len(text)] += p
    likeliest = mass.argsort(descending=True)[:3].tolist()
    canvas = make_canvas([[6, 4, *[None] * 5]] * 2, [2, 2], spec, seeds=[0, 1], copies=3)
    loop = Loop({"main": network}, Method(Confidence(steps=5)), spec)
    choose_lengths(loop, canvas)
    lengths = (canvas.status[:, 2:] > 0).sum(1).tolist()
    assert lengths == likeliest * 2
    for row, length in enumerate(lengths):
        assert int(canvas.ids[row, 2 + length - 1]) == spec.tokens.eos_id
    for _ in loop.run(canvas):
        pass
    assert canvas.nfe.max() <= 6
    best = best_rows(canvas, by_score=True)[0]
    assert len(completion(canvas, best, spec.tokens.eos_id)[0]) in [length - 1 for length in likeliest]


def test_more_candidates_never_score_worse() -> None:
    model = paired()
    for prompt in ("hello", "a longer prompt", "x"):
        mean = [
            found.score / max(1, len(found.ids))
            for count in (1, 4)
            for found in model.generate(prompt, max_new_tokens=12, candidates=count)
        ]
        assert mean[1] >= mean[0] - 1e-6


def test_a_sequence_does_not_depend_on_batch_size_or_other_rows() -> None:
    model = paired()
    prompts = ["hello", "a much longer prompt than that", "x", "yes"]
    options = {"max_new_tokens": 16, "temperature": 1.0, "candidates": 2}
    together = [found.ids for found in model.generate(prompts, batch_size=4, **options)]
    assert together == [found.ids for found in model.generate(prompts, batch_size=1, **options)]
    assert together == [found.ids for found in model.generate(prompts, cache="none", **options)]
    assert together[2] == model.generate("x", seed=2, **options)[0].ids


def test_infilling_keeps_given_text_and_fills_every_hole() -> None:
    model = Model.fresh({"name": "masked"}, Tokenizer.bytes(), preset("toy", 261), False)
    text = model.infill("The [[3]] sat on [[2]].", temperature=1.0).text.encode("utf-8", "replace")
    assert text.startswith(b"The ") and b" sat on " in text and text.endswith(b".")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"max_new_tokens": 8, "steps": 9}, "steps"),
        ({"max_new_tokens": 8, "steps": 0}, "steps"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1000}, "context"),
        ({"sampler": "confidance"}, "confidence"),
        ({"options": {"blok": 3}}, "block"),
        ({"options": {"order": "margins"}}, "margin"),
        ({"sampler": "threshold", "steps": 4}, "steps"),
        ({"sampler": "threshold", "options": {"threshold": 1.5}}, "threshold"),
        ({"sampler": "autoregressive"}, "left to right"),
        ({"maxnewtokens": 4}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"candidates": 0}, "candidates"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"options": 3}, "options"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, object], word: str) -> None:
    with pytest.raises(UserError, match=word):
        paired().generate("hello", **settings)


def test_a_temperature_near_zero_is_the_argmax() -> None:
    logits = torch.tensor([3.0, -torch.inf, 5.0, -torch.inf])
    for temperature in (1e-30, 1e-37, 1e-40):
        assert (sample_many(logits, 50, temperature) > 0).tolist() == [False, False, True, False]


def test_keyed_noise_never_reaches_one() -> None:
    """The position whose hash is all ones, found by inverting the hash."""

    def back(z: int, shift: int, factor: int) -> int:
        z = z * pow(factor, -1, 1 << 64) % (1 << 64) if factor else z
        found = z
        while (again := z ^ (found >> shift)) != found:
            found = again
        return found

    z = back(back(back((1 << 64) - 1, 31, 0), 27, 0x94D049BB133111EB), 30, 0xBF58476D1CE4E5B9)
    pos = (z * pow(0x8CB92BA72F3D8DD7, -1, 1 << 64) - 1) % (1 << 64)  # seed and step 0: their part of the key is 0
    pos -= (1 << 64) if pos >= 1 << 63 else 0
    zero = torch.zeros(1, dtype=torch.int64)
    drawn = float(keyed_uniform(zero, zero, torch.tensor([[pos]])))
    assert 1 - 1e-15 < drawn < 1


def test_an_empty_candidate_is_not_preferred() -> None:
    """Candidates have all lengths from 1 (only end-of-text) to 4. The text with the highest mean log-probability must
    win, with the probability of its length included, and it is not empty."""
    language = tiny.Language.ended([5, 6, 7], 3, seed=5)
    spec, _ = tiny.family("masked")
    canvas = make_canvas([[6, 4, *[None] * 4]], [2], spec, seeds=[0], copies=4)
    loop = Loop({"main": tiny.OracleNetwork(language, spec, start=2)}, Method(Confidence(steps=4, order="left")), spec)
    choose_lengths(loop, canvas)
    for _ in loop.run(canvas):
        pass
    best = best_rows(canvas, by_score=True)[0]
    found, _ = completion(canvas, best, spec.tokens.eos_id)
    assert found
    assert float(canvas.score[best]) == pytest.approx(-language.nll([*found, spec.tokens.eos_id]), abs=1e-4)


def test_the_default_number_of_steps_is_at_most_the_number_of_tokens() -> None:
    model = paired()
    model.defaults = {"steps": 10, "max_new_tokens": 20}
    assert model.settings().steps == 10
    assert model.settings(max_new_tokens=4).steps == 4
    assert model.infill("a[[2]]").nfe <= 2
    with pytest.raises(UserError, match="steps"):
        model.generate("hello", max_new_tokens=4, steps=10)


@pytest.mark.parametrize(
    ("text", "word"), [("a[[0]]b", "at least one token"), ("a[[99999999999999999999]]", "context")]
)
def test_invalid_holes_are_refused(text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        paired().infill(text)


def test_as_many_lengths_as_are_allowed() -> None:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size, max_length=600), True)
    assert model.generate("a", max_new_tokens=400, candidates=256, steps=1)[0].nfe == 2
