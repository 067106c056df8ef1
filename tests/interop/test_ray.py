"""Tasks, a study and a server on a Ray of this machine. Each test that starts Ray does everything with one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from redraft import __version__
from redraft.cli._main import command, main
from redraft.errors import UserError
from redraft.executors.base import NO_TIME, Executor, Outcome, Resources, State, Task
from redraft.executors.local import Local
from redraft.executors.ray import Ray
from redraft.interop import ray_session
from redraft.interop.ray_session import Node, RaySession, check_address, connect
from redraft.serve.config import Replication

pytest.importorskip("ray", reason="Ray is not installed: pip install 'redraft[ray]'")


@pytest.fixture(scope="module")
def session() -> Iterator[RaySession]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import this file
    with connect(cpus=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def ray(session: RaySession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    executor = Ray()
    with executor.opened(tmp_path_factory.mktemp("shared")):
        yield executor


# ---- tasks


@dataclass
class Place(State):
    """What the tasks of these tests share: a folder."""

    folder: Path


def value(place: Place, text: str) -> dict[str, Any]:
    place.log(f"says {text}")
    return {"text": text}


def refuse(place: Place) -> dict[str, Any]:
    raise UserError("It is refused.", "Ask again.")


def fail(place: Place) -> dict[str, Any]:
    raise KeyError("a bug")


def die_once(place: Place) -> dict[str, Any]:
    mark = place.folder / "died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"text": "again"}


def span(place: Place) -> dict[str, Any]:
    begin = time.time()
    time.sleep(0.3)
    return {"span": (begin, time.time())}


def tasks() -> list[Task]:
    two = Resources(threads=2)
    return [
        Task("one", "one", partial(value, text="one")),
        Task("bad", "bad", refuse),
        Task("after one", "after one", partial(value, text="two"), needs=("one",)),
        Task("after bad", "after bad", partial(value, text="never"), needs=("bad",)),
        Task("after that", "after that", partial(value, text="never"), needs=("one", "after bad")),
        Task("late", "late", partial(value, text="never"), until=time.time() - 1),
        Task("wide", "wide", partial(value, text="wide"), resources=replace(two, threads=64)),
        Task("heavy", "heavy", partial(value, text="heavy"), resources=replace(two, memory=1 << 60)),
    ]


def outcomes(executor: Executor, given: list[Task], place: Place) -> dict[str, Outcome]:
    return {one.id: replace(one, seconds=0.0) for one in executor.run(given, place, place.log)}


def test_tasks_end_alike_here_and_under_ray(ray: Ray, tmp_path: Path) -> None:
    told: list[str] = []
    local = outcomes(Local(), tasks(), Place(told.append, tmp_path))
    assert {name for name, one in local.items() if one.value is not None} == {"one", "after one", "wide", "heavy"}
    assert (local["bad"].why, local["late"].why, local["after that"].why) == ("It is refused. Ask again.", NO_TIME, "")
    assert told == ["says one", "says two", "says wide", "says heavy"]
    told.clear()
    assert outcomes(ray, tasks(), Place(told.append, tmp_path)) == local
    assert sorted(line for line in told if "begins" not in line) == ["says heavy", "says one", "says two", "says wide"]


def test_a_task_whose_worker_dies_is_done_again(ray: Ray, tmp_path: Path) -> None:
    given = [Task("dies", "dies", die_once), Task("next", "next", partial(value, text="next"), needs=("dies",))]
    found = outcomes(ray, given, Place(print, tmp_path))
    assert found["dies"].value == {"text": "again"} and found["next"].value == {"text": "next"}


def test_nothing_runs_beside_a_task_that_measures_times(ray: Ray, tmp_path: Path) -> None:
    given = [Task(f"{i}", f"{i}", span, alone=i in (1, 3)) for i in range(5)]
    found = outcomes(ray, given, Place(print, tmp_path))
    spans = {name: one.value["span"] for name, one in found.items() if one.value is not None}
    for alone in ("1", "3"):
        begin, end = spans.pop(alone)
        assert all(other_end <= begin or end <= other for other, other_end in spans.values())


def test_a_bug_and_a_missing_gpu_end_the_run(ray: Ray, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a bug"):
        outcomes(ray, [Task("fails", "fails", fail)], Place(print, tmp_path))
    with pytest.raises(UserError, match="has a GPU"):
        outcomes(ray, [Task("x", "x", span, resources=Resources(gpus=1))], Place(print, tmp_path))


# ---- a study


def test_a_study_goes_on_under_ray_with_the_same_results(session: RaySession, tmp_path: Path) -> None:
    """Begun here; one model, its likelihood and texts, and all times are computed again there, into the same cells."""
    from redraft.compare import run as runs
    from tests.unit.test_compare_run import rows, study

    (tmp_path / "mine.jsonl").write_text(rows(160), encoding="utf-8")
    given = study(tmp_path, budget_tokens=2000, batch_sizes=(1,))
    here = runs.run(given, print)
    cells = {path: json.loads(path.read_text())["key"] for path in (tmp_path / "out" / "cells").iterdir()}
    for path, key in cells.items():
        if key["kind"] == "timing" or key.get("family") == "masked":
            path.unlink()
    shutil.rmtree(next((tmp_path / "out" / "models").glob("masked-*")))
    there = runs.run(given, print, executor=Ray())
    assert there.complete and [one.executor for one in there.timed_on] == ["ray"]
    assert {path: json.loads(path.read_text())["key"] for path in cells} == cells
    assert "held all cores of its node" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert there.likelihood == here.likelihood and there.baselines == here.baselines
    for mine, other in zip(here.settings, there.settings, strict=True):
        assert (mine.id, mine.validation, mine.quality) == (other.id, other.validation, other.quality)
        assert mine.work == other.work


# ---- a server


def test_replicas_answer_as_one_process(session: RaySession, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    import httpx2
    from ray import serve

    from redraft.data.tokenizer import Tokenizer
    from redraft.loading import load
    from redraft.model import Model
    from redraft.presets import preset
    from redraft.serve import ray_serve
    from redraft.serve.config import ServerConfig
    from redraft.serve.server import listen

    tokenizer = Tokenizer.train(["the cat sat on a mat"] * 20, 300)
    Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size, dim=32), False, seed=1).save(
        tmp_path / "m"
    )
    config = ServerConfig((str(tmp_path / "m"),), port=0, device="cpu", api_keys=("12345678",), shutdown_timeout=2.0)
    with listen(config) as free:
        config = replace(config, port=free.getsockname()[1])
    config, inputs = ray_serve.for_replicas(config, {})
    assert inputs == [tmp_path / "m"]
    body = {"model": "m", "prompt": "the cat", "max_tokens": 6, "seed": 5, "temperature": 1.0}
    with httpx2.Client(base_url=f"http://127.0.0.1:{config.port}", timeout=30) as client:
        ray_serve.deploy(config, Replication(), session)
        key = {"Authorization": "Bearer 12345678"}
        answer = client.post("/v1/completions", json=body, headers=key)
        own = load(tmp_path / "m", "cpu").generate("the cat", max_new_tokens=6, seed=5, temperature=1.0)[0]
        assert answer.json()["choices"][0]["text"] == own.text
        assert client.post("/v1/completions", json=body).status_code == 401
        assert client.get("/healthz", headers={"host": "example.org"}).status_code == 421
        serve.get_app_handle(ray_serve.APP).broadcast("drain").results(timeout_s=10)
        refused = client.post("/v1/completions", json=body, headers=key)
        assert refused.status_code == 503 and "retry-after" in refused.headers
    serve.shutdown()


# ---- without Ray


def test_options_that_make_no_sense_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["serve", "--model", "translate-en-de-masked"]
    for more, said in (
        (["--replicas", "2"], "needs --ray-serve"),
        (["--seed", "1", "--ray-serve"], "Send a seed with every request"),
        (["--replicas", "2", "--autoscale", "1:2", "--ray-serve"], "exclude each other"),
        (["--autoscale", "3:2", "--ray-serve"], "MIN:MAX"),
        (["--ray-serve", "nowhere"], "not the address of a Ray cluster"),
    ):
        assert main([*base, *more]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "address"),
    [(["--ray"], ""), (["--ray", "--json"], ""), (["--ray", "auto"], "auto"), (["--ray=h:1"], "h:1"), ([], None)],
    ids=str,
)
def test_an_address_of_ray_may_be_left_out(words: list[str], address: str | None) -> None:
    assert command("compare").make_context("compare", ["--data", "x", *words]).params["ray"] == address


def test_addresses_are_checked_before_anything_waits() -> None:
    for good in ("auto", "local", "head:6379", "10.0.0.1:6379"):
        check_address(good)
    for bad in ("study.toml", "ray://head:10001", ":1", "head:", "head:99999"):
        with pytest.raises(UserError):
            check_address(bad)


@pytest.mark.parametrize(("answer", "said"), [(("0.0", []), "redraft 0.0"), ((__version__, ["/data"]), "'/data'")])
def test_a_node_that_differs_is_named(answer: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Node("id", "other", 2, 0, 0)
    monkeypatch.setattr(RaySession, "on_each_node", lambda *_: [(other, answer)])
    with pytest.raises(UserError, match="'other'") as raised:
        RaySession("auto", False).check()
    assert said in str(raised.value)


def test_a_look_at_files_sees_what_differs(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    seen = {str(tmp_path): ray_session._listing(tmp_path)}
    assert ray_session._look({str(tmp_path / "a"): "x"}, seen) == (__version__, [])
    (tmp_path / "a").write_text("longer")
    assert ray_session._look({str(tmp_path / "a"): "x"}, seen) == (__version__, [str(tmp_path)] * 2)
