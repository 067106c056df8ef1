"""Laws of a streamed corpus: every row once a pass, exact resume and sharding, the splits of the in-memory reader."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.data.corpus import Corpus, Read
from redraft.data.examples import Example, load
from redraft.data.stream_loader import StreamLoader
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.train.logging import Event
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from redraft.types import Batch

TOKENIZER = Tokenizer.bytes()
ALL = (1.0, 0.0, 0.0)


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files, of 40, 3 and 57 rows."""
    folder = tmp_path_factory.mktemp("pairs")
    for file, count in enumerate((40, 3, 57)):
        rows = [{"input": f"{file}-{i} é" + "y" * (i % 9), "target": "x" * (i % 13 + 1)} for i in range(count)]
        write(folder / f"part-{file}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    write(path, ({"text": f"[{number}]" + "é" * (number * 7 % 40)} for number in range(60)))
    return path


def loader(source: Path, **changes: Any) -> StreamLoader:
    """Its buffer holds about 30 rows."""
    corpus = Corpus.open(str(source), fractions=ALL)
    settings: dict[str, Any] = {"length": 60, "batch_tokens": 240, "buffer": 700, "seed": 3}
    return StreamLoader(corpus, TOKENIZER, **{**settings, **changes})


def passes(found: StreamLoader, count: int) -> list[list[Batch]]:
    """The batches of the first passes."""
    batches: list[list[Batch]] = [[] for _ in range(count)]
    while True:
        batch = next(found)
        epoch = found.state_dict()["pool"][0]  # of the batch that was taken last
        if epoch == count:
            return batches
        batches[epoch].append(batch)


def contents(batches: Iterable[Batch]) -> Counter[str]:
    """The rows of batches as text."""
    rows = (row for batch in batches for row in zip(batch.ids, batch.valid, strict=True))
    return Counter(TOKENIZER.decode(ids[valid].tolist()) for ids, valid in rows)


def same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.ids, other.ids) and torch.equal(one.target, other.target)


def test_each_pair_comes_once_in_each_pass(pairs: Path) -> None:
    expected = Counter(f"{one.prompt}{one.target}" for one in load(str(pairs), fractions=ALL).train)
    first, second = passes(loader(pairs), 2)
    assert contents(first) == contents(second) == expected
    assert [batch.ids.tolist() for batch in first] != [batch.ids.tolist() for batch in second]
    assert all(batch.ids.numel() <= 240 for batch in first)


def test_each_token_of_text_comes_once_in_each_pass(texts: Path) -> None:
    rows = load(str(texts), fractions=ALL).train
    expected = Counter(id_ for row in rows for id_ in TOKENIZER.encode_target(row.target))
    for batches in passes(loader(texts), 2):
        assert Counter(id_ for batch in batches for id_ in batch.ids[batch.target].tolist()) == expected
        assert sum(int(batch.bytes.sum()) for batch in batches) == sum(len(row.target.encode()) for row in rows)


@pytest.mark.parametrize("world", [1, 2, 5])
def test_ranks_take_turns_and_a_resumed_run_goes_on_with_any_number_of_them(pairs: Path, world: int) -> None:
    straight = list(itertools.islice(loader(pairs), 60))
    ranks = [loader(pairs, rank=rank, world=world) for rank in range(world)]
    assert all(same(next(ranks[k % world]), straight[k]) for k in range(20))
    state = json.loads(json.dumps(ranks[0].state_dict()))
    for others in (1, 3):
        resumed = [loader(pairs, rank=rank, world=others) for rank in range(others)]
        for one in resumed:
            one.load_state_dict(state)
        assert all(same(next(resumed[k % others]), straight[20 + k]) for k in range(30))
    with pytest.raises(UserError, match="differ from those of the run"):
        loader(pairs, seed=4).load_state_dict(state)


def test_a_run_resumes_at_every_step(texts: Path) -> None:
    straight = loader(texts)
    for _ in range(25):
        resumed = loader(texts)
        resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
        assert same(next(straight), next(resumed)) and straight.epochs == resumed.epochs


