"""``redraft evaluate --task BENCHMARK``: own data in its columns, choice, infilling, several attempts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redraft import sandbox
from tests.cli.door import Redraft, write

PROBLEMS = [{"question": f"the cat sat {n}", "rationale": f"a dog ran {n}", "answer": str(n)} for n in range(12)]


@pytest.fixture
def gsm(tmp_path: Path) -> Path:
    write(tmp_path / "mine.train.jsonl", PROBLEMS[:6])
    write(tmp_path / "mine.test.jsonl", PROBLEMS[6:])
    return tmp_path / "mine"


def test_a_model_of_plain_text_gets_examples_and_one_of_pairs_the_question(redraft: Redraft, gsm: Path) -> None:
    given = ("--task", "gsm8k", "--data", gsm, "--max-new-tokens", 4, "--out", gsm.parent / "texts", "--json")
    for model, shots in (("base-masked", 4), ("translate-en-de-masked", 0)):
        found = redraft("evaluate", "--model", model, *given).json
        assert found["benchmark"]["shots"] == shots and found["benchmark"]["version"] == 1
        prompt = json.loads((gsm.parent / "texts").read_text().splitlines()[0])["prompt"]
        assert prompt.count("Question: ") == (5 if shots else 0) and prompt.count("#### ") == shots
        assert list(found["metrics"]) == ["last_number", "final_answer"]
        assert found["likelihood"]["bits_per_byte"] > 0 and found["temperature"] == 0
    found = redraft("evaluate", "--model", "translate-en-de-masked", *given, "--shots", 1).json
    assert found["benchmark"]["shots"] == 1


def test_several_attempts_have_pass_at_k(redraft: Redraft, gsm: Path) -> None:
    given = ("evaluate", "--model", "base-autoregressive", "--task", "gsm8k", "--data", gsm, "--max-new-tokens", 4)
    found = redraft(*given, "--attempts", 3, "--temperature", 1, "--json", "--out", gsm.parent / "texts").json
    assert {"pass_at_1", "pass_at_3"} <= set(found["metrics"]) and found["attempts"] == 3
    assert found["tokens_per_pass"] == 1  # by definition, for autoregression
    assert found["metrics"]["pass_at_1"]["value"] == pytest.approx(found["metrics"]["last_number"]["value"])
    assert len((gsm.parent / "texts").read_text().splitlines()) == 18
    answer = redraft(*given, "--attempts", 3)
    assert answer.code == 2 and "--attempts" in answer.err
    answer = redraft(*given, "--attempts", 3, "--votes", 3, "--temperature", 1)
    assert answer.code == 2 and "combined" in answer.err


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_the_likeliest_option_is_the_answer(redraft: Redraft, tmp_path: Path, family: str) -> None:
    rows = [
        {"sentence1": "the cat", "sentence2": "a dog", "label": label} for label in ("entailment", "not_entailment")
    ]
    rows = [{**row, "sentence1": f"{row['sentence1']} {n}"} for n, row in enumerate(rows)]
    write(tmp_path / "rte.test.jsonl", rows)
    given = ("evaluate", "--model", f"base-{family}", "--task", "glue:rte", "--data", tmp_path / "rte", "--shots", 0)
    found = redraft(*given, "--out", tmp_path / "texts", "--json").json
    assert found["benchmark"]["answering"] == "choose"
    texts = [json.loads(line)["text"] for line in (tmp_path / "texts").read_text().splitlines()]
    assert set(texts) <= {"entailment", "not_entailment"}
    found = redraft(*given, "--answering", "generate", "--max-new-tokens", 3, "--json").json
    assert found["benchmark"]["answering"] == "generate"
    answer = redraft(*given[:4], "glue", *given[5:])
    assert answer.code == 2 and "several parts" in answer.err and "glue:cola" in answer.err


@pytest.mark.skipif(not sandbox.available(), reason="programs can't be isolated on this machine")
@pytest.mark.parametrize(("family", "how"), [("masked", "infill"), ("autoregressive", "generate")])
def test_a_gap_is_filled_or_continued(redraft: Redraft, tmp_path: Path, family: str, how: str) -> None:
    row = {
        "prompt": "def f():\n",
        "canonical_solution": "    return 1\n",
        "suffix": "\n# end\n",
        "entry_point": "f",
        "test": "def check(f): assert f() == 1",
    }
    write(tmp_path / "gaps.jsonl", [row])
    given = ("--task", "humaneval_infilling:single-line", "--data", tmp_path / "gaps.jsonl", "--max-new-tokens", 3)
    found = redraft("evaluate", "--model", f"base-{family}", *given, "--out", tmp_path / "texts", "--json").json
    assert found["benchmark"]["answering"] == how and set(found["metrics"]) == {"passed", "text_match"}
    text = json.loads((tmp_path / "texts").read_text())["text"]
    assert text.startswith(row["prompt"]) and text.endswith(row["suffix"])


def test_rows_that_are_training_rows_are_counted(redraft: Redraft, gsm: Path, tmp_path: Path) -> None:
    write(tmp_path / "mine.test.jsonl", [PROBLEMS[0], *PROBLEMS[6:8]])  # the first is a training row
    given = ("evaluate", "--model", "translate-en-de-masked", "--task", "gsm8k", "--max-new-tokens", 2, "--json")
    answer = redraft(*given, "--data", gsm)
    found = answer.json["contamination"]
    assert (found["duplicates"], found["rows"], found["train_rows"]) == (1, 3, 6) and "1 of 3 rows" in answer.err
    write(tmp_path / "other.jsonl", PROBLEMS[6:])
    found = redraft(*given, "--data", gsm, "--against", tmp_path / "other.jsonl").json["contamination"]
    assert found["duplicates"] == 2


def test_perplexity_against_entropy_over_temperatures(redraft: Redraft, tmp_path: Path) -> None:
    write(
        tmp_path / "texts.jsonl",
        [{"text": f"the cat sat on a mat {n} and the dog ran to all houses"} for n in range(4)],
    )
    given = ("evaluate", "--model", "base-masked", "--data", tmp_path / "texts.jsonl", "--max-new-tokens", 6)
    judged = ("--judge", "base-autoregressive", "--temperatures", "0.01,0.5")
    found = redraft(*given, *judged, "--json").json["frontier"]
    assert [point["temperature"] for point in found["points"]] == [1.0, 0.01, 0.5]
    assert found["human"]["temperature"] is None and found["human"]["log_perplexity"] > 0
    answer = redraft(*given, "--temperatures", "0.5")
    assert answer.code == 2 and "--judge" in answer.err


def test_what_does_not_fit_a_benchmark_is_an_error(redraft: Redraft, gsm: Path) -> None:
    evaluate = ("evaluate", "--model", "base-masked", "--task")
    for more, says in (
        (("gsm8k", "--data", gsm, "--input", "question", "--target", "answer"), "knows its columns"),
        (("gsm8k", "--data", gsm, "--answering", "choose"), "no options"),
        (("gsm8k",), "reasoning/gsm8k"),  # its own data are not here
        (("gsm8", "--data", gsm), "gsm8k"),
        (("qa",), "No data"),
    ):
        answer = redraft(*evaluate, *more)
        assert answer.code == 2 and says in answer.err, answer.err
    for verb in ("tune", "compare"):
        model = ("--model", "base-masked") if verb == "tune" else ()
        columns = ("--input", "question", "--target", "answer")
        answer = redraft(verb, *model, "--task", "gsm8k", "--data", gsm, *columns, "--out", gsm.parent / verb)
        assert answer.code == 2, answer.err


def test_benchmarks_are_listed(redraft: Redraft) -> None:
    found = redraft("models", "--benchmarks", "--tasks", "--json").json
    assert "gsm8k" in {one["name"] for one in found["benchmarks"]} and "qa" in {one["name"] for one in found["tasks"]}
    assert "sudoku" in redraft("models", "--benchmarks").out
