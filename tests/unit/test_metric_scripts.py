"""Scores of texts in any script: marks belong to letters, and words are not only what spaces separate."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import pytest

from redraft.compare.prepared import TaskName
from redraft.errors import UserError
from redraft.metrics import with_options
from redraft.metrics.accuracy import Accuracy
from redraft.metrics.bleu import Bleu
from redraft.metrics.chrf import Chrf
from redraft.metrics.diversity import Diversity
from redraft.metrics.exact_match import ExactMatch
from redraft.metrics.f1 import F1
from redraft.metrics.rouge import Rouge
from redraft.metrics.shared import scripts
from redraft.tasks import infer_task


@dataclass
class Row:
    prompt: str | None
    target: str
    task: str = ""


SCRIPTS = {
    "zh": ["我的朋友，我非常喜欢这个数字。", "今天天气很好，我们去公园吧。"],
    "ja": ["私の友達はこの数字がとても好きです。", "今日は天気がいいので公園に行きましょう。"],
    "th": ["เพื่อนของฉันชอบตัวเลขนี้มาก", "วันนี้อากาศดีเราไปสวนสาธารณะกัน"],
    "hi": ["मेरे दोस्त को यह संख्या बहुत पसंद है", "आज मौसम अच्छा है चलो पार्क चलें"],
    "de": ["Meine Freundin mag diese Zahl sehr", "Heute ist das Wetter schön, gehen wir"],
}
ENGLISH = ["My friend likes this number very much", "The weather is fine today, let us go to the park"]
JAPANESE = "ja-mecab" if importlib.util.find_spec("MeCab") and importlib.util.find_spec("ipadic") else "char"
EXPECTED = {"zh": "zh", "ja": JAPANESE, "th": "char", "hi": "13a", "de": "13a"}


@pytest.mark.parametrize("language", SCRIPTS)
def test_a_translation_into_any_script_is_one_and_is_scored_in_its_script(language: str) -> None:
    rows = [Row(f"{a} {n}", f"{b}{n}") for n in range(9) for a, b in zip(ENGLISH, SCRIPTS[language], strict=True)]
    choice = infer_task(rows)
    bleu = choice.task.metrics()[0]
    assert choice.name == "translation" and isinstance(bleu, Bleu)
    assert bleu.tokenize == EXPECTED[language] and f"|tok:{EXPECTED[language]}|" in bleu.signature
    targets = [row.target for row in rows]
    sacrebleu = pytest.importorskip("sacrebleu")
    nearly = [f"{text[:-3]}{text[-2:]}" for text in targets]
    expected = sacrebleu.corpus_bleu(nearly, [targets], tokenize=EXPECTED[language]).score
    assert bleu.score(nearly, targets).value == pytest.approx(expected) and expected > 20
    # A study that is read again scores in the same way.
    again = TaskName.of(choice).choice()
    assert [metric.signature for metric in again.task.metrics()] == [
        metric.signature for metric in choice.task.metrics()
    ]


def test_short_answers_and_labels_are_told_by_their_words() -> None:
    questions = [Row(f"这本书的作者是谁，他是在哪一年出生的呢？{n}", f"作者{n}号") for n in range(40)]
    assert infer_task(questions).name == "qa"
    assert infer_task([Row(f"我觉得这部电影{n}", ["很好", "不好"][n % 2]) for n in range(40)]).name == "classification"


WORDS = [  # different words, or the same in NFC and NFD
    ("लड़की", "लड़का", False),
    ("की", "को", False),
    ("كَتَبَ", "كُتِبَ", False),
    ("நீ", "நா", False),
    ("ก่", "ก้", False),
    ("café", "cafe\u0301", True),
    ("が", "か\u3099", True),
    ("한국", "\u1112\u1161\u11ab\u1100\u116e\u11a8", True),
]


@pytest.mark.parametrize("one, other, same", WORDS, ids=lambda value: ascii(value))
def test_marks_belong_to_words_and_composition_does_not_count(one: str, other: str, same: bool) -> None:
    for metric in (Rouge("rouge1"), Rouge("rougeL"), F1(), ExactMatch(), Accuracy()):
        assert metric.score([one], [[other]]).value == (100.0 if same else 0.0)
        assert metric.score([one], [[one]]).value == 100.0
    if same:
        for whole in (Chrf(), Bleu("char")):
            assert whole.score([one * 4], [[other * 4]]).value == pytest.approx(100.0)


def test_words_and_characters() -> None:
    assert scripts.words("Hello, wörld_2! 3.5") == ["Hello", "wörld", "2", "3", "5"]
    assert scripts.words("मेरे दोस्त") == ["मेरे", "दोस्त"] and scripts.words("می‌خواهم") == ["می‌خواهم"]
    assert scripts.split("a-b 我喜欢 c") == ["a-b", "我", "喜", "欢", "c"]
    assert scripts.count("two words") == 2 and scripts.count("我喜欢这个数字吗") == 5
    assert F1().score(["我喜欢猫"], ["我喜欢狗"]).value == 75.0
    assert Diversity("distinct", 1).score(["我我我我"], ["x"]).value == 25.0


def test_options_of_metrics() -> None:
    rows = [Row(f"{ENGLISH[0]} {n}", f"{SCRIPTS['zh'][0]}{n}") for n in range(4)]
    metrics = infer_task(rows, "translation", {"bleu.tokenize": "intl", "chrf.beta": 3}).task.metrics()
    assert "tok:intl" in metrics[0].signature and "beta:3" in metrics[1].signature
    for options, message in (
        ({"blue.tokenize": "zh"}, "no metric 'blue'. Did you mean 'bleu'"),
        ({"bleu.tokenise": "zh"}, "no option 'tokenise'. Did you mean 'tokenize'"),
        ({"bleu.tokenize": "charr"}, "no tokenizer 'charr'. Did you mean 'char'"),
        ({"chrf.order": "x"}, "wrong type. For example chrf.order=6"),
        ({"bleu": "zh"}, "has no option ''"),
    ):
        with pytest.raises(UserError, match=message):
            infer_task(rows, "translation", options)
    mixed = [Row("a b c", "d e f", "one-translation"), *(Row("x y", "1 2", "two") for _ in range(3))]
    with pytest.raises(UserError, match="no task of the mixture"):
        infer_task(mixed, None, {"rouge.x": 1})
    assert with_options([Chrf()], {}) == [Chrf()]
