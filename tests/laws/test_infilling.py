"""Laws of infilling and of the length search: given text is kept, and a clear optimum of the length is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation import first_pass, infill, length
from redraft.generation.holes import Hole
from redraft.model import Model
from redraft.presets import preset
from redraft.types import Forward, Spec
from tests import tiny

SENTENCES = ["the cat sat on the mat", "the dog sat on the cat", "a cat and a dog", "on the mat the cat sat"] * 8


def words() -> Tokenizer:
    """A tokenizer that encodes spaces together with the words after them."""
    return Tokenizer.train(SENTENCES, 300)


def fresh(tokenizer: Tokenizer, paired: bool = False, **family: Any) -> Model:
    return Model.fresh({"name": "masked", **family}, tokenizer, preset("toy", tokenizer.vocab_size), paired, seed=1)


def test_holes_are_parsed() -> None:
    assert infill.parse("a [[3]] b [[?]][[ 1 - 8 ]]") == [
        "a ",
        Hole(3, 3),
        " b ",
        Hole(1, infill.UNKNOWN),
        "",
        Hole(1, 8),
        "",
    ]
    assert infill.parse("no hole [[x]] [3] [[]]") == ["no hole [[x]] [3] [[]]"]


@pytest.mark.parametrize(
    ("text", "word"), [("a [[0]]", "at least one token"), ("a [[0-3]]", "at least one token"), ("a [[5-3]]", "smaller")]
)
def test_invalid_holes_are_refused(text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        fresh(words()).infill(text)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("tokenizer", [words(), Tokenizer.bytes()], ids=["words", "bytes"])
def test_given_text_is_kept(tokenizer: Tokenizer, paired: bool) -> None:
    """With an untrained model, and with spaces around holes."""
    model = fresh(tokenizer, paired)
    for parts in (["the ", " sat on ", " mat"], ["", " sat  ", "\n"], ["ein", "ö ", ""], ["a  ", "", " b"]):
        for seed in range(3):
            holes = ["[[2]]", "[[1-3]]"]
            text = parts[0] + holes[0] + parts[1] + holes[1] + parts[2]
            found = model.infill(text, temperature=1.0, seed=seed)
            rest = found.text
            assert rest.startswith(parts[0]) and rest.endswith(parts[2])
            assert parts[1] in rest[len(parts[0]) : len(rest) - len(parts[2])]


def test_prefix_and_suffix_are_text_around_the_text() -> None:
    model = fresh(words(), True)
    whole = model.infill("the cat [[2]] on the [[1]] mat", "a dog")
    split = model.infill("cat [[2]] on the [[1]]", "a dog", prefix="the ", suffix=" mat")
    assert (whole.text, whole.ids) == (split.text, split.ids)
    literal = model.infill("[[1]]", prefix="[[2]] ", suffix=" [[?]]").text
    assert literal.startswith("[[2]] ") and literal.endswith(" [[?]]")


def test_an_edit_rewrites_its_span_alone() -> None:
    model = fresh(words())
    text = "the cat sat on the mat"
    found = model.edit(text, "cat sat", temperature=1.0).text
    assert found.startswith("the ") and found.endswith(" on the mat")
    assert found == model.edit(text, (4, 11), temperature=1.0).text
    for span in ("dog", "", (5, 5), (3, 99)):
        with pytest.raises(UserError, match="does not contain"):
            model.edit(text, span)


def test_infilling_takes_no_max_new_tokens() -> None:
    with pytest.raises(UserError, match="max_new_tokens"):
        fresh(words()).infill("a [[1]]", max_new_tokens=4)


class Confident:
    """Predicts one letter with high probability if a row has the right number of masks, else uniformly."""

    def __init__(self, spec: Spec, letter: int, right: Callable[[torch.Tensor], int]) -> None:
        self.spec, self.letter, self.right = spec, letter, right

    def __call__(self, request: Forward, store: object = None) -> torch.Tensor:
        row = (request.targets >= 0).nonzero()[:, 0]
        masks = ((request.tokens == self.spec.tokens.mask_id) & (request.positions >= 0)).sum(1)
        logits = torch.zeros(len(row), self.spec.tokens.vocab_size)
        for number, r in enumerate(row.tolist()):
            right = self.right(request.tokens[r])
            if int(masks[r]) <= right:  # later passes have fewer masks
                logits[number, self.letter] = 6.0 + 3.0 * int(masks[r]) / right
        return logits


def with_network(model: Model, right: Callable[[torch.Tensor], int], letter: str) -> Model:
    network = Confident(model.spec, model.tokenizer.encode(letter)[0], right)
    model.inference_network = lambda *_: network  # type: ignore[method-assign,assignment,return-value]
    return model


@pytest.mark.parametrize("size", [1, 4, 11])
def test_a_hole_gets_the_size_with_confident_predictions(size: int) -> None:
    model = with_network(fresh(Tokenizer.bytes()), lambda x: size, "z")
    assert model.infill("ab[[?]]cd", cache="none").text == "ab" + "z" * size + "cd"
    narrow = model.infill(f"ab[[{size}-{size + 2}]]cd", cache="none")
    assert narrow.text == "ab" + "z" * size + "cd"
    assert narrow.nfe <= 2 + size


def test_several_holes_are_sized_together() -> None:
    model = with_network(fresh(Tokenizer.bytes()), lambda x: 7, "z")
    found = model.infill("ab[[1-6]]cd[[1-6]]ef[[2]]", cache="none").text
    assert found.count("z") == 7
    many = model.infill("ab[[?]]cd[[?]]ef[[1]]", cache="none").text  # more combinations than are scored at once
    assert many.count("z") >= 3


class Peaked(length.LengthSearch):
    """Scores that decrease from one length, and a record of the calls."""

    record: ClassVar[dict[str, Any]] = {}

    def scores(self, prompt: Any, lengths: Any) -> Any:
        self.record["calls"].append(list(lengths))
        return [-float(abs(n - self.record["peak"])) for n in lengths]
        yield


@pytest.mark.parametrize("most", [1, 2, 7, 64])
def test_the_length_search_finds_a_single_peak(most: int) -> None:
    for peak in range(1, most + 1):
        for closing in ((), (7,)):
            search = Peaked(closing, fresh(Tokenizer.bytes()).spec, ())
            search.record.update(peak=peak, calls=[])
            with pytest.raises(StopIteration) as end:
                next(search.choose([], most + len(closing), 3))
            lengths, shares = end.value.value
            calls = search.record["calls"]
            tried = [n for call in calls for n in call]
            assert lengths[0] == peak + len(closing) and lengths == sorted(lengths, key=lambda n: abs(n - lengths[0]))
            assert shares == sorted(shares, reverse=True) and sum(map(math.exp, shares)) <= 1 + 1e-6
            assert len(calls) <= 2 and len(tried) <= max(30, most * 2 // 3)
            assert all(1 <= n <= most for n in tried)


@pytest.mark.parametrize("candidates", [1, 3])
def test_a_model_of_pairs_without_a_length_head_searches_the_length(candidates: int) -> None:
    """Its network is confident if there are as many masks as the prompt has bytes."""
    model = fresh(Tokenizer.bytes(), True, length_head=False)
    sep = model.tokenizer.sep_id
    model = with_network(model, lambda x: int((x == sep).nonzero()[0, 0]), "z")
    prompts = ["abc", "abcdefg", "a"]
    found = model.generate(prompts, max_new_tokens=20, candidates=candidates, cache="none")
    assert [one.text for one in found] == ["z" * len(prompt) for prompt in prompts]
    assert all(one.finish == "stop" for one in found)
    assert [
        one.text
        for one in model.generate(prompts, max_new_tokens=20, candidates=candidates, cache="none", batch_size=1)
    ] == [one.text for one in found]


def test_the_first_pass_is_the_networks_prediction() -> None:
    """Confidence, entropy and requested tokens compared with the oracle's tables, in a batch of different lengths."""
    language = tiny.Language.of_one_length([5, 6, 7], 3)
    spec, _ = tiny.family("masked", paired=False)
    network = tiny.OracleNetwork(language, spec, start=2)
    rows = [[2, 6, None, 5, None], [2, 6, None, None, None]]
    truths = [[2, 6, None, 5, 7], [2, 6, 6, None, None]]
    found = first_pass.first_pass(network, rows, [2, 2], spec, truths)
    for row, truth, look in zip(rows, truths, found, strict=True):
        x = torch.tensor([[spec.tokens.mask_id if token is None else token for token in row]])
        p = tiny.log_probabilities(network, spec, x, 2)[0].exp()
        named = [place for place in range(2, 5) if row[place] is None and truth[place] is not None]
        free = [place for place in range(2, 5) if row[place] is None and truth[place] is None]
        assert look.truth == pytest.approx(sum(float(p[place - 2, truth[place]].log()) for place in named), abs=1e-4)
        top = torch.stack([p[place - 2].max() for place in free]).mean()
        entropy = torch.stack([-torch.special.xlogy(p[place - 2], p[place - 2]).sum() for place in free]).mean()
        assert look.confidence == pytest.approx(float(top), abs=1e-4)
        assert look.entropy == pytest.approx(float(entropy), abs=1e-4)


def test_settings_determine_the_length() -> None:
    headed, headless, plain = fresh(words(), True), fresh(words(), True, length_head=False), fresh(words())
    fixed = headed.start(["the cat"], headed.settings(length="fixed", max_new_tokens=9)).canvas
    assert int((fixed.status[0] == 2).sum()) == 9
    assert len(plain.start(["the"], plain.settings(length="search", max_new_tokens=9, candidates=3)).canvas.ids) == 3
    for model, asked, word in ((headless, "head", "length head"), (plain, "head", "length head")):
        with pytest.raises(UserError, match=word):
            model.generate("the", length=asked, max_new_tokens=9)
    tokenizer = words()
    shape = preset("toy", tokenizer.vocab_size)
    autoregressive = Model.fresh({"name": "autoregressive"}, tokenizer, shape, True)
    with pytest.raises(UserError, match="ends its output"):
        autoregressive.generate("the", length="search", max_new_tokens=9)
