"""Quality metrics against the libraries people compare with, and against values worked out by hand."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.errors import UserError
from redraft.evaluation import stats
from redraft.evaluation.cost import Cost
from redraft.evaluation.memory import PeakMemory
from redraft.evaluation.timing import Speed, ratio_interval
from redraft.metrics import Metric
from redraft.metrics.accuracy import Accuracy
from redraft.metrics.bits_per_byte import BitsPerByte
from redraft.metrics.bleu import Bleu
from redraft.metrics.chrf import Chrf
from redraft.metrics.diversity import Diversity
from redraft.metrics.exact_match import ExactMatch
from redraft.metrics.f1 import F1
from redraft.metrics.mauve import Mauve, area
from redraft.metrics.ngram_similarity import NgramSimilarity
from redraft.metrics.perplexity import Perplexity
from redraft.metrics.rouge import Rouge

QUALITY = [
    Bleu(),
    Chrf(),
    Rouge("rouge1"),
    Rouge("rouge2"),
    Rouge("rougeL"),
    ExactMatch(),
    F1(),
    Accuracy(),
    NgramSimilarity(),
    Diversity("distinct", 2),
    Diversity("repetition", 3),
    Diversity("entropy"),
]
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "and",
    "then",
    "it",
    "ran",
    "away",
    ",",
    ".",
    "quickly",
    "Straße",
    "résumé",
    "猫",
    "42",
]


def texts(rows: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Hypotheses that are damaged copies of one of two references, with empty and very short ones among them."""
    draw = random.Random(seed)
    hypotheses, references = [], []
    for i in range(rows):
        several = [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(2)]
        words = [w if draw.random() < 0.8 else draw.choice(WORDS) for w in draw.choice(several).split()]
        hypotheses.append("" if i == 3 else " ".join(words[: draw.randint(1, 14)]))
        references.append(several)
    return hypotheses, references


@pytest.mark.parametrize("metric", QUALITY, ids=lambda m: m.name)
def test_value_is_that_of_the_summed_statistics(metric: Metric) -> None:
    hypotheses, references = texts(30, seed=1)
    score = metric.score(hypotheses, references)
    assert score.value == pytest.approx(float(metric.combine(score.stats.sum(0))))
    assert score.rows.shape == (30,)
    # any resample, combined at once, is what scoring the resampled texts again gives
    picks = np.random.default_rng(0).integers(0, 30, (5, 30))
    sums = np.stack([score.stats[p].sum(0) for p in picks])
    again = [metric.score([hypotheses[i] for i in p], [references[i] for i in p]).value for p in picks]
    np.testing.assert_allclose(metric.combine(sums), again)


