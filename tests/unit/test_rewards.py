"""Rewards: values that follow from their definitions, and no text that breaks one."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft import sandbox
from redraft.errors import UserError
from redraft.registry import names
from redraft.rewards import Answer, build_reward, scores
from redraft.rewards.countdown import evaluate
from redraft.rewards.shared.answers import number

COUNTDOWN = {"numbers": [3, 5, 7, 2], "target": 24}
SUDOKU = {"puzzle": "1.3. .... .... ..21", "solution": "1234 3412 2143 4321"}
SCHEMA = (
    '{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}, "additionalProperties": false}'
)
ROWS: dict[str, tuple[str, Mapping[str, Any]]] = {  # reference and row with which every reward can be computed
    "countdown": ("", COUNTDOWN),
    "coloring": ("", {"nodes": 3, "edges": [[0, 1], [1, 2]], "colors": 3}),
    "sudoku": ("", SUDOKU),
    "unit_tests": ("", {"tests": ["assert f(2) == 4"]}),
    "json_schema": ("", {"schema": SCHEMA}),
}


def reward(name: str, text: str, reference: str = "", row: Mapping[str, Any] | None = None, **options: Any) -> float:
    made = build_reward(name, options)
    made.ready()
    assert not made.problem(reference, row or {})
    return scores(made, [Answer("", text, reference, row or {})])[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(3 + 5) * (7 - 2) - 16", 0.0),  # a number that is not given
        ("<answer>7 * 2 + 5 * 3 - 5</answer>", 0.0),  # one twice
        ("7 * 3 + 5 - 2", 1.0),
        ("So we try:\n7 * 3 + 5 - 2 = 24", 1.0),
        ("<answer>3*7+(5-2)</answer> is it", 1.0),
        ("2 * 3 + 5 + 7", 0.1),
        ("3 / (5 - 5)", 0.0),
        ("7 + 5 / (3 - 2) + ", 0.0),
        ("7 ** 3 + 5 - 2", 0.0),
        ("7 // 3 + 5 - 2", 0.0),
        ("__import__('os')", 0.0),
        ("", 0.0),
    ],
)
def test_countdown(text: str, value: float) -> None:
    assert reward("countdown", text, row=COUNTDOWN) == value


def test_expressions_are_computed_in_fractions() -> None:
    found = evaluate("8 / (3 - 8 / 3)")  # 24 from 3, 3, 8, 8, which no decimal number gives
    assert found is not None and found[1] == 24
    for text, value in (("1 / 3 - 1", Fraction(-2, 3)), ("1 / (2 - 2)", None), ("8 - 2 - 1", 5), ("8 / 2 / 2 * 3", 6)):
        found = evaluate(text)
        assert found is not None and found[1] == value, text
    for wrong in ("", "(1", "1)", ")1(", "()", "1 2", "1 (2)", "(1) 2", "+ 1", "1 + + 2", "(" * 400 + "1" + ")" * 400):
        assert evaluate(wrong) is None, wrong


def test_sudoku_counts_the_empty_cells() -> None:
    assert reward("sudoku", "1234341221434321", row=SUDOKU) == 1.0
    assert reward("sudoku", "<answer>9294 3412 2143 4399</answer>", row=SUDOKU) == 1.0 - 1 / 12 + 1 / 12
    assert reward("sudoku", "1234", row=SUDOKU) == pytest.approx(2 / 12)
    assert reward("sudoku", "1234", row=SUDOKU, solved=True) == 0.0
    assert reward("sudoku", "no", row=SUDOKU) == 0.0
    assert reward("sudoku", "1234341221434321", "1234341221434321", {"puzzle": SUDOKU["puzzle"]}) == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("... so 6 * 7.\n#### 42", 1.0),
        ("<answer> $42.00 </answer>", 1.0),
        ("The answer is 42.", 1.0),
        ("84/2", 1.0),
        ("42\n#### 41", 0.0),
        ("1,042", 0.0),
        ("forty-two", 0.0),
        ("", 0.0),
    ],
)
def test_numbers_are_compared_exactly(text: str, value: float) -> None:
    assert reward("numeric", text, "6 * 7 = <<6*7=42>>42\n#### 42") == value


def test_numbers_in_texts() -> None:
    for text, value in (("$1,250.50.", "1250.5"), ("-5", "-5"), ("3-5", "5"), ("5.0%", "5"), ("3/4", "3/4")):
        assert number(text) == Fraction(value), text
    assert number("1/0") is None and number("none") is None and number("9" * 99) is None


def test_exact() -> None:
    assert reward("exact", " Ja. ", "Ja.") == 1.0
    assert reward("exact", "I think\n<answer>Ja.</answer>", "Ja.") == 1.0
    assert reward("exact", "e\u0301", "\u00e9") == 1.0
    assert reward("exact", "ja.", "Ja.") == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', 1.0),
        (' {"a":\n1} ', 1.0),
        ('{"a": 1.5}', 0.0),
        ('{"a": 1, "b": 2}', 0.0),
        ('{"a": 1, "a": 1}', 0.0),
        ('{"a": NaN}', 0.0),
        ('{"a": 1} and more', 0.0),
        ('{"a": 1', 0.0),
        ("[" * 100_000, 0.0),
        ('{"a": ' + "9" * 5000 + "}", 0.0),
        ('{"\ud800": 1}', 0.0),
    ],
)
def test_json(text: str, value: float) -> None:
    pytest.importorskip("jsonschema_rs")
    assert reward("json_schema", text, schema=SCHEMA) == value
    assert reward("json_schema", text, row={"schema": SCHEMA}) == value


def test_json_that_was_cut_off_is_not_valid() -> None:
    assert build_reward("json_schema", {}).score(Answer("", "12", truncated=True)) == 0.0
    assert build_reward("json_schema", {}).score(Answer("", "12")) == 1.0
    with pytest.raises(UserError, match="Schema"):
        build_reward("json_schema", {"schema": '{"type": 3}'}).ready()


@pytest.mark.skipif(not sandbox.available(), reason="programs can't be isolated on this machine")
def test_unit_tests_judge_the_last_fenced_program() -> None:
    row = {"tests": ["assert f(2) == 4", "assert f(-3) == 9"]}
    right = "First:\n```python\nf = 1\n```\nBetter:\n```python\ndef f(x):\n    return x * x\n```\n"
    made = build_reward("unit_tests", {"seconds": 20.0})
    texts = [right, "def f(x): return 2 * x", "f = lambda x: x * x", "import os; os._exit(0)", "x = '''"]
    assert scores(made, [Answer("", text, "", row) for text in texts]) == [1.0, 0.0, 1.0, 0.0, 0.0]


def test_bleu_and_chrf_are_shares() -> None:
    pytest.importorskip("sacrebleu")
    for name in ("bleu", "chrf"):
        assert reward(name, "the cat sat on the mat", "the cat sat on the mat") == pytest.approx(1.0)
        assert 0 < reward(name, "the cat sat on a mat", "the cat sat on the mat") < 1
        assert reward(name, "", "the cat") == 0.0


@pytest.mark.parametrize("name", [name for name in names("rewards") if name not in ("unit_tests", "bleu")])
@settings(max_examples=60, deadline=None)
@given(text=st.text() | st.text('0123456789+-*/()<>{}[]",:. answer\n', max_size=60))
def test_no_text_breaks_a_reward(name: str, text: str) -> None:
    reference, row = ROWS.get(name, ("a reference of 42", {}))
    assert 0.0 <= build_reward(name, {}).score(Answer("prompt", text, reference, row)) <= 1.0


@pytest.mark.parametrize("name", ["exact", "numeric", "countdown", "coloring", "sudoku", "unit_tests", "bleu", "chrf"])
def test_rows_that_cannot_be_scored_are_seen_beforehand(name: str) -> None:
    assert build_reward(name, {}).problem("", {"other": 1})


# ---- functions of a file


def test_a_function_of_a_file_takes_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def long(text): return len(text)\n"
        "def every(prompt, text, reference, row): return float(row['n'] + len(prompt) + len(reference))\n"
        "def broken(text):\n    return 1 / 0\n"
        "def odd(score, text): return 1\n"
        "def endless(text): return float('inf')\n"
    )
    answer = Answer("ab", "abc", "d", {"n": 10}, "rows.jsonl:7")
    assert scores(build_reward(f"{file}:long", {}), [answer]) == [3.0]
    assert scores(build_reward(f"{file}:every", {}), [answer]) == [13.0]
    with pytest.raises(UserError, match=r"ZeroDivisionError.*line 4.*rows.jsonl:7.*'abc'"):
        scores(build_reward(f"{file}:broken", {}), [answer])
    with pytest.raises(UserError, match=r"rows.jsonl:7 is inf"):
        scores(build_reward(f"{file}:endless", {}), [answer])
    with pytest.raises(UserError, match="parameter 'score'"):
        build_reward(f"{file}:odd", {})
    with pytest.raises(UserError, match="Did you mean 'long'"):
        build_reward(f"{file}:lonk", {})
    with pytest.raises(UserError, match="There is no file"):
        build_reward(f"{tmp_path / 'other.py'}:long", {})


def test_an_unknown_reward_or_option_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="Did you mean 'countdown'"):
        build_reward("countdwn", {})
    with pytest.raises(UserError, match="Did you mean 'wrong'"):
        build_reward("countdown", {"wrongs": 1})
