"""AdamW with 8-bit moments: near AdamW, smaller, and resumed exactly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from redraft.errors import UserError
from redraft.train import optim
from redraft.train.logging import Event
from redraft.train.loop import train
from redraft.train.recipe import Recipe

TOY = Path(__file__).parents[2] / "recipes" / "toy" / "masked.toml"
SMALL = ["tokenizer.kind=bytes", "model.config.dim=64", "data.length=128", "train.tokens=3000", "train.threads=1"]
SMALL += ["train.batch_tokens=512", "train.validation_rows=4", "train.save_every_tokens=700", "train.dtype=float32"]


class Interrupted(Exception):
    pass


def interrupt(event: Event) -> None:
    if event.kind == "checkpoint" and event.step >= 2:
        raise Interrupted


def test_its_updates_are_near_those_of_adamw() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(128, 64), [torch.randn(128, 64) for _ in range(5)]
    ends = []
    for name in ("adamw", "adamw8bit"):
        network = nn.Linear(64, 128, bias=False)
        network.weight.data.copy_(start)
        optimizer = optim.build(name, network, 0.0, (0.9, 0.98), 0.1)
        for gradient in gradients:
            network.weight.grad = gradient.clone()
            optim.step(optimizer, 1e-2)
        ends.append(network.weight.detach() - start)
        states = optimizer.state[network.weight].values()
        held = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
        assert held < {"adamw": 8.1, "adamw8bit": 2.5}[name] * start.numel()
    assert float((ends[1] - ends[0]).norm() / ends[0].norm()) < 0.05


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    recipe = Recipe.load(TOY, [*SMALL, "train.optimizer=adamw8bit"])
    train(recipe, tmp_path / "whole", device="cpu")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", device="cpu", on_event=interrupt)
    train(recipe, tmp_path / "run", device="cpu")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run"))
    assert one == other


def test_without_its_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"redraft\[lowbit\]"):
        optim.build("adamw8bit", nn.Linear(4, 4), 1e-3, (0.9, 0.98), 0.1)
