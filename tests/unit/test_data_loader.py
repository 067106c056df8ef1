"""Laws of the loader: every token once in each epoch, exact resume and sharding, little padding."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from redraft.data.examples import Example
from redraft.data.loader import Loader, Tokenised, batches
from redraft.data.tokenising import tokenise
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.types import Batch

TOKENIZER = Tokenizer.bytes()


def pairs(count: int, seed: int = 0, longest: int = 40) -> Tokenised:
    draw = random.Random(seed)
    words = ["a", "bé", "cat", "猫"]
    rows = [
        Example(
            f"{i} " + draw.choice(words) * draw.randrange(longest // 4),
            f"{i}:" + "x" * draw.randrange(longest),
            f"f:{i}",
        )
        for i in range(count)
    ]
    return tokenise(rows, TOKENIZER)


def texts(count: int, seed: int = 0, longest: int = 60) -> Tokenised:
    draw = random.Random(seed)
    return tokenise([Example(None, f"{i}é" * draw.randrange(1, longest), f"f:{i}") for i in range(count)], TOKENIZER)


def epoch(loader: Loader) -> list[Batch]:
    return list(itertools.islice(loader, loader.batches_per_epoch))


def row_texts(batch: Batch) -> list[tuple[str, str]]:
    """Decode rows through the masks alone, and check the row format."""
    assert batch.prompt is not None
    found = []
    for ids, target, valid, prompt, size in zip(
        batch.ids, batch.target, batch.valid, batch.prompt.tolist(), batch.bytes.tolist(), strict=True
    ):
        length = int(valid.sum())
        assert valid[:length].all() and (ids[length:] == TOKENIZER.pad_id).all()
        assert ids[prompt - 1] == TOKENIZER.sep_id and ids[length - 1] == TOKENIZER.eos_id
        assert target.tolist() == [prompt <= i < length for i in range(len(ids))]
        answer = TOKENIZER.decode(ids[target].tolist())
        assert size == len(answer.encode())
        found.append((TOKENIZER.decode(ids[: prompt - 1].tolist()), answer))
    return found


def same(left: Batch, right: Batch) -> bool:
    prompts = left.prompt is right.prompt if left.prompt is None else torch.equal(left.prompt, right.prompt)  # type: ignore[arg-type]
    return bool(prompts) and all(
        torch.equal(getattr(left, k), getattr(right, k)) for k in ("ids", "target", "valid", "bytes")
    )


@given(st.integers(1, 60), st.integers(0, 3), st.integers(90, 400))
@settings(max_examples=25, deadline=None)
def test_every_pair_once_an_epoch_within_the_budget(count: int, seed: int, budget: int) -> None:
    data = pairs(count, seed)
    loader = Loader(data, TOKENIZER, length=90, batch_tokens=budget, seed=seed)
    wanted = sorted(row for batch in batches(data, TOKENIZER, 90, budget) for row in row_texts(batch))
    assert len(set(wanted)) == count
    for _ in range(2):
        found = epoch(loader)
        assert all(batch.ids.numel() <= budget for batch in found)
        assert sorted(row for batch in found for row in row_texts(batch)) == wanted


def test_pairs_decode_to_their_examples() -> None:
    rows = [Example("Grüße", "hello", "f:1"), Example("", "猫", "f:2")]
    found = batches(tokenise(rows, TOKENIZER), TOKENIZER, 20, 100)
    assert sorted(row for batch in found for row in row_texts(batch)) == [("", "猫"), ("Grüße", "hello")]


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_every_token_of_every_document_once_an_epoch(count: int, length: int, seed: int) -> None:
    data = texts(count, seed)
    documents = Counter(TOKENIZER.decode(data.ids[a:b]) for a, b in itertools.pairwise(data.starts.tolist()))
    loader = Loader(data, TOKENIZER, length, batch_tokens=4 * (length + 1), seed=seed)
    for _ in range(2):
        found = epoch(loader)
        assert sum(int(batch.target.sum()) for batch in found) == len(data.ids)
        tokens = Counter(token for batch in found for token in batch.ids[batch.target].tolist())
        assert tokens == Counter(data.ids.tolist())
        assert sum(int(batch.bytes.sum()) for batch in found) == sum(
            len(text.encode()) * n for text, n in documents.items()
        )
        for batch in found:
            assert batch.prompt is None and (batch.ids[:, 0] == TOKENIZER.bos_id).all()
            assert batch.valid[:, 0].all() and not batch.target[:, 0].any()
            assert torch.equal(batch.target[:, 1:], batch.valid[:, 1:])
            assert (batch.ids[~batch.valid] == TOKENIZER.pad_id).all()
            assert batch.ids.shape[1] <= length + 1
    # in order, the windows joined are the documents joined
    stream = [
        token
        for batch in batches(data, TOKENIZER, length, 4 * (length + 1))
        for token in batch.ids[batch.target].tolist()
    ]
    assert stream == data.ids.tolist()


def test_a_shuffled_epoch_keeps_documents_whole() -> None:
    data = texts(12, longest=20)
    loader = Loader(data, TOKENIZER, length=len(data.ids), batch_tokens=len(data.ids) + 1)
    orders = []
    for _ in range(3):
        (batch,) = epoch(loader)
        stream = batch.ids[0, 1:].tolist()
        cut = [i + 1 for i, token in enumerate(stream) if token == TOKENIZER.eos_id]
        orders.append([TOKENIZER.decode(stream[a:b]) for a, b in itertools.pairwise([0, *cut])])
    whole = sorted(TOKENIZER.decode(data.ids[a:b]) for a, b in itertools.pairwise(data.starts.tolist()))
    assert all(sorted(order) == whole for order in orders)
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("make", [pairs, texts])
def test_resume_is_exact_and_depends_on_the_seed(make: object) -> None:
    data = make(50)  # type: ignore[operator]
    straight = Loader(data, TOKENIZER, 100, 300, seed=7)
    one_pass = straight.batches_per_epoch
    for stop in (0, 1, one_pass - 1, one_pass, 2 * one_pass + 1):
        loader = Loader(data, TOKENIZER, 100, 300, seed=7)
        for _ in range(stop):
            next(loader)
        state = json.loads(json.dumps(loader.state_dict()))  # a checkpoint holds it as JSON
        resumed = Loader(data, TOKENIZER, 100, 300, seed=7)
        resumed.load_state_dict(state)
        assert resumed.epochs == loader.epochs
        assert all(same(next(resumed), next(loader)) for _ in range(one_pass + 2))
    other = Loader(data, TOKENIZER, 100, 300, seed=8)
    assert not all(same(next(other), next(straight)) for _ in range(5))
    with pytest.raises(UserError, match="differ from those of the run"):
        other.load_state_dict(straight.state_dict())
    with pytest.raises(UserError, match="differ from those of the run"):
        Loader(make(50, seed=1), TOKENIZER, 100, 300, seed=7).load_state_dict(straight.state_dict())  # type: ignore[operator]


@pytest.mark.parametrize("make", [pairs, texts])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_sequence_of_one(make: object, world: int) -> None:
    data = make(40)  # type: ignore[operator]
    one = Loader(data, TOKENIZER, 100, 300)
    ranks = [Loader(data, TOKENIZER, 100, 300, rank=rank, world=world) for rank in range(world)]
    for step in range(2 * one.batches_per_epoch):
        assert all(same(next(rank), next(one)) for rank in ranks)
        assert all(rank.state_dict() == one.state_dict() for rank in ranks), step
    more = Loader(data, TOKENIZER, 100, 300, world=1)
    more.load_state_dict(ranks[0].state_dict())
    assert same(next(more), next(one))  # resumed on another number of ranks


def test_epochs_are_counted() -> None:
    loader = Loader(pairs(30), TOKENIZER, 100, 300)
    steps = loader.batches_per_epoch
    for _ in range(steps):
        next(loader)
    assert loader.epochs == 1.0
    next(loader)
    assert loader.epochs == 1 + 1 / loader.batches_per_epoch


def test_padding_is_small_and_padding_share_is_exact() -> None:
    loader = Loader(pairs(3000, longest=200), TOKENIZER, 400, 4096)
    share = loader.padding_share()
    found = epoch(loader)
    positions = sum(batch.ids.numel() for batch in found)
    assert share == pytest.approx(1 - sum(int(batch.valid.sum()) for batch in found) / positions)
    assert share < 0.03
    lengths = [int(batch.valid.sum(1).max()) for batch in found]
    assert lengths != sorted(lengths)  # batches are shuffled, not short before long
    windows = Loader(texts(200), TOKENIZER, 64, 2080)
    share = windows.padding_share()
    found = epoch(windows)
    wasted = sum(int((~batch.valid).sum()) for batch in found)
    assert share == pytest.approx(wasted / sum(batch.ids.numel() for batch in found))
    assert wasted < 64  # only the last window is short


def test_rows_that_are_too_long_raise_or_follow_the_policy() -> None:
    rows = [Example("p" * 10, "t" * 3, "f:1"), Example("abcdefghij" * 3, "end", "f:2"), Example("q", "u", "f:3")]
    data = tokenise(rows, TOKENIZER)
    with pytest.raises(UserError, match=r"1 of 3 rows are longer than 20 tokens, the first at f:2 \(35\)"):
        Loader(data, TOKENIZER, 20, 100)
    skipping = Loader(data, TOKENIZER, 20, 100, too_long="skip")
    assert skipping.fit.skipped == ["f:2"]
    assert sorted(row_texts(next(skipping))) == [("p" * 10, "ttt"), ("q", "u")]
    cutting = Loader(data, TOKENIZER, 20, 100, too_long="truncate_prompt")
    assert cutting.fit.truncated == ["f:2"] and cutting.fit.skipped == []
    assert ("fghijabcdefghij", "end") in row_texts(next(cutting))
    with pytest.raises(UserError, match="f:1: The target alone does not fit into 4 tokens"):
        Loader(data, TOKENIZER, 4, 100, too_long="truncate_prompt")
    with pytest.raises(UserError, match="All 3 rows"):
        Loader(data, TOKENIZER, 2, 100, too_long="skip")
    with pytest.raises(UserError, match="policy"):
        Loader(data, TOKENIZER, 20, 100, too_long="cut")
    with pytest.raises(UserError, match="35 tokens.* 30"):
        Loader(data, TOKENIZER, 50, 30)
    with pytest.raises(UserError, match="51 tokens.* 30"):
        Loader(texts(3), TOKENIZER, 50, 30)


def test_mixed_and_missing_examples_are_refused() -> None:
    with pytest.raises(UserError, match="have a prompt"):
        tokenise([Example("a", "b", "f:1"), Example(None, "b", "f:2")], TOKENIZER)
    with pytest.raises(UserError, match="no examples"):
        tokenise([], TOKENIZER)


def test_ids_beyond_sixteen_bits() -> None:
    words = {f"word{i}": i for i in range(66_000)}  # never reached: there are no merges
    symbols = {symbol: 66_000 + i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocab=words | symbols, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    wide = Tokenizer(backend)
    (batch,) = batches(tokenise([Example("a", "bé", "f:1")], wide), wide, 10, 10)
    expected = [symbols["a"], wide.sep_id, symbols["b"], symbols["Ã"], symbols["©"], wide.eos_id]
    assert batch.ids.tolist() == [expected]
    assert batch.bytes.tolist() == [3]
