"""Laws of decisions: the probabilities are the model's own, and don't depend on other rows; mistakes are named."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from redraft import likelihood
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.first_pass import parts
from redraft.generation.slot_scores import _length_log_p
from redraft.generation.slots import Part, SlotTemplate, State, parse
from redraft.model import Model
from redraft.presets import preset
from tests import tiny

BYTES = Tokenizer.bytes()
TEXT, LABELS = "Text: {text} Mood: [mood] Kind: [kind].", {"mood": ["a", "bcd"], "kind": ["xy", "z", "the end"]}
ROWS = [{"text": "the cat sat on the mat" * (number % 3) + str(number)} for number in range(17)]


def fresh(family: str = "masked", paired: bool = False, **fields: Any) -> Model:
    shape = preset("toy", BYTES.vocab_size, dim=32)
    model = Model.fresh({"name": family, **fields}, BYTES, shape, paired, seed=3)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)  # peaked predictions
    return model


def knowing(language: tiny.Language) -> Model:
    """A masked model of plain text whose network knows the texts of a language after bos."""
    model = fresh()
    network = tiny.OracleNetwork(language, model.spec, start=1)
    model.inference_network = lambda *_: network  # type: ignore[method-assign,assignment,return-value]
    return model


def letters(text: str) -> list[int]:
    return BYTES.encode(text)


def test_a_text_is_parsed() -> None:
    assert parse("a {b} [c][[d]] {{e}} [1] [[2]] {} {f g}") == [
        Part("text", "a "),
        Part("field", "b"),
        Part("text", " "),
        Part("slot", "c"),
        Part("text", "[d]"),
        Part("text", " "),
        Part("text", "{e}"),
        Part("text", " [1] [[2]] {} {f g}"),
    ]


def conditional(language: tiny.Language, known: dict[int, str], asked: dict[int, str]) -> float:
    """p(letters ``asked`` at their positions | letters ``known`` at theirs), by enumeration."""

    def mass(wanted: dict[int, str]) -> float:
        fits = [all(text[at] == letters(one)[0] for at, one in wanted.items()) for text in language.texts]
        return float(language.p[torch.tensor(fits)].sum())

    return mass({**known, **asked}) / mass(known)


def test_probabilities_are_those_of_the_model_by_enumeration() -> None:
    """One letter a slot, text on both sides: [0] is given, 1 and 3 are slots, 2 is given, labels are two of three."""
    language = tiny.Language.of_one_length(letters("abc"), 4, seed=1)
    model, labels, known = knowing(language), {"one": ["a", "b"], "two": ["c", "a"]}, {0: "b", 2: "c"}

    def decided(method: str) -> Any:
        return model.decide("b[one]c[two]", labels, method=method)[0]  # type: ignore[arg-type]

    joint = {(x, y): conditional(language, known, {1: x, 3: y}) for x in labels["one"] for y in labels["two"]}
    exact = decided("likelihood")
    one = {x: sum(p for (own, _), p in joint.items() if own == x) / sum(joint.values()) for x in labels["one"]}
    two = {y: sum(p for (_, own), p in joint.items() if own == y) / sum(joint.values()) for y in labels["two"]}
    assert exact.probabilities["one"] == pytest.approx(one, abs=1e-5)
    assert exact.probabilities["two"] == pytest.approx(two, abs=1e-5)
    assert exact.nfe == 2  # tokens

    places = {"one": 1, "two": 3}
    alone = {name: [conditional(language, known, {at: x}) for x in labels[name]] for name, at in places.items()}
    quick = decided("one_pass")
    for name, p in alone.items():
        expected = dict(zip(labels[name], [each / sum(p) for each in p], strict=True))
        assert quick.probabilities[name] == pytest.approx(expected, abs=1e-5)
        assert quick.labels[name] == max(expected, key=expected.__getitem__)
    assert quick.nfe == 1 and quick.text == f"b{quick.labels['one']}c{quick.labels['two']}"

    chain = decided("chain")
    first, second = sorted(alone, key=lambda name: -max(alone[name]) / sum(alone[name]))
    assert chain.probabilities[first] == pytest.approx(quick.probabilities[first], abs=1e-5)
    given = {**known, places[first]: chain.labels[first]}
    p = [conditional(language, given, {places[second]: x}) for x in labels[second]]
    expected = dict(zip(labels[second], [each / sum(p) for each in p], strict=True))
    assert chain.probabilities[second] == pytest.approx(expected, abs=1e-5) and chain.nfe == 2


def test_labels_of_several_tokens_are_scored_by_their_tokens() -> None:
    """Two letters from the oracle, in one pass: the product of the marginals, and its root by token."""
    language = tiny.Language.of_one_length(letters("abc"), 3, seed=2)
    model, labels = knowing(language), ["ab", "ca", "bb"]
    product = [conditional(language, {0: "a"}, {1: x[0]}) * conditional(language, {0: "a"}, {2: x[1]}) for x in labels]
    for by, power in (("sum", 1.0), ("token", 0.5), ("byte", 0.5)):
        (found,) = model.decide("a[x]", {"x": labels}, method="one_pass", by=by)  # type: ignore[arg-type]
        expected = [p**power for p in product]
        assert list(found.probabilities["x"].values()) == pytest.approx([p / sum(expected) for p in expected], abs=1e-5)


def test_labels_of_different_lengths_count_the_text_around_them() -> None:
    """a[s]bc with labels of one and two letters: p(the text on both sides), masked with the slot, times p(the label).

    The network knows the texts of each length.
    """
    by_length = {size: tiny.Language.of_one_length(letters("abc"), size, seed=size) for size in (4, 5)}
    texts = [text for language in by_length.values() for text in language.texts]
    p = torch.cat([language.p for language in by_length.values()]) / 2
    model = knowing(tiny.Language(texts, p))
    expected = {}
    for label in ("b", "c", "ab", "ca"):
        language = by_length[3 + len(label)]
        around = {0: "a", 1 + len(label): "b", 2 + len(label): "c"}
        score = sum(math.log(conditional(language, {}, {at: letter})) for at, letter in around.items())
        score += sum(math.log(conditional(language, around, {1 + at: letter})) for at, letter in enumerate(label))
        expected[label] = math.exp(score)
    (found,) = model.decide("a[s]bc", {"s": list(expected)})
    total = sum(expected.values())
    assert found.probabilities["s"] == pytest.approx({k: v / total for k, v in expected.items()}, abs=1e-5)
    assert found.nfe == 1
    exact = dict.fromkeys(expected, 0.0)  # by the chain rule: the slot and the text after it, within a length
    for label in expected:
        tail = {1 + at: letter for at, letter in enumerate(f"{label}bc")}
        exact[label] = conditional(by_length[3 + len(label)], {0: "a"}, tail)
    (found,) = model.decide("a[s]bc", {"s": list(expected)}, method="likelihood")
    assert found.probabilities["s"] == pytest.approx({k: v / sum(exact.values()) for k, v in exact.items()}, abs=1e-5)


def test_the_length_head_counts_for_slots_whose_labels_differ_in_length() -> None:
    """Of two slots, the lengths of the other one are summed out; labels of one length need no pass for it."""
    model = fresh(paired=True)
    head = {size: -abs(size - 5.0) for size in range(40)}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "redraft.generation.slot_scores.length_scores",
            lambda model, heads, longest: [[head.get(n - len(h), -50.0) for n in range(longest + 1)] for h in heads],
        )
        states = [State(SlotTemplate.of(model, "[x]-[y]", labels).text({}), {}) for labels in (TWO, ONE)]
        found = _length_log_p(model, states[:1], lambda: None)
        assert not _length_log_p(model, states[1:], lambda: None)
    given = 2  # "-" and the end
    for count in (1, 3):
        others = [math.exp(head[given + count + other]) / 2 for other in (1, 2)]
        assert found[0, 0, count] == pytest.approx(math.log(sum(others)))
    assert set(found) == {(0, 0, 1), (0, 0, 3), (0, 1, 1), (0, 1, 2)}
    assert [model.decide("[x]-[y]", labels, prompt="a")[0].nfe for labels in (TWO, ONE)] == [2, 1]


TWO, ONE = {"x": ["a", "bcd"], "y": ["e", "fg"]}, {"x": ["a", "b"], "y": ["ef", "gh"]}


def test_calibration_divides_by_the_prior_of_the_empty_text() -> None:
    model = fresh()
    plain, empty, calibrated = (
        model.decide(TEXT, LABELS, [row], calibrate=calibrate)[0]
        for row, calibrate in ((ROWS[1], False), ({"text": ""}, False), (ROWS[1], True))
    )
    for name in LABELS:
        ratio = {label: p / empty.probabilities[name][label] for label, p in plain.probabilities[name].items()}
        expected = {label: value / sum(ratio.values()) for label, value in ratio.items()}
        assert calibrated.probabilities[name] == pytest.approx(expected, abs=1e-4)
    assert plain.nfe == calibrated.nfe == 1


@pytest.mark.parametrize("by", ["sum", "token"])
def test_an_autoregressive_model_ranks_by_likelihood(by: str) -> None:
    """The same as ``Model.rank`` of the continuations, where the slot ends the text."""
    for paired in (False, True):
        model = fresh("autoregressive", paired)
        labels = ["a", "bcd", "xy"]
        text, prompt = ("[label]", "the cat") if paired else ("the cat[label]", "")
        (found,) = model.decide(text, {"label": labels}, prompt=prompt)
        ranked = model.rank("the cat", labels)
        expected = {one.option: math.exp(one.score - ranked[0].score) for one in ranked}
        total = sum(expected.values())
        assert found.probabilities["label"] == pytest.approx({k: v / total for k, v in expected.items()}, abs=1e-5)
        assert found.labels["label"] == ranked[0].option and found.nfe == 1


def test_an_autoregressive_model_decides_from_left_to_right() -> None:
    """Each label counts with the text up to the next slot, given the labels before it."""
    model = fresh("autoregressive", True, prompt_encoder=False)
    (found,) = model.decide("[x], so[y]!", {"x": ["a", "bc"], "y": ["d", "e"]}, prompt="the", method="chain")
    head = model.tokenizer.encode_prompt("the")

    def log_p(before: str, text: str, end: bool = False) -> float:
        ids = [*head, *letters(before + text), *([BYTES.eos_id] if end else [])]
        at = len(head) + len(letters(before))
        logits = likelihood.score(model.network, ids[:at], ids[at:], model.family.objective(), model.spec)
        return -logits.nats

    first = [log_p("", f"{x}, so") for x in ("a", "bc")]
    second = [log_p(f"{found.labels['x']}, so", f"{y}!", end=True) for y in ("d", "e")]
    for name, scores in (("x", first), ("y", second)):
        weights = [math.exp(score - max(scores)) for score in scores]
        assert list(found.probabilities[name].values()) == pytest.approx([w / sum(weights) for w in weights], abs=1e-4)
    assert found.nfe == 2


def test_the_rows_of_a_text_share_a_pass() -> None:
    """About 4,096 positions are a pass; the rows of a text are split only if they alone have more."""
    row: list[int | None] = [1] * 100
    assert [len(part) for part in parts([row] * 100)] == [40, 40, 20]
    assert [len(part) for part in parts([row] * 100, [n // 30 for n in range(100)])] == [30, 30, 40]
    assert [len(part) for part in parts([row] * 100, [n // 50 for n in range(100)])] == [40, 10, 40, 10]
    assert list(parts([], [])) == []


FAMILIES = [("masked", True, "auto"), ("masked", False, "chain"), ("masked", False, "likelihood")]
FAMILIES += [
    ("autoregressive", False, "auto"),
    ("sedd", False, "auto"),
    ("expand", True, "auto"),
    ("hybrid", False, "auto"),
]


@pytest.mark.parametrize(("family", "paired", "method"), FAMILIES)
def test_a_decision_does_not_depend_on_the_other_rows(family: str, paired: bool, method: str) -> None:
    model = fresh(family, paired)
    text, prompt = ("Mood: [mood] Kind: [kind].", "{text}") if paired else (TEXT, "")
    rows = ROWS[:4] if method == "likelihood" else ROWS
    every = model.decide(text, LABELS, rows, prompt=prompt, method=method, calibrate=True)  # type: ignore[arg-type]
    for number in (0, len(rows) // 2, len(rows) - 1):
        (alone,) = model.decide(text, LABELS, [rows[number]], prompt=prompt, method=method, calibrate=True)  # type: ignore[arg-type]
        same = every[number]
        assert (alone.labels, alone.text, alone.nfe) == (same.labels, same.text, same.nfe)
        for name, own in alone.probabilities.items():
            assert same.probabilities[name] == pytest.approx(own, abs=1e-4)
            assert sum(own.values()) == pytest.approx(1)


def test_other_families_rank_by_their_bound() -> None:
    (found,) = fresh("uniform").decide("ab[x]", {"x": ["c", "d"]}, samples=4)
    assert sum(found.probabilities["x"].values()) == pytest.approx(1) and found.nfe >= 8
    for family, method in (("uniform", "one_pass"), ("autoregressive", "one_pass"), ("block", "chain")):
        with pytest.raises(UserError, match="Use method 'likelihood'"):
            fresh(family).decide("ab[x]", {"x": ["c", "d"]}, method=method)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "labels", "words"),
    [
        ("no slot", {}, "no slot"),
        ("[mood]", {}, r"\[mood\] has no labels"),
        ("[mod]", {"mood": ["a", "b"]}, "Did you mean 'mood'"),
        ("[mood]", {"mood": ["a", "b"], "kind": ["a", "b"]}, r"no slot \[kind\]"),
        ("[mood] [mood]", {"mood": ["a", "b"]}, "occurs twice"),
        ("[mood]", {"mood": ["a"]}, "fewer than two"),
        ("[mood]", {"mood": ["a", "b", "a"]}, "label 'a' of the slot .mood. occurs twice"),
        ("[mood]", {"mood": ["a", " "]}, "no text"),
        ("[mood]", {"mood": ["a", "\ud800"]}, "not valid Unicode"),
        ("{gone} [mood]", {"mood": ["a", "b"]}, "no field 'gone'"),
        ("x" * 3000 + "[mood]", {"mood": ["a", "b"]}, "does not fit"),
        ("".join(f"[s{n}]" for n in range(11)), {f"s{n}": ["a", "b"] for n in range(11)}, "2,048 combinations"),
    ],
)
def test_mistakes_are_named(text: str, labels: dict[str, list[str]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fresh().decide(text, labels, method="likelihood")


def test_a_label_that_the_vocabulary_can_not_express_is_named() -> None:
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "good": 1, "bad": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(backend)
    model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size, dim=32), False)
    assert model.decide("good [x]", {"x": ["good", "bad"]})[0].labels["x"] in ("good", "bad")
    with pytest.raises(UserError, match="can't express the label 'ugly'"):
        model.decide("good [x]", {"x": ["good", "ugly"]})


def test_calibration_needs_something_to_leave_out() -> None:
    model = fresh()
    with pytest.raises(UserError, match="has none"):
        model.decide("ab[x]", {"x": ["c", "d"]}, calibrate=True)
    with pytest.raises(UserError, match="unknown option 'methd'"):
        model.decide("ab[x]", {"x": ["c", "d"]}, methd="chain")  # type: ignore[call-arg]
    assert model.decide("ab[x]", {"x": ["c", "d"]}, []) == []
