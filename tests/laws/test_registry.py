"""Laws of registries: every class is found by its name, those outside of the package by a dotted path."""

from __future__ import annotations

from pathlib import Path

import pytest

from redraft import registry
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.model import Model
from redraft.presets import preset
from redraft.registry import Registered, find, names
from tests.laws.outside import Leftmost, Plain

FOLDERS = ["samplers", "objectives", "families", "caches", "guidance", "noise", "rewards"]
FOLDERS += ["posttraining", "posttraining.estimators", "objectives.conversion", "study.cells", "study.analyses"]
each_folder = pytest.mark.parametrize("folder", FOLDERS)


@each_folder
def test_a_class_is_found_by_the_name_that_it_has(folder: str) -> None:
    assert names(folder)
    for name in names(folder):
        kind = find(folder, name)
        assert issubclass(kind, Registered) and kind.name == name


@each_folder
def test_all_classes_of_a_folder_share_the_base_that_outside_classes_must_have(folder: str) -> None:
    base = registry._base(folder)
    assert base is not None and issubclass(base, Registered)
    assert all(issubclass(find(folder, name), base) for name in names(folder))


def test_a_class_outside_is_found_by_its_path() -> None:
    assert find("samplers", "tests.laws.outside:Leftmost") is Leftmost
    assert find("objectives", "tests.laws.outside:Plain") is Plain
    assert Leftmost.name == "tests.laws.outside:Leftmost"
    assert find("samplers", Leftmost.name) is Leftmost


def test_a_sampler_outside_generates_like_the_one_that_it_equals() -> None:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True, seed=1)
    for temperature in (0.0, 1.0):
        settings = {"max_new_tokens": 9, "length": "fixed", "temperature": temperature, "ignore_eos": True}
        expected = model.generate("abc", sampler="confidence", options={"steps": 9, "order": "left"}, **settings)[0]
        found = model.generate("abc", sampler=Leftmost.name, **settings)[0]
        assert (found.ids, found.nfe) == (expected.ids, expected.nfe) and found.nfe == 9
    fast = model.generate("abc", sampler=Leftmost.name, options={"count": 3}, max_new_tokens=9, length="fixed")[0]
    assert fast.nfe <= 3
    with pytest.raises(UserError, match="count"):
        model.generate("abc", sampler=Leftmost.name, options={"cuont": 3}, max_new_tokens=9)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("tests.laws.outside:NoSampler", "redraft.samplers.base.Sampler"),
        ("tests.laws.outside:Plain", "redraft.samplers.base.Sampler"),
        ("tests.laws.outside:Leftmots", "Leftmost"),
        ("tests.laws.outside:VALUE", "no class"),
        ("tests.laws.outside:", "no class"),
        ("tests.laws.nowhere:Leftmost", "no Python module 'tests.laws.nowhere'"),
        ("nowhere:Leftmost", "no Python module 'nowhere'"),
    ],
)
def test_what_is_no_sampler_is_refused(path: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find("samplers", path)


def test_a_module_whose_own_import_fails_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_outside.py").write_text("import missing_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="missing_dependency"):
        find("samplers", "broken_outside:Leftmost")


@pytest.mark.parametrize("name", [5, None, ["confidence"]], ids=str)
def test_a_name_that_is_no_string_is_unknown(name: object) -> None:
    with pytest.raises(UserError, match="Unknown name"):
        find("samplers", name)  # type: ignore[arg-type]
