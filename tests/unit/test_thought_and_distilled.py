"""Problems with their solutions: generated multiplication, final answers, votes, and writing thought by thought."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from redraft.canvas import make_canvas
from redraft.data.columns import Columns
from redraft.data.examples import Example, load, read
from redraft.data.sources.multiplication import Multiplication
from redraft.errors import UserError
from redraft.evaluation.votes import majority_vote
from redraft.generation.loop import Loop, Method
from redraft.metrics.final_answer import FinalAnswer, final_answer
from redraft.samplers.thought import Thought
from redraft.tasks import infer_task, profile_data
from redraft.types import Forward
from tests.tiny import VOCABULARY, changed, family

CHAINS = Columns(input="question", target="rationale+answer")


def number(digits: str) -> int:
    return int(digits.replace(" ", "")[::-1])


# ---- generated multiplication


def test_the_solutions_add_up() -> None:
    for row in list(Multiplication().read("multiplication:3x4:200#train")):
        a, b = map(number, row.values["question"].split("*"))
        *parts, last = row.values["rationale"].split(" + ")
        total, partials = 0, []
        for part in parts:
            partial, _, running = part.partition(" ( ")
            partials.append(number(partial))
            total += partials[-1]
            assert not running or number(running.rstrip(" )")) == total
        partials.append(number(last))
        assert partials == [a * int(digit) * 10**place for place, digit in enumerate(str(b)[::-1])]
        assert number(row.values["answer"]) == a * b and 100 <= a < 1000 <= b < 10_000


def test_the_splits_are_the_same_everywhere_and_share_no_problem() -> None:
    few, many = (load(f"multiplication:3x3:{rows}", CHAINS) for rows in (50, 150))
    assert [len(part) for _, part in many.items()] == [150, 1000, 1000]
    assert [e.prompt for e in few.train] == [e.prompt for e in many.train][:50]
    assert [e.target for e in few.test] == [e.target for e in many.test]
    problems = [{e.prompt for e in part} for _, part in many.items()]
    assert sum(map(len, problems)) == len(set.union(*problems)) == 2150


def test_rows_are_in_the_form_of_the_published_set() -> None:
    root = Path(os.environ.get("REDRAFT_DATA") or Path(__file__).parents[3] / "shared" / "data")
    file = root / "reasoning" / "mult-4x4.test.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"no {file} (set REDRAFT_DATA)")
    from redraft.data.sources.multiplication import _solution

    with gzip.open(file, "rt") as lines:
        for row in map(json.loads, list(lines)[:100]):
            a, b = map(number, row["question"].split("*"))
            assert _solution(a, b, 4, 4) == {key: row[key] for key in ("question", "rationale", "answer")}


@pytest.mark.parametrize(
    "name", ["multiplication:4", "multiplication:0x2", "multiplication:1x1", "multiplication:2x2x2"]
)
def test_impossible_sets_are_errors_for_people(name: str) -> None:
    with pytest.raises(UserError):
        read(name, CHAINS)


# ---- answers


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48 / 2 = 24\n48 + 24 = 72", "48+24=72"),
        ("so it is 3\n#### 1,250.50", "1250.5"),
        ("a\n$72.\n", "72"),
        ("1 0 + 2\n6 5 1", "651"),
        ("#### 7\nand more", "7"),
        ("100", "100"),
        ("", ""),
    ],
)
def test_final_answers(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_no_answer_is_never_right() -> None:
    assert FinalAnswer().score(["", "x\n1", "y\n2"], ["", "z\n1", "z\n3"]).value == pytest.approx(100 / 3)


def test_the_majority_wins_and_the_first_of_equals() -> None:
    texts = ["a\n1", "b\n2", "", "c\n2", "d\n1", "e\n2"]
    assert majority_vote(texts) == "b\n2"
    assert majority_vote(texts[:2]) == "a\n1"
    assert majority_vote(["", ""]) == ""


def test_chains_of_thought_are_known_by_their_looks() -> None:
    chains = load("multiplication:3x3:50", CHAINS).train
    assert infer_task(list(chains)).name == "reasoning"
    answers = [replace(e, target=e.target.splitlines()[-1]) for e in chains]
    assert profile_data(answers).concluded == 0
    assert infer_task([Example("how many?", f"There are many.\n#### {n}", "") for n in range(9)]).name == "reasoning"


# ---- thought by thought

A, B, C = VOCABULARY.letters


@dataclass
class Sure:
    """Knows the text, and is surer of later positions than of earlier ones."""

    text: list[int]

    def __call__(self, request: Forward, store: object = None) -> Tensor:
        want = request.targets[request.targets >= 0]
        logits = torch.zeros(len(want), VOCABULARY.vocab_size)
        logits[torch.arange(len(want)), torch.tensor(self.text)[want]] = 3.0 + 0.1 * want
        return logits


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_thought_is_finished_before_the_next_and_takes_no_more_than_its_steps(steps: int) -> None:
    text = [A, A, B, A, C, B, B, C, A, B, A, B]  # a prompt of one; thoughts end with C
    spec = changed(family("masked")[0], segment_end_ids=(C,), length_head=False, prompt_encoder=False)
    canvas = make_canvas([[A, *[None] * 11]], [1], spec, seeds=[0])
    written = [step.pos.tolist() for step in Loop({"main": Sure(text)}, Method(Thought(steps=steps)), spec).run(canvas)]
    assert canvas.ids[0].tolist() == text
    thoughts = [range(1, 5), range(5, 8), range(8, 12)]
    passes = [-(-len(thought) // -(-len(thought) // steps)) for thought in thoughts]
    assert len(written) == sum(passes)
    assert [sorted(sum(written[sum(passes[:n]) : sum(passes[: n + 1])], [])) for n in range(3)] == list(
        map(list, thoughts)
    )