@pytest.mark.parametrize("seed", range(4))
def test_bleu_and_chrf_equal_sacrebleu(seed: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    hypotheses, references = texts(25, seed)
    streams = [list(stream) for stream in zip(*references, strict=True)]
    assert Bleu().score(hypotheses, references).value == pytest.approx(sacrebleu.corpus_bleu(hypotheses, streams).score)
    assert Chrf().score(hypotheses, references).value == pytest.approx(sacrebleu.corpus_chrf(hypotheses, streams).score)
    rows = Bleu().score(hypotheses, references).rows
    alone = [sacrebleu.sentence_bleu(h, r).score for h, r in zip(hypotheses, references, strict=True)]
    np.testing.assert_allclose(rows, alone, atol=1e-9)


@given(st.lists(st.integers(0, 6), min_size=4, max_size=4), st.integers(1, 9), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_bleu_formula_equals_sacrebleu_on_any_counts(matches: list[int], length: int, reference: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    totals = [max(length - n, 0) for n in range(4)]
    correct = [min(m, t) for m, t in zip(matches, totals, strict=True)]
    golden = sacrebleu.BLEU.compute_bleu(correct, totals, length, reference, smooth_method="exp").score
    assert float(Bleu().combine(np.array([*correct, *totals, length, reference], float))) == pytest.approx(golden)


def test_rouge_equals_rouge_score_on_ascii() -> None:
    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    hypotheses, references = ["The cat_1 sat, on the mat!", "dogs ran"], ["A cat sat on a mat.", "the dog ran away"]
    for variant in ("rouge1", "rouge2", "rougeL"):
        golden = rouge.RougeScorer([variant])
        values = [golden.score(r, h)[variant].fmeasure for h, r in zip(hypotheses, references, strict=True)]
        assert Rouge(variant).score(hypotheses, references).value == pytest.approx(100 * sum(values) / 2)


def test_rouge_sees_words_beyond_ascii() -> None:
    assert Rouge("rouge1").score(["собака бежит", "猫が走る"], ["собака спит", "猫が走る"]).value == pytest.approx(75.0)


def test_rouge_refuses_an_unknown_variant() -> None:
    with pytest.raises(UserError, match="rougeL"):
        Rouge("rouge9")


def test_answers_are_compared_as_squad_does() -> None:
    hypotheses, references = ["The Beatles!", "in 1969 , London"], [["Beatles", "the band"], ["London 1969"]]
    assert ExactMatch().score(hypotheses, references).value == pytest.approx(50.0)
    # second row: 2 words in common of 3 and 2 -> 2*2/5
    assert F1().score(hypotheses, references).value == pytest.approx(100 * (1 + 0.8) / 2)
    assert F1().score([""], ["a"]).value == pytest.approx(100.0)  # an article alone normalises to nothing


def test_accuracy_ignores_case_and_space_only() -> None:
    assert Accuracy().score([" Not  Entailed\n", "entailed."], ["not entailed", "entailed"]).value == pytest.approx(
        50.0
    )


def test_diversity_by_hand() -> None:
    hypotheses, nothing = ["a b a b a", "x y z", ""], [["-"]] * 3
    # bigrams: ab ba ab ba -> 2 of 4; xy yz -> 2 of 2; the empty text doesn't count
    assert Diversity("distinct", 2).score(hypotheses, nothing).value == pytest.approx(75.0)
    assert Diversity("repetition", 2).score(hypotheses, nothing).value == pytest.approx(25.0)
    expected = (-(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4)) + math.log2(3)) / 2
    assert Diversity("entropy").score(hypotheses, nothing).value == pytest.approx(expected)


def test_likeness_orders_human_garbled_and_repetitive_text() -> None:
    _, references = texts(60, seed=5)
    first, second = [r[0] for r in references], [r[1] for r in references]
    same = NgramSimilarity().score(first, first).value
    human = NgramSimilarity().score(first, second).value
    garbled = NgramSimilarity().score([t[::-1] for t in first], second).value
    stuck = NgramSimilarity().score(["the the the the"] * 60, second).value
    assert same == pytest.approx(100.0)
    assert same > human > max(garbled, stuck)
    assert NgramSimilarity().score([""] * 60, second).value == 0.0


def test_bits_per_byte_of_a_fair_coin() -> None:
    stats = BitsPerByte.of([8 * math.log(2), 24 * math.log(2)], [1, 3])  # 8 bits for each byte
    assert float(BitsPerByte().combine(stats.sum(0))) == pytest.approx(8.0)
    with pytest.raises(TypeError):
        BitsPerByte().score(["a"], ["a"])


@pytest.mark.parametrize("hypotheses, references", [([], []), (["a"], ["a", "b"]), (["a"], [[]])])
def test_rows_without_a_partner_are_refused(hypotheses: list[str], references: list[str]) -> None:
    with pytest.raises(ValueError):
        F1().score(hypotheses, references)


def test_speed_counts_completion_tokens_over_the_whole_time() -> None:
    speed = Speed(batch=4)
    for seconds, tokens in [(1.0, 10), (3.0, 30), (1.0, 10), (5.0, 10)]:
        speed.add(seconds, tokens)
    assert speed.tokens_per_second == pytest.approx(6.0)
    assert speed.requests_per_second == pytest.approx(1.6)
    assert speed.percentile(50) == pytest.approx(2.0)
    assert Cost(price_per_hour=3.6).per_thousand(speed.requests_per_second) == pytest.approx(1000 * 3.6 / (3600 * 1.6))
    assert Cost(1.0).per_thousand(0.0) == math.inf


def test_speed_ratio_is_known_where_there_is_no_noise() -> None:
    assert ratio_interval([0.5] * 5, [1.5] * 5) == pytest.approx((3.0, 3.0, 3.0))
    ratio, low, high = ratio_interval([1.0, 1.2, 0.9, 1.1], [2.0, 2.5, 1.9, 2.2])
    assert low <= ratio <= high and 1.5 < low < high < 3.0
    with pytest.raises(ValueError):
        ratio_interval([1.0], [1.0, 2.0])


def test_memory_sees_a_large_allocation() -> None:
    import mmap

    import torch

    with PeakMemory(torch.device("cpu")) as memory, mmap.mmap(-1, 32 * 2**20) as block:
        # Fresh pages from the system: the allocator might hand out memory that is resident already.
        block.write(b"\1" * (32 * 2**20))
    if not memory.exact:
        pytest.skip("this system can't start the peak anew")
    assert memory.peak - memory.before > 24 * 2**20


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("transformer", {"kv_heads": 2, "timed": True}),
        ("bert", {}),
        ("modern_bert", {"mlp_dim": 48, "window": 400}),
        ("gpt", {}),
        ("dit", {"condition_dim": 8, "noise": "linear"}),
    ],
)
def test_counted_flops_equal_those_torch_counts(name: str, shape: dict[str, Any]) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from redraft import models
    from redraft.types import AttentionPattern, Forward

    described = {"name": name, "vocab_size": 40, "dim": 32, "layers": 2, "heads": 4, **shape}
    network = models.build(models.shape(described, "test"))
    rows, width, wanted = 3, 10, 4
    pos = torch.arange(width).expand(rows, -1)
    ask = Forward(torch.zeros_like(pos), pos, pos[:, -wanted:], AttentionPattern("full"), time=torch.full((rows,), 0.5))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(ask)  # torch doesn't count what its fused attention for CPUs does
    counted = network.forward_cost().of_counts(rows * width, rows * width * width, rows * wanted, timed_rows=rows)
    embedding_of_time = sum(counter.get_flop_counts().get(f"{type(network).__name__}.time", {}).values())  # left out
    assert counted == counter.get_total_flops() - embedding_of_time


