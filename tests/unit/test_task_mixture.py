"""Scores of a mixture: each task by its own metrics on its own rows, and the mean of their first ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from redraft.errors import UserError
from redraft.evaluation import stats
from redraft.metrics.accuracy import Accuracy
from redraft.metrics.chrf import Chrf
from redraft.tasks import infer_task
from redraft.tasks.classification import Classification
from redraft.tasks.generation import Generation
from redraft.tasks.mixture import Mixture

pytest.importorskip("sacrebleu")

TASKS = ["labels", "texts", "labels", "texts", "labels"]
REFERENCES = [["good"], ["the cat sat", "a cat sat"], ["bad"], ["on the mat"], ["good"]]
TEXTS = ["good", "a cat sat down", "good", "on a mat", "good"]
MIXTURE = Mixture((("labels", Classification()), ("texts", Generation())))


def only(name: str) -> tuple[list[str], list[list[str]]]:
    rows = [i for i, task in enumerate(TASKS) if task == name]
    return [TEXTS[i] for i in rows], [REFERENCES[i] for i in rows]


def test_each_task_is_scored_as_if_it_were_alone() -> None:
    found = {m.name: m.score(TEXTS, REFERENCES, TASKS) for m in MIXTURE.metrics()}
    assert found["labels/accuracy"].value == pytest.approx(Accuracy().score(*only("labels")).value)
    assert found["texts/chrf"].value == pytest.approx(Chrf().score(*only("texts")).value)
    assert set(found) >= {"mean", "labels/accuracy", "texts/chrf", "texts/bleu"}


def test_the_mean_is_that_of_the_first_metrics() -> None:
    mean = MIXTURE.metrics()[0]
    found = mean.score(TEXTS, REFERENCES, TASKS)
    expected = (200 / 3 + Chrf().score(*only("texts")).value) / 2
    assert found.value == pytest.approx(expected)
    assert float(mean.combine(found.stats.sum(0))) == pytest.approx(found.value)  # what a bootstrap relies on
    doubled = np.concatenate([found.stats, found.stats]).sum(0)
    assert float(mean.combine(doubled)) == pytest.approx(found.value)
    around = stats.interval(found.stats[None], mean.combine)
    assert around.low <= found.value <= around.high


def test_a_task_without_rows_is_a_bug() -> None:
    with pytest.raises(ValueError, match="texts"):
        MIXTURE.metrics()[0].score(["good"], [["good"]], ["labels"])


@dataclass
class Row:
    prompt: str
    target: str
    task: str


def test_tasks_are_known_by_name_or_recognised() -> None:
    rows = [Row(f"house {i}", f"Haus {i}", "translation-de") for i in range(30)]
    rows += [Row(f"how good was film {i} in the end", ["good", "bad"][i % 2], "films") for i in range(60)]
    chosen = infer_task(rows)
    assert chosen.name == "mixture"
    assert [(name, type(task.task).__name__) for name, task in chosen.task.parts] == [  # type: ignore[attr-defined]
        ("translation-de", "Translation"),
        ("films", "Classification"),
    ]
    assert infer_task(rows[:30]).name == "translation"
    with pytest.raises(UserError, match="2 tasks"):
        infer_task(rows, "qa")
