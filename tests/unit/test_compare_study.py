"""A study's settings and grid, the result cache, and the task that is inferred."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from redraft.compare.grid import grid
from redraft.compare.study import Study
from redraft.errors import UserError
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.result_cache import ResultCache, digest
from redraft.registry import names
from redraft.tasks import infer_task, profile_data


def study(**fields: Any) -> Study:
    return Study(**{"data": "x.jsonl", **fields})


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"data": ""}, "needs data"),
        ({"families": ("masked",)}, "two different families"),
        ({"families": ("masked", "masked")}, "two different families"),
        ({"budget_tokens": 5, "minutes": 1.0}, "More than one budget"),
        ({"seeds": 0}, "seeds = 0"),
        ({"steps": (0, 4)}, "steps = 0"),
        ({"margin": -1.0}, "margin = -1.0"),
        ({"dropouts": (0.1, 1.0)}, "dropouts = 1.0"),
        ({"dropouts": (0.1, 0.1)}, "twice"),
        ({"dropouts": (0.1,), "train": {"dropout": 0.2}}, "twice"),
        ({"constraint": {"regex": "("}}, "regular expression"),
        ({"bases": {"latent": "x"}}, "not compared"),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        study(**fields)


def test_a_study_is_read_from_toml_and_options_win(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('data = "a.jsonl"\nsteps = [2, 4]\nseeds = 3\n[train]\nlr = 0.001\n')
    read = Study.load(path, {"seeds": 1, "margin": None})
    assert (read.steps, read.seeds, read.train) == ((2, 4), 1, {"lr": 0.001})
    path.write_text('data = "a.jsonl"\nstep = [2]\n')
    with pytest.raises(UserError, match="steps"):
        Study.load(path, {})


def test_autoregressive_models_get_their_own_best_ways() -> None:
    paired = grid(study(), "autoregressive", causal=True, predicts_length=False, paired=True, longest=20)
    assert [s.label for s in paired] == ["autoregressive, greedy", "autoregressive, beam 4"]
    open_ended = grid(study(), "autoregressive", causal=True, predicts_length=False, paired=False, longest=20)
    assert {s.temperature for s in open_ended} == {1.0} and {s.top_p for s in open_ended} == {1.0, 0.9}


def test_the_grid_is_steps_by_sampler_by_block_by_candidates() -> None:
    wanted = study(steps=(2, 8, 64), samplers=("confidence", "threshold"), blocks=(0, 4), candidates=(1, 3))
    found = grid(wanted, "masked", causal=False, predicts_length=True, paired=True, longest=16)
    assert len({s.id for s in found}) == len(found)
    assert {s.steps for s in found if s.sampler == "confidence"} == {2, 8}  # 64 steps for 16 tokens make no sense
    assert len([s for s in found if s.sampler == "confidence"]) == 2 * 2 * 2
    assert len([s for s in found if s.sampler == "threshold"]) == 2 * 2  # it has blocks but no steps
    blind = grid(wanted, "masked", causal=False, predicts_length=False, paired=True, longest=16)
    assert {s.candidates for s in blind} == {1}


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(UserError, match="confidence"):
        grid(
            study(samplers=("confidense",), steps=(2,)),
            "masked",
            causal=False,
            predicts_length=True,
            paired=True,
            longest=9,
        )


def test_labels_are_for_people() -> None:
    setting = DecodingConfig("confidence", {"steps": 12, "block": 0}, candidates=4, family="masked")
    assert setting.label == "masked, 12 steps, 4 lengths"
    sampled = DecodingConfig("ancestral", {"steps": 1}, top_p=0.9, family="masked")
    assert sampled.label == "masked, ancestral, 1 step, top-p 0.9"


def test_cells_come_back_and_unfinished_ones_do_not_count(tmp_path: Path) -> None:
    cells, key = ResultCache(tmp_path), {"kind": "texts", "seed": 1, "options": {"b": 2, "a": 1}}
    assert cells.get(key) is None
    cells.put(key, {"texts": ["ä"]})
    assert cells.get({"options": {"a": 1, "b": 2}, "seed": 1, "kind": "texts"}) == {"texts": ["ä"]}
    assert cells.get({**key, "seed": 2}) is None
    whole = cells.path(key).read_text()
    cells.path(key).write_text(whole[: len(whole) // 2])
    assert cells.get(key) is None
    assert [p.name for p in cells.folder.iterdir()] == [cells.path(key).name]  # no temporary file is left


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        ResultCache(tmp_path / "file")


def test_digest_depends_on_values_not_on_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": (2,), "a": 1}) != digest({"a": 1, "b": [3]})
    assert json.dumps(digest("ü"))


@dataclass
class Row:
    prompt: str | None
    target: str
    task: str = ""


LONG = "word " * 80
SHAPES = {
    "text": [Row(None, f"a text {i}") for i in range(20)],
    "classification": [Row(f"how good was film {i} in the end", ["good", "bad"][i % 2]) for i in range(60)],
    "reasoning": [Row(f"how much is {i} and 2", f"{i} and 2 is {i + 2}\n{i + 2}") for i in range(60)],
    "qa": [Row(f"who wrote the book number {i} of the long list", f"Author {i}") for i in range(60)],
    "summarization": [Row(LONG + str(i), f"the short account of long text number {i}") for i in range(60)],
    "translation": [Row(f"the house number {i} is red", f"das Haus Nr {i}x ist rot") for i in range(60)],
    "mixture": [Row(f"how good was film {i}", ["good", "bad"][i % 2], "one") for i in range(60)]
    + [Row(f"the house number {i} is red", f"das Haus Nr {i}x ist rot", "translation-de") for i in range(60)],
    "generation": [Row(f"the house number {i} is red", f"is the house number {i} red or blue") for i in range(60)],
}


@pytest.mark.parametrize("task", names("tasks"))
def test_every_task_is_recognised_by_the_shape_of_its_data(task: str) -> None:
    choice = infer_task(SHAPES[task])
    assert choice.name == task and choice.reason
    assert choice.task.metrics() and choice.task.margin > 0


def test_words_are_the_same_whatever_marks_stand_around_them() -> None:
    """Fields of a text as JSON, and a text from fields, say what the input says: that is no translation."""
    places = ["Teko", "Zizzi", "Aromi", "Cocum"]
    said = [f"{places[i % 4]} no. {i} is a cheap pub on the riverside." for i in range(60)]
    fields = [f'{{"name": "{places[i % 4]}", "no": "{i}", "price": "cheap", "area": "riverside"}}' for i in range(60)]
    assert profile_data([Row('name[Teko], "Fast_food"', "Teko: fast FOOD!")]).shared == 1.0
    for rows in (list(map(Row, said, fields)), list(map(Row, fields, said))):
        assert infer_task(rows).name == "generation"


def test_a_named_task_wins_and_a_wrong_name_is_refused() -> None:
    assert infer_task(SHAPES["qa"], "translation").name == "translation"
    with pytest.raises(UserError, match="translation"):
        infer_task(SHAPES["qa"], "translaton")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes" / "compare").glob("*.toml")))
def test_every_study_that_is_shipped_can_be_read(path: Path) -> None:
    assert Study.load(path, {}).budget_tokens > 0


def test_models_of_blocks_take_steps_a_block_and_hybrids_draft() -> None:
    study = Study(data="d", steps=(1, 2, 4, 8, 16), blocks=(0, 4))
    common = {"predicts_length": False, "paired": True, "longest": 64}
    found = grid(study, "block", causal=False, block=4, **common)
    assert [setting.options for setting in found] == [{"steps": 1}, {"steps": 2}, {"steps": 4}]
    drafted = grid(study, "hybrid", causal=True, drafts=("draft_verify", {}), **common)
    assert [setting.sampler for setting in drafted] == ["autoregressive", "autoregressive", "draft_verify"]
