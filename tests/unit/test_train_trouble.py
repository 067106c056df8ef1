"""What goes wrong in a run: a loss that is not finite, Ctrl-C, overfitting, damaged files of its folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from redraft.errors import UserError
from redraft.train import checkpoint
from redraft.train.logging import Event, describe
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from redraft.train.setup import prepare
from redraft.train.validation import Progress, is_due

TOY = Path(__file__).parents[2] / "recipes" / "toy"
SMALL = [
    "tokenizer.kind=bytes",
    "model.config.dim=32",
    "data.length=128",
    "train.tokens=12000",
    "train.batch_tokens=1024",
    "train.validation_rows=8",
    "train.save_every_tokens=1500",
    "train.threads=1",
    "train.dtype=float32",
]


def recipe(*overrides: str, name: str = "masked") -> Recipe:
    return Recipe.load(TOY / f"{name}.toml", [*SMALL, *overrides])


class Stopped(Exception):
    pass


def at(step: int, do: Callable[[], Any], kind: str = "update") -> Callable[[Event], None]:
    """Do something at the first event of this kind from ``step`` on."""
    done: list[int] = []

    def watch(event: Event) -> None:
        if event.kind == kind and event.step >= step and not done:
            done.append(event.step)
            do()

    return watch


def fail() -> None:
    raise Stopped


# ---- not finite


def test_weights_that_are_not_finite_are_never_saved_and_the_run_goes_on_from_the_last_good_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient becomes NaN between two reports (a long ``log_every``); the next checkpoint notices."""
    out, step, norm = tmp_path / "run", [0], torch.nn.utils.get_total_norm

    def spoil(gradients: list[torch.Tensor], *args: Any, **options: Any) -> Any:
        step[0] += 1
        if step[0] == 7:
            gradients[0].fill_(float("nan"))
        return norm(gradients, *args, **options)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", spoil)
    with pytest.raises(UserError, match="not finite") as error:
        train(recipe("train.log_every=1000"), out, device="cpu")
    good = checkpoint.checkpoints(out / "train")
    assert good and checkpoint.step_of(good[-1]) <= 6
    assert f"continues from step {checkpoint.step_of(good[-1])}" in error.value.remedy
    assert "--lr 0.0015" in error.value.remedy and recipe().train.lr == 3e-3
    for path in good:
        state = load_file(path / "state.safetensors")
        assert all(t.isfinite().all() for t in state.values() if t.is_floating_point())
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", norm)
    with pytest.raises(UserError, match=r"train.seed"):  # anything else may not change
        train(recipe("train.log_every=1000", "train.lr=0.0015", "train.seed=3"), out, device="cpu")
    begun: list[int] = []
    train(recipe("train.log_every=1000", "train.lr=0.0015"), out, device="cpu", on_event=lambda e: begun.append(e.step))
    assert begun[0] == checkpoint.step_of(good[-1])
    assert (out / "model.safetensors").exists()
    assert (out / "train" / f"recipe-until-step-{begun[0]}.toml").exists()
    assert Recipe.load(out / "train" / "recipe.toml").train.lr == 0.0015


# ---- Ctrl-C


