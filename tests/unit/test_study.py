"""Claims as experiments: recipes, cells that are computed once, decision rules, records, and the report."""

from __future__ import annotations

import json
import pickle
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from redraft.errors import UserError
from redraft.executors.base import Outcome
from redraft.executors.local import Local
from redraft.study import claim as claims
from redraft.study.analyses.convergence import Convergence, reached
from redraft.study.analyses.saturation import Saturation
from redraft.study.analyses.shared.seeds import ratio_of_means, t_interval
from redraft.study.cells.base import Bench, ordered, perform
from redraft.study.claim import BUDGETS, Claim
from redraft.study.experiment import Experiment, Found, analysis_of
from redraft.study.finding import Finding, StudyRecord
from redraft.study.report import claims_page, read_records, report, write_records
from redraft.study.run import run
from redraft.study.store import FILE, Store

TOY = Path(__file__).parents[2] / "recipes" / "toy" / "data"
RECIPE = f"""
claim = "few steps are enough"
source = "a test"
compares = "steps"
seeds = 1
train = {{ batch_tokens = 1024, lr = 3e-3, validate_every = 0, validation_rows = 8 }}
[analysis]
name = "saturation"
[tasks.pairs]
source = "{TOY}/tatoeba.en-de"
input = "src"
target = "ref"
vocab_size = 320
length = 96
new_tokens = 24
train_rows = 300
test_rows = 12
validation_rows = 8
[models.autoregressive]
family = {{ name = "autoregressive" }}
[models.masked]
family = {{ name = "masked" }}
[decode.greedy]
models = ["autoregressive"]
sampler = "autoregressive"
sweep = {{ beams = [1, 2] }}
[decode.confidence]
models = ["masked"]
sampler = "confidence"
sweep = {{ steps = [1, 4, 64] }}
[budgets.small]
preset = "toy"
train = {{ tokens = 1000 }}
[budgets.medium]
train = {{ tokens = 2000 }}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "few.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


class Stops(Local):
    """Gives up after some tasks, as a killed process does."""

    def __init__(self, after: int) -> None:
        self.after = after

    def run(self, tasks: Any, state: Any, log: Any) -> Any:
        for outcome in super().run(tasks, state, log):
            if self.after == 0:
                raise KeyboardInterrupt
            self.after -= 1
            yield outcome


def bench(out: Path, log: Callable[[str], None] = lambda line: None) -> Bench:
    return Bench(log, out, torch.device("cpu"), None)


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyRecord, list[str]]:
    """A claim that was stopped after four cells and run again: its folder, record and lines."""
    out, lines = tmp_path_factory.mktemp("study"), list[str]()
    experiment = Experiment(Claim.load(str(recipe)))
    with pytest.raises(KeyboardInterrupt):
        run([experiment], bench(out), executor=Stops(4))
    assert len(_rows(out, "SELECT id FROM cell")) == 4
    [record] = run([experiment], bench(out, lines.append))
    return out, record, lines


def _rows(out: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(out / FILE) as base:
        return base.execute(query).fetchall()


# ---- recipes


@pytest.mark.parametrize("budget", BUDGETS[1:])
@pytest.mark.parametrize("name", claims.names())
def test_every_claim_has_every_budget_and_a_rule(name: str, budget: str) -> None:
    claim = Claim.load(name, budget)
    assert claim.seeds >= 3 or budget != "small"
    assert len(analysis_of(claim).rule()) > 40 and claim.compares.endswith(".")


def test_a_budget_overrides_any_key(recipe: Path) -> None:
    small, medium = Claim.load(str(recipe)), Claim.load(str(recipe), "medium")
    assert (small.preset, small.train["tokens"]) == ("toy", 1000)
    assert (medium.preset, medium.train["tokens"], medium.train["lr"]) == ("1m", 2000, 3e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('name = "saturation"', 'name = "saturatoin"'), "saturation"),
        (('name = "saturation"', 'name = "saturation"\nmargni = 2.0'), "margin"),
        (('models = ["masked"]', 'models = ["maskd"]'), "Did you mean 'masked'"),
        (("vocab_size = 320", "vocab = 320"), "vocab_size"),
        (("sweep = { beams = [1, 2] }", "sweep = { beam = [1, 2] }"), "beams"),
        (("input = ", 'mix = ["pairs"]\ninput = '), "source or a mix"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(recipe: Path, tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(RECIPE.replace(*change), encoding="utf-8")
    with pytest.raises(UserError, match=words):
        experiment = Experiment(Claim.load(str(path)))
        analysis_of(experiment.claim).cells(experiment, Found())


@pytest.mark.parametrize(("name", "budget", "words"), [("stesp", "small", "steps"), ("steps", "smal", "small")])
def test_an_unknown_claim_or_budget_gets_a_suggestion(name: str, budget: str, words: str) -> None:
    with pytest.raises(UserError, match=f"Did you mean '{words}'"):
        Claim.load(name, budget)


def test_own_data_replace_the_tasks_and_keep_their_lengths(recipe: Path) -> None:
    own = Claim.load(str(recipe), data={"source": "mine.jsonl", "input": "question", "target": "answer"})
    task = own.tasks["own"]
    assert list(own.tasks) == ["own"] and task.source == "mine.jsonl" and task.input == "question"
    assert task.new_tokens == 24 and own.models["masked"].tasks == ()


# ---- cells


def test_equal_content_is_the_same_cell_wherever_it_lies(recipe: Path, tmp_path: Path) -> None:
    for part in ("train", "validation", "test"):
        (tmp_path / f"copy.{part}.jsonl").write_bytes((TOY / f"tatoeba.en-de.{part}.jsonl").read_bytes())
    moved = tmp_path / "moved.toml"
    moved.write_text(RECIPE.replace(f"{TOY}/tatoeba.en-de", f"{tmp_path}/copy"), encoding="utf-8")
    here, there = (Experiment(Claim.load(str(path))) for path in (recipe, moved))
    assert here.trained("masked", "pairs", 0).id == there.trained("masked", "pairs", 0).id
    others = {here.trained("masked", "pairs", 1).id, here.trained("masked", "pairs", 0, tokens=1001).id}
    others |= {here.trained("autoregressive", "pairs", 0).id}
    assert len(others | {here.trained("masked", "pairs", 0).id}) == 4


def test_a_cell_comes_after_what_it_needs(recipe: Path) -> None:
    experiment = Experiment(Claim.load(str(recipe)))
    cells = ordered(analysis_of(experiment.claim).cells(experiment, Found()))
    place = {cell.id: number for number, cell in enumerate(cells)}
    assert all(place[other.id] < place[cell.id] for cell in cells for other in cell.needs)
    assert {cell.name for cell in cells} == {"data", "trivial", "train", "texts"}
    steps = {cell.config.steps for cell in cells if cell.name == "texts" and cell.trained.model == "masked"}  # type: ignore[attr-defined]
    assert steps == {1, 4}, "64 steps are more than the 24 tokens of an answer"


# ---- a run


def test_an_interrupted_run_goes_on(finished: tuple[Path, StudyRecord, list[str]], recipe: Path) -> None:
    out, record, lines = finished
    kinds = dict(_rows(out, "SELECT kind, count(*) FROM cell GROUP BY kind"))
    assert kinds == {"data": 1, "trivial": 1, "train": 2, "texts": 5}
    computed = [line for line in lines if line.startswith("[")]
    assert len(computed) == 9 - 4 and all("few:" in line for line in computed)
    again: list[str] = []
    [same] = run([Experiment(Claim.load(str(recipe)))], bench(out, again.append))
    assert same.finding == record.finding and not [line for line in again if line.startswith("[")]


def test_a_run_keeps_a_record_of_everything(finished: tuple[Path, StudyRecord, list[str]]) -> None:
    out, record, _ = finished
    assert record.rule == Saturation().rule() and "redraft study run" in record.command
    assert {n.metric for n in record.finding.numbers} == {"bleu"}
    for value, made in _rows(out, "SELECT value, record FROM cell WHERE kind = 'train'"):
        assert json.loads(value)["tokens"] >= 1000 and len(json.loads(value)["tokenizer"]) > 10
        assert {"cpu", "threads", "torch", "redraft", "seconds", "dtype", "started"} <= json.loads(made).keys()
    stored = _rows(out, "SELECT verdict, text FROM finding")
    assert stored == [(record.finding.verdict, record.finding.text)]
    assert len(_rows(out, "SELECT * FROM number")) == len(record.finding.numbers)
    assert len(_rows(out, "SELECT * FROM used")) == record.cells == 9


def test_a_cell_can_be_computed_in_another_process(finished: tuple[Path, StudyRecord, list[str]], recipe: Path) -> None:
    """What an executor sends: the bench without its log, and the work of a cell."""
    out, _, _ = finished
    experiment = Experiment(Claim.load(str(recipe)))
    cell = experiment.texts(experiment.ways("masked", "pairs")[0], "pairs")[0]
    there, work = pickle.loads(pickle.dumps((bench(out, print), partial(perform, cell=cell))))
    assert cell.id == work.keywords["cell"].id
    assert work(there)["value"]["texts"] == Store(out).get(cell)["texts"]  # type: ignore[index]


def test_a_claim_that_needs_a_device_stays_open_without_it(tmp_path: Path) -> None:
    experiment = Experiment(replace(Claim.load("speed", "full")))
    [record] = run([experiment], bench(tmp_path))
    assert record.finding.verdict == "open" and "CUDA" in record.finding.text and not record.cells


def test_the_largest_budget_of_a_claim_is_reported(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for budget in ("medium", "shipped", "small"):
        finding = Finding("open", budget)
        store.conclude(StudyRecord("few", *"abcd", budget, 1, finding, {}, "", "2026-01-01", 0.0, 0), [])
    assert [one.budget for one in store.findings()] == ["medium"]


def test_a_damaged_value_and_a_lost_model_are_computed_again(
    finished: tuple[Path, StudyRecord, list[str]], recipe: Path
) -> None:
    out, record, _ = finished
    experiment = Experiment(Claim.load(str(recipe)))
    lost = experiment.trained("masked", "pairs", 0)
    (lost.folder(out) / "config.json").unlink()
    texts = experiment.texts(experiment.ways("masked", "pairs")[0], "pairs", trained=(lost,))[0]
    with sqlite3.connect(out / FILE) as base:
        base.execute("UPDATE cell SET value = '{}' WHERE id = ?", (texts.id,))
    lines: list[str] = []
    [again] = run([experiment], bench(out, lines.append))
    computed = [line for line in lines if line.startswith("[")]
    assert len(computed) == 2 and "training of masked" in computed[0] and "texts of masked" in computed[1]
    assert again.finding == record.finding


def test_a_cell_that_fails_leaves_its_claim_open_with_the_reason(recipe: Path, tmp_path: Path) -> None:
    class Fails(Local):
        def run(self, tasks: Any, state: Any, log: Any) -> Any:
            for task in tasks:
                yield Outcome(task.id, why="the disk is full.")

    lines: list[str] = []
    [record] = run([Experiment(Claim.load(str(recipe)))], bench(tmp_path, lines.append), executor=Fails())
    assert record.finding.verdict == "open" and "the disk is full" in record.finding.text
    assert any(line.startswith("[1/") and "few: data of pairs: the disk is full" in line for line in lines)


def test_the_report_and_the_page_say_what_was_found(
    finished: tuple[Path, StudyRecord, list[str]], tmp_path: Path
) -> None:
    _, record, _ = finished
    from redraft.compare.report import render_html, render_markdown

    page = report([record])
    for text in (render_markdown(page), render_html(page)):
        assert record.claim in text and "an equivalence test at a margin of 1" in text
    write_records([record], tmp_path)
    assert read_records(tmp_path) == {"few": record}
    written = Claim.load(claims.names()[0])
    rules = {written.id: "a rule", "few": record.rule}
    shown = claims_page([written], rules, {})
    assert f"| {written.claim} | open | No run is recorded yet (about" in shown
    with pytest.raises(UserError, match="no folder"):
        write_records([record], tmp_path / "missing")


def test_a_finding_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not JSON"):
        read_records(tmp_path)


# ---- decision rules


def test_an_interval_over_seeds_is_students() -> None:
    found = t_interval([1.0, 2.0, 3.0])  # t(0.975, 2) = 4.3027, s = 1
    assert found.value == 2.0 and found.high - found.value == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    ratio = ratio_of_means([2.0, 4.0], [1.0, 2.0])
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_the_updates_to_a_goal_are_linear_between_validations() -> None:
    curve = [(100.0, 3.0), (200.0, 2.0), (300.0, 1.0)]
    assert reached(curve, 1.5) == 250.0 and reached(curve, 3.5) == 100.0
    with pytest.raises(ValueError, match="never"):
        reached(curve, 0.5)


def _curves(updates: dict[str, float]) -> Finding:
    """The finding about models whose bound falls as exp(-update / time), a little different for each seed."""
    claim = Claim.load("continuous-time")
    models = {name: claims.ModelTable({"name": "masked", "train_steps": int(10 * t)}) for name, t in updates.items()}
    table = claims.TaskTable(source="x", text="text")
    experiment = _Placeless(replace(claim, models=models, tasks={"shakespeare": table}))
    found = Found()
    for model, time in updates.items():
        for seed, cell in enumerate(experiment.of_all_seeds(model, "shakespeare")):
            points = [{"step": s, "bits_per_byte": float(np.exp(-s / time / (1 + 0.01 * seed)))} for s in range(1, 400)]
            found.values[cell.id] = {"curve": points}
    return Convergence(saving=0.3).conclude(experiment, found)


class _Placeless(Experiment):
    """An experiment whose data have no files."""

    def _source(self, table: claims.TaskTable) -> Any:
        from redraft.study.cells.data import Source

        return Source(table.source, table.source, text=table.text, input=table.input)


@pytest.mark.parametrize(
    ("other", "verdict"), [(100.0, "holds"), (62.0, "in part"), (50.0, "not seen"), (40.0, "not seen")]
)
def test_a_saving_of_updates_is_what_the_curves_say(other: float, verdict: str) -> None:
    found = _curves({"continuous": 50.0, "T = 8": other})
    assert found.verdict == verdict
    [saved] = [row[3] for row in found.tables[0].rows if row[0] == "T = 8"]
    assert float(saved.split(" %")[0]) == pytest.approx(100 * (1 - 50.0 / other), abs=1.0)
