"""Every kind of cell computes on tiny untrained models what its value says."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

import redraft
from redraft.constraints import satisfied
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.evaluation.decoding import DecodingConfig
from redraft.model import Model
from redraft.presets import preset
from redraft.study.cells.base import Bench, ModelCell
from redraft.study.cells.checkpoint import Checkpoint
from redraft.study.cells.choices import Choices
from redraft.study.cells.controlled import KINDS, Controlled
from redraft.study.cells.data import Data, Source
from redraft.study.cells.judged import Judged
from redraft.study.cells.likelihood import Likelihood
from redraft.study.cells.memory import Memory
from redraft.study.cells.pace import Pace
from redraft.study.cells.reconstruction import Reconstruction
from redraft.study.cells.timing import Timing
from redraft.study.cells.trivial import Trivial

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "garden", "quietly", "house", "where", "bird", "sang", "all"]
GREEDY = DecodingConfig("autoregressive", {}, temperature=0.0)
STEPS = DecodingConfig("confidence", {"steps": 4}, temperature=0.0)


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * step + number // 14 + step) % len(WORDS)] for step in range(1, 11)) + "."


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench with the data of three tasks, and an untrained model of each kind in ``models``."""
    out = tmp_path_factory.mktemp("cells")
    rows = [{"q": f"{sentence(n + 3)} {n}", "a": sentence(n), "label": ["good", "bad"][n % 2]} for n in range(240)]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = Bench(lambda line: None, out, torch.device("cpu"), None)
    for target in ("a", "label"):
        data(found, target).work(found)
    data(found, "text").work(found)
    tokenizer = Tokenizer.load(data(found, "a").folder(out) / "tokenizer")
    shape = preset("toy", tokenizer.vocab_size, max_length=160)
    for family in ("autoregressive", "masked", "latent"):
        Model.fresh({"name": family}, tokenizer, shape, paired=True, seed=1).save(out / "models" / family)
    for family in ("autoregressive", "masked"):
        Model.fresh({"name": family}, tokenizer, shape, paired=False, seed=1).save(out / "models" / f"plain-{family}")
    return found


def data(bench: Bench, target: str) -> Data:
    paired = {"input": "q", "target": target} if target != "text" else {"text": "a"}
    source = Source("marks", str(bench.out / "rows.jsonl"), **paired)
    kind = "classification" if target == "label" else ""
    sizes = {"vocab_size": 300, "length": 120, "new_tokens": 32, "validation_rows": 6, "test_rows": 8}
    return Data((source,), task=target, kind=kind, **sizes)  # type: ignore[arg-type]


def model(bench: Bench, name: str, target: str = "a") -> ModelCell:
    return Checkpoint(data(bench, target), name, str(bench.out / "models" / name), name)


def test_data_keep_items_rows_and_tokenizer(here: Bench) -> None:
    one = data(here, "a")
    assert one.intact(here.out) and not replace(one, length=121).intact(here.out)
    asked = one.items(here.out, "test")
    assert len(asked) == 8 and all(item.prompt and item.references for item in asked)
    fewer = replace(one, train_rows=20, tokenizer_of=one)
    value = fewer.work(here)
    rows = {e.target for e in fewer.examples(here.out, "train")}
    assert value["rows"]["train"] == 20 and rows <= {e.target for e in one.examples(here.out, "train")}
    with pytest.raises(UserError, match="training rows"):
        replace(one, train_rows=10_000).work(here)
    with pytest.raises(UserError, match="--text"):
        replace(data(here, "text"), sources=(Source("m", one.sources[0].source),)).work(here)


def test_trivial_systems_answer_every_item(here: Bench) -> None:
    value = Trivial(data(here, "label")).work(here)
    assert set(value["texts"]["the most common answer"]) <= {"good", "bad"} and value["bits_per_byte"] > 0
    assert not Trivial(data(here, "text")).work(here)["texts"]


def test_a_checkpoint_is_looked_at(here: Bench) -> None:
    value = model(here, "masked").work(here)
    assert value["family"] == "masked" and value["parameters"] > 1000
    assert model(here, "masked").id != replace(model(here, "masked"), marks="other").id  # type: ignore[type-var]


def test_labels_are_chosen_by_their_likelihood(here: Bench) -> None:
    cell = Choices(model(here, "autoregressive", "label"), data(here, "label"), "test")
    value = cell.work(here)
    assert value["labels"] == ["bad", "good"] and set(value["texts"]) <= {"bad", "good"} and len(value["texts"]) == 8
    loaded, item = redraft.load(here.out / "models" / "autoregressive"), data(here, "label").items(here.out, "test")[0]
    nats = {label: loaded.score(item.prompt, label).nats for label in value["labels"]}
    assert value["texts"][0] == min(nats, key=nats.__getitem__)
    with pytest.raises(UserError, match="no labels"):
        Choices(model(here, "autoregressive"), data(here, "text"), "test").work(here)


def test_likelihoods_are_exact_or_bounds(here: Bench) -> None:
    for name, is_bound in (("autoregressive", False), ("masked", True)):
        value = Likelihood(model(here, name), data(here, "a"), samples=2).work(here)
        assert value["is_bound"] is is_bound and len(value["nats"]) == len(value["bytes"]) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_texts_satisfy_constraints_made_from_references(here: Bench, kind: str) -> None:
    for name, config in (("autoregressive", GREEDY), ("masked", STEPS)):
        cell = Controlled(model(here, name), data(here, "a"), kind, config, 48, 2)
        value = cell.work(here)
        assert value["valid"] == [True, True], (name, value["texts"])
        wanted = KINDS[kind](data(here, "a").items(here.out, "test")[0].references[0])
        assert satisfied(wanted, [value["texts"][0]], [48]) == [True]
    with pytest.raises(UserError, match="Did you mean"):
        Controlled(model(here, "masked"), data(here, "a"), kind + "s", STEPS, 32, 1).work(here)


def test_continuations_are_judged(here: Bench) -> None:
    judge, writer = model(here, "plain-autoregressive", "text"), model(here, "plain-masked", "text")
    value = Judged(writer, judge, data(here, "text"), STEPS, 8).work(here)
    assert value["mauve"] is None, "eight texts are too few"
    for nats, tokens in value["human_nats"]:
        assert nats / tokens == pytest.approx(math.log(300), rel=0.2)  # an untrained judge of 300 tokens


def test_an_autoencoder_reconstructs_a_share_of_the_tokens(here: Bench) -> None:
    value = Reconstruction(model(here, "latent"), data(here, "a")).work(here)
    assert all(0 <= hits <= tokens for hits, tokens in zip(value["hits"], value["tokens"], strict=True))
    with pytest.raises(UserError, match="no autoencoder"):
        Reconstruction(model(here, "masked"), data(here, "a")).work(here)


def test_times_and_their_counting_rule_are_kept(here: Bench) -> None:
    models = (model(here, "autoregressive"), model(here, "masked"))
    value = Timing(data(here, "a"), models, (GREEDY, STEPS), (8, 8), batch=2, calls=3).work(here)
    assert [len(one["seconds"]) for one in value["entries"]] == [3, 3] and value["warm_up"] == 1
    paced = Pace("toy", 300, 4, 64, (4,), batch=1, calls=1).work(here)
    assert paced["steps"] == {"autoregressive": 64, "masked, 4 steps": 4, "masked, 4 steps, dual cache": 4}


def test_memory_is_that_of_a_process_of_its_own(here: Bench) -> None:
    for family, phase in (("masked", "sampling"), ("latent", "training")):
        value = Memory({"name": family}, phase, 1024, "toy", 2048).work(here)
        assert value["full"] > value["less"] > 0
