"""Laws of tokenizers: lossless, text never becomes a special token, saving and loading is exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from redraft.data.tokenizer import SPECIALS, Tokenizer
from redraft.errors import UserError

TEXTS = ["the cat sat on the mat", "der Hund saß auf der Matte", "猫が座った", "x = 1\n\ty += 2\r\n"] * 5
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))  # every code point but halves of surrogate pairs
TOKENIZERS = {"bytes": Tokenizer.bytes(), "bpe": Tokenizer.train(TEXTS, 320)}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    text=UNICODE
    | st.sampled_from(["<eos>", "<mask><pad> <sep>", "\u0000", "\ufeff", "\u200d", "\U0010ffff", "e\u0301"])
)
@settings(max_examples=150, deadline=None)
def test_encoding_is_lossless_and_gives_no_special_token(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.bytes_of(ids) == len(text.encode())
    assert all(len(SPECIALS) <= i < tokenizer.vocab_size for i in ids)


def test_own_specials_have_the_first_ids() -> None:
    for tokenizer in TOKENIZERS.values():
        specials = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.mask_id, tokenizer.sep_id)
        assert specials == (0, 1, 2, 3, 4)
        assert tokenizer.markers == (0, 2, 3, 4)
        assert tokenizer.added == ()
        assert tokenizer.decode([2, *tokenizer.encode("ab"), 4, 3, 0, 1]) == "ab"


def test_byte_tokenizer_ids_are_bytes() -> None:
    tokenizer = TOKENIZERS["bytes"]
    assert tokenizer.vocab_size == 261
    assert tokenizer.encode("aé") == [5 + byte for byte in "aé".encode()]
    assert tokenizer.decode([5 + byte for byte in "猫".encode()]) == "猫"
    # the shortcut for bytes agrees with the file it saves
    backend = tokenizer.backend.encode("aé <eos>\n猫", add_special_tokens=False).ids
    assert tokenizer.encode("aé <eos>\n猫") == backend


def test_prompt_and_target_end_with_their_special_token() -> None:
    tokenizer = TOKENIZERS["bpe"]
    assert tokenizer.encode_prompt("cat") == [*tokenizer.encode("cat"), tokenizer.sep_id]
    assert tokenizer.encode_target("cat") == [*tokenizer.encode("cat"), tokenizer.eos_id]
    assert tokenizer.encode_batch(["the cat", ""]) == [tokenizer.encode("the cat"), []]


def test_training_is_deterministic_and_learns_merges() -> None:
    again = Tokenizer.train(TEXTS, 320)
    assert again.fingerprint == TOKENIZERS["bpe"].fingerprint
    assert again.fingerprint != Tokenizer.train(TEXTS, 300).fingerprint
    assert 261 < again.vocab_size <= 320
    assert len(again.encode("the cat sat")) < len(b"the cat sat")


def test_save_and_load(tmp_path: Path) -> None:
    for name, tokenizer in TOKENIZERS.items():
        tokenizer.save(tmp_path / name)
        for path in (tmp_path / name, tmp_path / name / "tokenizer.json"):
            loaded = Tokenizer.load(path)
            assert loaded.fingerprint == tokenizer.fingerprint
            assert loaded.encode("the <eos> 猫") == tokenizer.encode("the <eos> 猫")
            assert loaded.added == ()
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_transformers_reads_what_we_save(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = TOKENIZERS["bpe"]
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("der Hund", add_special_tokens=False)["input_ids"] == ours.encode("der Hund")
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.mask_token_id) == (ours.pad_id, ours.eos_id, ours.mask_id)


def foreign(folder: Path, special: list[str], config: dict[str, object]) -> Path:
    """A byte-level tokenizer.json as GPT-2's: specials after the vocabulary."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(special)
    backend.enable_padding(length=50)
    backend.enable_truncation(3)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_special_tokens_of_a_foreign_tokenizer(tmp_path: Path) -> None:
    end = "<|endoftext|>"
    gpt2 = Tokenizer.load(foreign(tmp_path / "gpt2", [end], {"eos_token": end, "bos_token": {"content": end}}))
    assert gpt2.eos_id == gpt2.bos_id == 256
    assert gpt2.added == ("pad", "mask", "sep")
    assert sorted((gpt2.pad_id, gpt2.mask_id, gpt2.sep_id)) == [257, 258, 259]
    assert gpt2.vocab_size == 260
    assert gpt2.markers == (257, 258, 259)  # end-of-text can be generated although it is also bos
    assert gpt2.decode(gpt2.encode("longer than three tokens")) == "longer than three tokens"
    assert gpt2.bytes_of(gpt2.encode("猫 <|endoftext|>")) == len("猫 <|endoftext|>".encode())

    named = foreign(
        tmp_path / "named", ["<s>", "</s>", "[MASK]", "<odd>"], {"pad_token": "<odd>", "sep_token": "<new>"}
    )
    loaded = Tokenizer.load(named)
    assert (loaded.bos_id, loaded.eos_id, loaded.mask_id, loaded.pad_id, loaded.sep_id) == (256, 257, 258, 259, 260)
    assert loaded.added == ("sep",)
    loaded.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint == loaded.fingerprint


def test_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too small"):
        Tokenizer.train(TEXTS, 100)
    with pytest.raises(UserError, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a valid tokenizer.json"):
        Tokenizer.load(tmp_path)
    for tokenizer in TOKENIZERS.values():
        with pytest.raises(UserError, match=r"character 3 is U\+D800"):
            tokenizer.encode("ab\ud800")