def test_perplexity_is_that_of_an_independent_model(tmp_path: Path) -> None:
    from redraft.data.tokenizer import Tokenizer
    from redraft.model import Model
    from redraft.presets import preset

    tokenizer = Tokenizer.bytes()
    for name in ("autoregressive", "masked"):
        shape = preset("toy", tokenizer.vocab_size, dim=32, max_length=64)
        Model.fresh({"name": name}, tokenizer, shape, paired=False).save(tmp_path / name)
    metric, written = Perplexity(str(tmp_path / "autoregressive"), "cpu"), ["a cat", "", "then it ran away"]
    found = metric.score(written, ["x"] * 3)
    ids = [torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)]]) for text in written if text]
    never = torch.tensor([i for i in tokenizer.markers if i != tokenizer.eos_id])  # markers have no probability
    logits = [metric.model.logits(row)[0, :-1].index_fill(1, never, -torch.inf) for row in ids]
    entropy = torch.nn.functional.cross_entropy
    nats = [entropy(row, tokens[0, 1:], reduction="sum") for row, tokens in zip(logits, ids, strict=True)]
    assert found.value == pytest.approx(math.exp(float(sum(nats)) / sum(row.shape[1] - 1 for row in ids)), rel=1e-4)
    assert found.rows[1] == 0.0 and found.stats[1].tolist() == [0.0, 0.0]
    with pytest.raises(UserError, match="a model of family masked, can't judge"):
        _ = Perplexity(str(tmp_path / "masked"), "cpu").model


@pytest.mark.parametrize(
    ("p", "q", "value"),
    [
        ([0.5, 0.5], [0.5, 0.5], 1.0),
        ([0.5, 0.5], [0.75, 0.25], 0.941004),
        ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5], 0.912889),
        ([1.0, 0.0], [0.0, 1.0], 0.004072),
    ],
)
def test_mauve_of_two_histograms(p: list[float], q: list[float], value: float) -> None:
    """Values of the reference implementation's formula."""
    both = np.array([[p, q], [q, p]])
    assert area(both[:, 0], both[:, 1]) == pytest.approx(value, abs=1e-6), "and it is symmetric"
    assert area(both[0, 0][::-1], both[0, 1][::-1]) == pytest.approx(value, abs=1e-6)


def test_mauve_tells_other_texts_from_the_same(tmp_path: Path) -> None:
    from redraft.data.tokenizer import Tokenizer
    from redraft.model import Model
    from redraft.presets import preset

    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size, dim=32, max_length=64)
    Model.fresh({"name": "autoregressive"}, tokenizer, shape, paired=False).save(tmp_path / "judge")
    metric = Mauve(str(tmp_path / "judge"), "cpu", clusters=4)
    human = [f"text {number} ends in {'abcd'[number % 4]}" for number in range(120)]
    same, other = metric.score(human[::-1], human), metric.score(["", "!"] * 60, human)
    assert same.value == pytest.approx(1.0)
    assert other.value < 0.1
    around = stats.interval(other.stats[None], metric.combine)
    assert around.low <= other.value <= around.high
    one = metric.features(["the same", "the same but longer", "the same"])
    assert np.allclose(one[0], one[2], atol=1e-5) and not np.allclose(one[0], one[1], atol=1e-3)
    with pytest.raises(UserError, match="MAUVE of 3 texts says nothing"):
        metric.score(human[:3], human[:3])