class Counted(Corpus):
    """A corpus that counts the rows read."""

    read = 0

    def rows(self, *arguments: Any, **more: Any) -> Iterator[Read]:
        for row in super().rows(*arguments, **more):
            Counted.read += 1
            yield row


def test_only_one_filling_of_the_buffer_is_read_ahead() -> None:
    opened = Counted.open("multiplication:4x4:20000", fractions=ALL)
    assert Counted.read <= 8000  # to know whether it is small
    Counted.read = 0
    found = StreamLoader(opened, TOKENIZER, 400, 4000, buffer=20_000)
    next(found)
    assert Counted.read < 1000  # of about 32 bytes each
    before = found.state_dict()
    while found.state_dict()["pool"][3] < 3:
        next(found)
    assert before["pool"][3] == 0 and Counted.read < 4000, "no row is read twice in a pass"


def test_the_splits_are_those_of_the_reader_in_memory(pairs: Path, tmp_path: Path) -> None:
    def key(examples: Iterable[Example]) -> list[tuple[str | None, str]]:
        return [(one.prompt, one.target) for one in examples]

    for fractions in (None, (0.5, 0.3, 0.2)):
        corpus, whole = Corpus.open(str(pairs), fractions=fractions), load(str(pairs), fractions=fractions)
        assert key(corpus.examples()) == key(whole.train)
        found = corpus.sample(10**6, 5)
        assert key(found.train) == key(whole.train) and key(found.validation) == key(whole.validation)[:5]
    rows = [{"input": str(number), "target": "x"} for number in range(300)]
    write(tmp_path / "a.train.jsonl", rows[:200])
    write(tmp_path / "a.dev.jsonl", rows[200:])
    corpus, whole = Corpus.open(str(tmp_path / "a")), load(str(tmp_path / "a"))
    assert key(corpus.examples()) == key(whole.train) and len(whole.train) < 200  # test rows are cut from training
    assert key(corpus.sample(10**6, 500).validation) == key(whole.validation)


def test_bad_rows_are_errors_or_left_out_and_told(pairs: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text((pairs / "part-0.jsonl").read_text(encoding="utf-8") + "{\n" + '{"input": "long", "target": "')
    path.write_text(path.read_text(encoding="utf-8") + "x" * 300 + '"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"bad.jsonl:41: not valid JSON"):
        Corpus.open(str(path), fractions=ALL)
    corpus = Corpus.open(str(path), fractions=ALL, skip_bad_rows=True)
    with pytest.warns(UserWarning, match=r"2 rows were left out, 2 so far \(the first: .*bad.jsonl:41: not valid JSON"):
        found = StreamLoader(corpus, TOKENIZER, 60, 240, buffer=10**6, too_long="skip")
    assert found.skipped == 2 and sum(contents(passes(found, 1)[0]).values()) == 40


SMALL = ["data.length=128", "train.tokens=6000", "train.batch_tokens=512", "train.log_every=3", "train.threads=1"]
SMALL += ["train.validate_every=0", "train.validation_rows=12", "train.dtype=float32", "model.config.dim=32"]
TOY = Path(__file__).parents[2] / "recipes" / "toy"


class Interrupted(Exception):
    pass


def test_a_streamed_run_is_resumed_exactly(tmp_path: Path) -> None:
    streamed = [*SMALL, "data.streaming=true", "data.buffer=0.002", "tokenizer.vocab_size=300"]
    recipe = Recipe.load(TOY / "masked.toml", streamed)
    said: list[Event] = []
    train(recipe, tmp_path / "whole", device="cpu", on_event=said.append)
    note = next(event for event in said if event.kind == "start").values["notes"][0]
    assert "the tokenizer and the lengths of answers come from a sample" in note

    def stop(event: Event) -> None:
        if event.kind == "update" and event.step >= 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(
            Recipe.load(TOY / "masked.toml", [*streamed, "train.save_every_tokens=1000"]),
            tmp_path / "cut",
            device="cpu",
            on_event=stop,
        )
    train(recipe, tmp_path / "cut", device="cpu")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    with pytest.raises(UserError, match="size of a pass is not known"):
        Recipe.load(TOY / "masked.toml", [*streamed, "train.passes=1"])