def test_ctrl_c_saves_the_current_update(tmp_path: Path) -> None:
    """The second start continues from the very step at which the first was interrupted."""
    seldom = recipe("train.save_every_tokens=0", "train.log_every=1")
    out = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(seldom, out, device="cpu", on_event=at(4, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert signal.getsignal(signal.SIGINT) is before
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(out / "train")] == [4]
    train(seldom, out, device="cpu")
    train(seldom, tmp_path / "whole", device="cpu")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


# ---- overfitting


def test_a_validation_that_rises_is_said(tmp_path: Path) -> None:
    rows = [json.dumps({"src": f"{i}{i}{i}", "ref": f"{i * 7919 % 1000} {i * 104729 % 1000}"}) for i in range(80)]
    (tmp_path / "few.train.jsonl").write_text("\n".join(rows[:30]))
    (tmp_path / "few.validation.jsonl").write_text("\n".join(rows[30:60]))
    few = recipe(
        f"data.source={tmp_path / 'few'}",
        "model.config.dim=64",
        "train.passes=80",
        "train.tokens=0",
        "train.lr=0.005",
        "train.validation_rows=10",
        "train.validate_every=4000",
        name="autoregressive",
    )
    events: list[Event] = []
    train(few, tmp_path / "run", device="cpu", on_event=events.append)
    checks = [event.values for event in events if event.kind == "validation"]
    assert len(checks) >= 3 and "best" not in describe(next(e for e in events if e.kind == "validation"))
    (warning,) = [event for event in events if event.kind == "overfitting"]
    values = [check["nats_per_token"] for check in checks]
    assert warning.values["best_nats"] == min(values) < values[-1] == warning.values["nats_per_token"]
    assert f"best at step {warning.values['best_step']}" in describe(warning)


def test_validations_are_spread_over_the_run_where_they_cost_little(tmp_path: Path) -> None:
    """Ten updates of equal size: after each that passes an eighth of the budget, if it is affordable."""
    rows = prepare(recipe(), tmp_path, torch.device("cpu")).validation
    cost = sum(int(batch.valid.sum()) for batch in rows) * 4 / 3  # in tokens of training

    def due(every: int | None, budget: int) -> list[int]:
        found: list[int] = []
        for k in range(1, 10):
            before, now = (Progress(budget * n // 10, n / 10) for n in (k - 1, k))
            found += [k] if is_due(rows, every, before, now, len(found)) else []
        return found

    assert due(None, int(1000 * cost)) == [2, 3, 4, 5, 7, 8, 9]
    assert due(None, int(21 * cost)) == [5] and due(None, int(9 * cost)) == []
    assert due(0, int(1000 * cost)) == [] and due(300, 1000) == [3, 6, 9]


def test_one_validation_is_not_called_the_best(tmp_path: Path) -> None:
    events: list[Event] = []
    train(recipe("train.tokens=2000", "train.validate_every=0"), tmp_path / "run", device="cpu", on_event=events.append)
    (check,) = [event for event in events if event.kind == "validation"]
    assert "best" not in describe(check) and not any(event.kind == "overfitting" for event in events)


# ---- damaged files


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("damage") / "run"
    with pytest.raises(Stopped):
        train(recipe("train.log_every=2"), out, device="cpu", on_event=at(8, fail))
    return out


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "x").write_text("x")


def a_file(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.write_text("x")


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    ("metrics.jsonl", a_folder),
    ("metrics.jsonl", text('{"kind": "update"}\n')),
    ("metrics.jsonl", text('{"step": "one"}\n')),
    ("metrics.jsonl", text("{" * 5000 + "}\n")),
    ("result.json", a_folder),
    ("result.json", text("[]")),
    ("result.json", text('{"out": 3}')),
    ("result.json", text("")),
    ("recipe.toml", a_folder),
    ("recipe.toml", text("[[[")),
    ("recipe.toml", text("[train]\nunknown = 3\n")),
    ("recipe.toml", Path.unlink),
    ("lock", a_folder),
    ("tensorboard", a_file),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE, ids=[f"{name}-{i}" for i, (name, _) in enumerate(DAMAGE)])
def test_a_damaged_file_of_a_run_is_named(
    name: str, damage: Callable[[Path], None], interrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    damage(tmp_path / "run" / "train" / name)
    with pytest.raises(UserError) as error:
        train(recipe("train.log_every=2"), tmp_path / "run", device="cpu")
    assert name in error.value.what and error.value.remedy


def test_what_a_kill_leaves_behind_does_not_stop_a_run(interrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    work = tmp_path / "run" / "train"
    (work / ".checkpoint-000000009.abc").write_text("a file, not a folder")
    with (work / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "update", "st')
    train(recipe("train.log_every=2"), tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "model.safetensors").exists()
