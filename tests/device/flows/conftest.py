"""Plugs the pretend CUDA device in, and keeps untrained models of every family on disk."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import redraft
from redraft.errors import UserError
from redraft.model import Model
from redraft.registry import find, names
from tests import pretend_device
from tests.device.counting import fresh, plug_in
from tests.drafters import drafter_for
from tests.tiny import described

FULL = bool(os.environ.get("REDRAFT_FULL"))
PAIR = ["ab", "a longer prompt"]  # two lengths: rows are ragged


@pytest.fixture(scope="session", autouse=True)
def _plugged() -> Iterator[None]:
    plug_in()
    yield
    gc.collect()
    pretend_device.unplug()


@pytest.fixture(autouse=True)
def log(_plugged: None) -> pretend_device.Log:
    pretend_device.LOG.clear()
    return pretend_device.LOG


class Models:
    """Untrained models of every family, saved when first asked for: ``masked-pairs``, ``masked-text``,
    ``cross-masked-pairs`` ..."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.both = functools.cache(self._both)

    def folder(self, name: str) -> Path:
        """The folder of a model."""
        path = self.root / name
        if not path.exists():
            family, kind = name.removeprefix("cross-").rsplit("-", 1)
            network = "cross_attention" if name.startswith("cross-") else "transformer"
            table = described(family)
            if find("families", table["name"]).needs_target:
                drafter_for(self.folder(f"autoregressive-{kind}")).save(path)
            else:
                more = {"self_condition": 0.5} if family == "hybrid-uniform" else {}
                fresh(table.pop("name"), kind == "pairs", network, **table, **more).save(path)
        return path

    def _both(self, name: str) -> tuple[Model, Model]:
        """The same model on the device and on the host, in the same type."""
        folder = self.folder(name)
        return redraft.load(folder, "cuda", "float32"), redraft.load(folder, "cpu")

    def same(self, name: str, ask: Callable[[Model], Any]) -> Any:
        """What device and host both answer, or the words with which both refuse."""
        answers = []
        for model in self.both(name):
            try:
                answers.append(ask(model))
            except UserError as error:
                answers.append(str(error))
        assert answers[0] == answers[1]
        return answers[0]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def texts(model: Model, **settings: Any) -> list[tuple[list[int], str, int]]:
    """Two texts by a model: their ids, how they ended, and their forward passes."""
    written = model.generate(PAIR, **{"max_new_tokens": 12 if FULL else 6, "seed": 3, **settings})
    return [(one.ids, one.finish, one.nfe) for one in written]


FAMILIES = list(names("families"))
MODELS = [f"{family}-{kind}" for family in FAMILIES for kind in ("pairs", "text")]
MODELS += ["cross-masked-pairs", "cross-autoregressive-pairs", "hybrid-uniform-pairs", "hybrid-uniform-text"]
