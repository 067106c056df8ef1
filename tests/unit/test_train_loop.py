"""The training loop: exact resume after a kill, accumulation, what is kept, and errors that lose nothing."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import redraft
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.likelihood import bound
from redraft.model import Model
from redraft.objectives.autoregressive import Autoregressive
from redraft.objectives.shared.vocabulary import backward
from redraft.presets import preset
from redraft.train.logging import Event, Progress, describe
from redraft.train.loop import Result, train
from redraft.train.recipe import Recipe
from redraft.train.setup import prepare
from redraft.types import Batch

TOY = Path(__file__).parents[2] / "recipes" / "toy"
CLOCK = {"seconds", "eta_seconds", "tokens_per_second", "share_of_peak"}
# Everything with a state of its own: noise, dropout, averaged weights, accumulation, best weights.
SMALL = [
    "tokenizer.kind=bytes",
    "model.config.dim=32",
    "data.length=128",
    "train.tokens=12000",
    "train.batch_tokens=512",
    "train.accumulate=2",
    "train.log_every=3",
    "train.validate_every=5000",
    "train.validation_rows=12",
    "train.keep_best=true",
    "train.threads=1",
    "train.dtype=float32",  # auto is measured, and may come out otherwise in another run
]


def recipe(*overrides: str, name: str = "masked") -> Recipe:
    return Recipe.load(TOY / f"{name}.toml", [*SMALL, *overrides])


def curve(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock decides."""
    lines = map(json.loads, (out / "train" / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


class Interrupted(Exception):
    pass


def stop_after(step: int) -> Callable[[Event], None]:
    def watch(event: Event) -> None:
        if event.kind == "update" and event.step >= step:
            raise Interrupted

    return watch


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A masked run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, train(recipe(), out, device="cpu")


# ---- resuming


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path, whole: tuple[Path, Result]) -> None:
    saving = recipe("train.save_every_tokens=1500")
    for step in (4, 7):  # the second time on top of the first
        with pytest.raises(Interrupted):
            train(saving, tmp_path / "run", device="cpu", on_event=stop_after(step))
    result = train(saving, tmp_path / "run", device="cpu")
    assert len(curve(whole[0])) > 4
    assert curve(tmp_path / "run") == curve(whole[0])
    assert weights(tmp_path / "run") == weights(whole[0])
    assert result.flops == whole[1].flops and result.tokens == whole[1].tokens


def test_noise_chosen_on_the_way_survives_an_interruption(tmp_path: Path) -> None:
    """The interval found at the second validation is gone on with, before and after a restart."""
    searching = recipe("family.search=true", "train.save_every_tokens=1500", name="block")
    train(searching, tmp_path / "whole", device="cpu")
    lines = (tmp_path / "whole" / "train" / "metrics.jsonl").read_text().splitlines()
    chosen = [line for line in map(json.loads, lines) if line["kind"] == "objective"]
    assert chosen and all(0 <= line["rate_min"] < line["rate_max"] <= 1 for line in chosen)
    assert (chosen[0]["rate_min"], chosen[0]["rate_max"]) != (0.0, 1.0)
    train(recipe("family.search=false", name="block"), tmp_path / "plain", device="cpu")
    updates = [[line for line in curve(tmp_path / one) if line["kind"] == "update"] for one in ("whole", "plain")]
    same = [one["loss"] == other["loss"] for one, other in zip(*updates, strict=True)]
    until = [one["step"] <= chosen[0]["step"] for one in updates[0]]
    assert same == until, "from then on the interval is trained"
    with pytest.raises(Interrupted):
        train(searching, tmp_path / "run", device="cpu", on_event=stop_after(chosen[0]["step"] + 1))
    train(searching, tmp_path / "run", device="cpu")
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


SCRIPT = """
import sys
from redraft.train.loop import train
from redraft.train.recipe import Recipe
train(Recipe.load(sys.argv[1], sys.argv[3:]), sys.argv[2], device="cpu")
"""


def test_kill_minus_nine_then_the_same_command_gives_the_same_curve(tmp_path: Path) -> None:
    options = [*SMALL, "train.tokens=24000", "train.save_every_tokens=1000"]
    train(Recipe.load(TOY / "autoregressive.toml", options), tmp_path / "whole", device="cpu")
    out = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(TOY / "autoregressive.toml"), str(out), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not list((out / "train").glob("checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read().decode()
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(Recipe.load(TOY / "autoregressive.toml", options), out, device="cpu")
    assert curve(out) == curve(tmp_path / "whole")
    assert weights(out) == weights(tmp_path / "whole")


def test_a_finished_run_is_not_run_again(whole: tuple[Path, Result]) -> None:
    before = weights(whole[0])
    assert train(recipe(), whole[0], device="cpu", on_event=stop_after(0)) == whole[1]
    assert weights(whole[0]) == before


# ---- what comes of it


def test_the_result_is_the_model_of_the_best_validation(whole: tuple[Path, Result]) -> None:
    out, result = whole
    scores = [line["nats_per_token"] for line in curve(out) if line["kind"] == "validation"]
    assert result.validation is not None and len(scores) >= 2
    assert result.validation["nats_per_token"] == min(scores)
    model = redraft.load(out, device="cpu")
    rows = prepare(recipe(), out / "train", torch.device("cpu")).validation
    again = bound(model.network, rows, model.family.objective(), model.spec)
    assert again.nats_per_token == pytest.approx(min(scores), abs=1e-6)
    assert result.validation["nats_error"] == pytest.approx(again.nats_per_token_stderr, abs=1e-6) and again.stderr > 0


def test_training_learns(whole: tuple[Path, Result]) -> None:
    losses = [line["loss"] for line in curve(whole[0]) if line["kind"] == "update"]
    assert losses[-1] < losses[0] - 0.5


def test_the_resolved_recipe_reproduces_the_run(whole: tuple[Path, Result], tmp_path: Path) -> None:
    resolved = Recipe.load(whole[0] / "train" / "recipe.toml", [f"data.data_root={TOY}"])
    train(resolved, tmp_path / "run", device="cpu")
    assert weights(tmp_path / "run") == weights(whole[0])


def test_passes_are_a_budget(tmp_path: Path) -> None:
    result = train(recipe("train.tokens=0", "train.passes=0.1"), tmp_path / "run", device="cpu")
    assert 0.1 <= result.passes < 0.15


def test_minutes_are_a_budget(tmp_path: Path) -> None:
    events: list[Event] = []
    train(recipe("train.tokens=0", "train.minutes=0.02"), tmp_path / "run", device="cpu", on_event=events.append)
    last = [event for event in events if event.kind == "update"][-1]
    assert last.values["progress"] == 1.0 and last.values["lr"] == pytest.approx(3e-3 * 0.05)


def test_the_time_left_is_that_of_the_budget(whole: tuple[Path, Result], tmp_path: Path) -> None:
    """Nothing is left at the end. Where minutes are the budget it is what the clock leaves, set-up included."""
    lines = [json.loads(line) for line in (whole[0] / "train" / "metrics.jsonl").read_text().splitlines()]
    left = [line["eta_seconds"] for line in lines if line["kind"] == "update"]
    assert all(seconds > 0 for seconds in left[:-1]) and left[-1] == 0
    events: list[Event] = []
    train(recipe("train.tokens=0", "train.minutes=0.01"), tmp_path / "run", device="cpu", on_event=events.append)
    for event in (event for event in events if event.kind == "update"):
        assert event.values["eta_seconds"] == pytest.approx(max(0.6 - event.values["seconds"], 0))


def test_fine_tuning_starts_from_the_checkpoint(whole: tuple[Path, Result], tmp_path: Path) -> None:
    still = recipe("train.tokens=600", "train.lr=0.0").tables()  # a learning rate of nothing
    train(Recipe.of({**still, "model": {"from": str(whole[0])}}, folder=str(TOY)), tmp_path / "run", device="cpu")
    assert weights(tmp_path / "run") == weights(whole[0])


def test_recomputing_activations_changes_nothing_but_memory(tmp_path: Path, whole: tuple[Path, Result]) -> None:
    train(recipe("train.activation_checkpointing=full"), tmp_path / "run", device="cpu")
    assert [line.get("loss") for line in curve(tmp_path / "run")] == [line.get("loss") for line in curve(whole[0])]


def test_every_event_has_a_line_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []
    train(recipe("train.tokens=3000"), tmp_path / "run", device="cpu", on_event=events.append)
    assert {event.kind for event in events} - {"progress"} == {"start", "update", "validation", "checkpoint", "done"}
    assert all(describe(event) for event in events)
    with Progress() as progress:
        for event in events:
            progress(event)
    assert "bits/byte" in capsys.readouterr().err
    shares = [e.values["share_of_peak"] for e in events if e.kind == "update"]
    assert shares and all(share is None or 0 < share <= 1 for share in shares)


# ---- progress while nothing else is reported


class Waiting:
    """A function that returns only when an event ``progress`` has been reported during the call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.events, self.heard = function, list[Event](), threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.heard.clear()
        assert self.heard.wait(60), "nothing was reported"
        return self.function(*args, **kwargs)

    def watch(self, event: Event) -> None:
        if event.kind == "progress":
            self.events.append(event)
            self.heard.set()


@pytest.mark.parametrize(
    ("slow", "doing"),
    [
        ("redraft.train.loop.prepare", "preparing"),
        ("redraft.train.loop.backward", "update 1"),
        ("redraft.train.validation.scored", "validation"),
        ("redraft.train.checkpoint.save", "saving a checkpoint"),
    ],
)
def test_progress_is_reported_during_a_long_silence(
    slow: str, doing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Within one update, a validation or a checkpoint, whatever ``log_every`` is; and metrics.jsonl has none of it."""
    monkeypatch.setattr("redraft.train.reporter.QUIET_SECONDS", 0.05)
    module, _, name = slow.rpartition(".")
    waiting = Waiting(getattr(importlib.import_module(module), name))
    monkeypatch.setattr(slow, waiting)
    train(recipe("train.tokens=3000", "train.log_every=1000"), tmp_path / "run", device="cpu", on_event=waiting.watch)
    assert any(event.values["doing"].startswith(doing) for event in waiting.events)
    assert all(0 <= event.values["progress"] <= 1 and describe(event) for event in waiting.events)
    assert {line["kind"] for line in curve(tmp_path / "run")} == {"update", "validation"}


def test_a_watcher_that_fails_in_a_long_silence_stops_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("redraft.train.reporter.QUIET_SECONDS", 0.05)
    failed = threading.Event()

    def watch(event: Event) -> None:
        if event.kind == "progress":
            failed.set()
            raise Interrupted

    def slow(*args: Any, **kwargs: Any) -> Any:
        assert failed.wait(60)
        return prepare(*args, **kwargs)

    monkeypatch.setattr("redraft.train.loop.prepare", slow)
    with pytest.raises(Interrupted):
        train(recipe(), tmp_path / "run", device="cpu", on_event=watch)


# ---- accumulation


def _rows(model: Model, texts: list[str]) -> Batch:
    ids = [model.tokenizer.encode(text) for text in texts]
    valid = torch.arange(max(map(len, ids)))[None] < torch.tensor([len(row) for row in ids])[:, None]
    flat = torch.zeros(valid.shape, dtype=torch.int64)
    flat[valid] = torch.tensor([token for row in ids for token in row])
    target = valid.clone()
    target[:, 0] = False
    return Batch(flat, target, valid, None, target.sum(1))


def test_accumulated_batches_equal_one_big_one() -> None:
    model = Model.fresh({"name": "autoregressive"}, Tokenizer.bytes(), preset("toy", 261), paired=False)
    objective, noise = Autoregressive(label_smoothing=0.1), torch.Generator()
    texts = ["a short one", "one that is a good deal longer than it", "and another", "the last"]
    gradients = []
    for parts in ([texts], [texts[:1], texts[1:3], texts[3:]]):
        prepared = [objective.prepare(_rows(model, part), model.spec, noise) for part in parts]
        tokens = sum(p.tokens for p in prepared)
        model.network.zero_grad()
        loss = sum(float(backward(model.network, objective, p, p.tokens / tokens)) for p in prepared)
        gradients.append(
            [torch.tensor(loss), *(p.grad.clone() for p in model.network.parameters() if p.grad is not None)]
        )
    assert len(gradients[0]) > 5
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


# ---- what a user can get wrong


def test_another_recipe_in_the_same_folder_is_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe("train.save_every_tokens=1000"), out, device="cpu", on_event=stop_after(3))
    before = curve(out)
    with pytest.raises(UserError, match=r"train\.lr: 0\.003 -> 0\.001"):
        train(recipe("train.lr=0.001"), out, device="cpu")
    assert curve(out) == before


def test_changed_data_are_noticed(tmp_path: Path) -> None:
    rows = (TOY / "data" / "tatoeba.en-de.train.jsonl").read_text().splitlines()
    source = tmp_path / "mine.jsonl"
    options = (f"data.source={source}", "train.save_every_tokens=1000")
    source.write_text("\n".join(rows[:400]))
    with pytest.raises(Interrupted):
        train(recipe(*options), tmp_path / "run", device="cpu", on_event=stop_after(3))
    source.write_text("\n".join(rows[1:401]))
    with pytest.raises(UserError, match="texts are not those"):
        train(recipe(*options), tmp_path / "run", device="cpu")


def test_a_folder_with_another_model_is_left_alone(whole: tuple[Path, Result], tmp_path: Path) -> None:
    redraft.load(whole[0]).save(tmp_path / "model")
    before = weights(tmp_path / "model")
    with pytest.raises(UserError, match="holds a model"):
        train(recipe(), tmp_path / "model", device="cpu")
    assert weights(tmp_path / "model") == before


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    def watch(event: Event) -> None:
        with pytest.raises(UserError, match="Another process"):
            train(recipe(), tmp_path / "run", device="cpu")
        raise Interrupted

    with pytest.raises(Interrupted):
        train(recipe(), tmp_path / "run", device="cpu", on_event=watch)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite"):
        train(recipe("train.lr=1e30", "train.clip=0", "train.warmup=0.001"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_checkpoint_that_can_not_become_another_family_is_refused(whole: tuple[Path, Result], tmp_path: Path) -> None:
    tables = {**recipe().tables(), "family": {"name": "masked", "timed": True}, "model": {"from": str(whole[0])}}
    with pytest.raises(UserError, match="does not take the time"):
        train(Recipe.of(tables, folder=str(TOY)), tmp_path / "run", device="cpu")


def test_the_callers_threads_and_random_numbers_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(recipe("train.tokens=600"), tmp_path / "run", device="cpu")
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads
