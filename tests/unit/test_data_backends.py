"""Tokenizers from elsewhere: files made to end the process, and the space between a prompt and its continuation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from redraft.data.backends import read_tokenizer_json
from redraft.data.tokenizer import Tokenizer
from redraft.data.vocabulary import Ids, Vocabulary
from redraft.errors import UserError
from redraft.model import Model
from redraft.presets import preset

TEXTS = ["hello there how are you", "we went a day to the house"] * 3


def trained(kind: str) -> tokenizers.Tokenizer:
    """A small vocabulary: byte-level, like SentencePiece's (whose decoder drops a first space), or WordPiece."""
    if kind == "wordpiece":
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"]))
        return made
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=kind == "pieces", unk_token=None))
    alphabet = list("abcdefghijklmnopqrstuvwxyz")
    if kind == "pieces":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        strip = decoders.Strip(content=" ", left=1)
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    else:
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return made


@pytest.mark.parametrize("kind", ["bytes", "pieces", "wordpiece"])
def test_prompt_and_text_are_the_whole(tmp_path: Path, kind: str) -> None:
    backend = trained(kind)
    backend.save(str(tmp_path / "tokenizer.json"))
    vocabulary = Vocabulary(Ids(backend.get_vocab_size(), eos=0), tmp_path)
    shape = preset("toy", vocabulary.vocab_size, dim=32, max_length=64)
    model = Model.fresh({"name": "autoregressive"}, vocabulary, shape, paired=False)
    texts = model.generate(["hello"] * 200, batch_size=200, max_new_tokens=3, temperature=3.0)
    for found in texts:
        assert "hello" + found.text == vocabulary.decode([*vocabulary.encode_opening("hello"), *found.ids])
    assert any(found.text.startswith(" ") for found in texts), "some continuation begins a new word"
    model.paired = True
    for found in model.generate(["hello"] * 20, max_new_tokens=3, temperature=3.0, length="fixed"):
        assert found.text == vocabulary.decode(found.ids), "an answer doesn't go on from its prompt"


def explosive(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(trained("bytes").to_str())
    values["model"] |= changes.pop("model", {})
    return values | changes


def nested(depth: int) -> Any:
    inner: Any = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    for _ in range(depth):
        inner = {"type": "Sequence", "pretokenizers": [inner]}
    return inner


HOSTILE = {
    "large id": explosive(model={"vocab": {"a": 0, "b": 4_294_967_295}, "merges": []}),
    "large added id": explosive(added_tokens=[{"id": 3_000_000_000, "content": "x", "special": True}]),
    "negative id": explosive(model={"vocab": {"a": -1}, "merges": []}),
    "deep": explosive(pre_tokenizer=nested(400)),
    "no model": {"version": "1.0"},
    "unknown merge": explosive(model={"vocab": {"a": 0}, "merges": [["a", "zz"]]}),
    "a list": [],
}


@pytest.mark.parametrize("values", HOSTILE.values(), ids=HOSTILE)
def test_a_tokenizer_made_to_explode_is_an_error_in_words(tmp_path: Path, values: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"tokenizer\.json' is not "):
        Tokenizer.load(tmp_path)


def test_unusual_files_that_are_valid_are_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(explosive(pre_tokenizer=nested(30))))
    assert read_tokenizer_json(tmp_path / "tokenizer.json").encode("hello").ids
