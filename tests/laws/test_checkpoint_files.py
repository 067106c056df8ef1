"""Laws of checkpoint folders: missing, corrupt and unusual files, special tokens and tokenizers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from redraft.errors import UserError
from redraft.loading import load
from tests.checkpoints import CONFIGS, write


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "m", CONFIGS["llama"][0])


def test_a_truncated_file_is_named_with_its_first_missing_tensor(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors' is corrupt or truncated, from tensor '\S+' on"):
        load(checkpoint)


def test_a_broken_header_is_a_user_error(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="corrupt"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("model.norm.weight"), "tensor 'model.norm.weight' is missing"),
        (lambda state: state.update(extra=torch.ones(2)), "unexpected tensor 'extra'"),
        (lambda state: state.update({"model.norm.weight": torch.ones(7)}), r"'model.norm.weight' has shape \[7\]"),
        (lambda state: state.update({"lm_head.weight": torch.ones(50, 24)}), "'lm_head.weight' differs"),
    ],
)
def test_tensors_that_do_not_match_are_named(checkpoint: Path, change: Any, words: str) -> None:
    state = load_file(checkpoint / "model.safetensors")
    change(state)
    save_file(state, str(checkpoint / "model.safetensors"))
    with pytest.raises(UserError, match=words):
        load(checkpoint)


def test_a_tied_head_may_also_be_stored(checkpoint: Path) -> None:
    before = load(checkpoint).logits(torch.arange(5)[None])
    state = load_file(checkpoint / "model.safetensors")
    save_file(
        {**state, "lm_head.weight": state["model.embed_tokens.weight"].clone()}, str(checkpoint / "model.safetensors")
    )
    assert torch.equal(load(checkpoint).logits(torch.arange(5)[None]), before)


def test_missing_shards_and_tensors_of_an_index_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", CONFIGS["llama"][0], shards=2)
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["ghost"] = "model-00000.safetensors"
    index.write_text(json.dumps(listed))
    with pytest.raises(UserError, match=r"model-00000\.safetensors: tensor 'ghost' is missing"):
        load(folder)
    (folder / "model-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00001\.safetensors' does not exist"):
        load(folder)
    listed["weight_map"]["ghost"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(listed))
    with pytest.raises(UserError, match="in the folder of its index"):
        load(folder)


def test_pickled_weights_load_with_a_warning_and_run_no_code(checkpoint: Path) -> None:
    expected = load(checkpoint).logits(torch.arange(5)[None])
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match="pickled"):
        assert torch.equal(load(checkpoint).logits(torch.arange(5)[None]), expected)

    class Evil:
        def __reduce__(self) -> Any:
            return (warnings.warn, ("it ran",))

    torch.save({"model.norm.weight": Evil()}, checkpoint / "pytorch_model.bin")
    with pytest.warns(UserWarning, match="pickled") as seen, pytest.raises(UserError, match="more than tensors"):
        load(checkpoint)
    assert not any("it ran" in str(warning.message) for warning in seen)


def test_weights_have_the_requested_type(checkpoint: Path) -> None:
    model = load(checkpoint, dtype=torch.bfloat16)
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
    assert model.logits(torch.arange(5)[None]).dtype == torch.bfloat16


def test_a_mask_that_no_file_names_can_be_given(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", CONFIGS["llada_moe"][0])
    with pytest.raises(UserError, match=r"don't name its mask.*mask_id"):
        load(folder).generate([[1, 2]], max_new_tokens=4)
    model = load(folder, mask_id=49)
    assert model.spec.tokens.mask_id == 49
    [found] = model.generate([[1, 2]], max_new_tokens=4, steps=2)
    assert "1 2" + found.text == " ".join(map(str, [1, 2, *found.ids]))  # no tokenizer: texts are ids in digits
    model.save(tmp_path / "own")
    again = load(tmp_path / "own")
    assert again.spec == model.spec
    assert torch.equal(again.logits(torch.arange(6)[None]), model.logits(torch.arange(6)[None]))
    assert again.generate([[1, 2]], max_new_tokens=4, steps=2)[0].ids == found.ids


@pytest.mark.parametrize(
    ("more", "mask_id", "family"),
    [
        ({}, None, "autoregressive"),  # a mask token in the tokenizer alone says nothing about the model
        ({"is_causal": True, "mask_token_id": 261}, None, "autoregressive"),
        ({"mask_token_id": 261}, None, "masked"),
        ({"is_causal": False}, None, "masked"),
        ({"architectures": ["DiscreteDiffusionModel"]}, None, "masked"),
        ({}, 261, "masked"),
    ],
)
def test_a_llama_is_masked_only_where_its_configuration_says_so(
    more: dict[str, Any], mask_id: int | None, family: str, tmp_path: Path
) -> None:
    from tokenizers import AddedToken

    from redraft.data.tokenizer import Tokenizer

    folder = write(tmp_path / "m", {**CONFIGS["llama"][0], **more, "vocab_size": 300})
    backend = Tokenizer.bytes().backend
    backend.add_special_tokens([AddedToken("[MASK]", special=True)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": "[MASK]"}))
    model = load(folder, mask_id=mask_id)
    assert (model.family_name, model.spec.tokens.mask_id) == (family, 261)


def test_special_tokens_are_read_from_the_tokenizer_files(tmp_path: Path) -> None:
    from tokenizers import AddedToken

    from redraft.data.tokenizer import Tokenizer

    folder = write(tmp_path / "m", {**CONFIGS["llada"][0], "vocab_size": 300, "embedding_size": 304})
    backend = Tokenizer.bytes().backend
    backend.add_special_tokens([AddedToken("<|mdm_mask|>", special=True), AddedToken("<|end|>", special=True)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "mask_token": "<|mdm_mask|>"}))
    model = load(folder)
    assert (model.spec.tokens.mask_id, model.spec.tokens.eos_id) == (261, 262)
    assert model.tokenizer.vocab_size == 304
    assert model.tokenizer.decode(model.tokenizer.encode("naïve")) == "naïve"
    model.save(tmp_path / "own")
    assert (tmp_path / "own" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert load(tmp_path / "own").generate("ab", max_new_tokens=4, steps=2)


@pytest.mark.parametrize("kind", ["DreamTokenizer", "GPT2Tokenizer", "BertTokenizer"])
def test_older_tokenizer_files_are_read_as_transformers_reads_them(kind: str, tmp_path: Path) -> None:
    """Dream has vocab.json, merges.txt and its own code, which is not run; the saved folder has a tokenizer.json."""
    transformers = pytest.importorskip("transformers")
    from redraft.data.tokenizer import Tokenizer

    folder = write(tmp_path / "m", {**CONFIGS["dream"][0], "vocab_size": 400, "mask_token_id": None})
    if kind == "BertTokenizer":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "12", "three"]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        named = {"mask_token": "[MASK]", "unk_token": "[UNK]"}
    else:
        trained = Tokenizer.train(["the cats are three, it's 12 o'clock"] * 9, 300).backend
        trained.model.save(str(folder))
        named = {"mask_token": "<|mask|>", "eos_token": "<|endoftext|>"}
        special = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        ids = enumerate(named.values(), trained.get_vocab_size())
        named["added_tokens_decoder"] = {str(number): {"content": text, **special} for number, text in ids}
    remote = {"auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **remote, **named}))
    reference = getattr(transformers, kind.replace("Dream", "Qwen2")).from_pretrained(folder)
    model = load(folder)
    text = "the cats are three, 12 cats"
    assert model.tokenizer.encode(text) == reference(text, add_special_tokens=False).input_ids
    assert model.spec.tokens.mask_id == reference.mask_token_id
    model.save(tmp_path / "own")
    assert load(tmp_path / "own").tokenizer.encode(text) == model.tokenizer.encode(text)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "own")
    assert again(text, add_special_tokens=False).input_ids == model.tokenizer.encode(text)


def test_an_unreadable_tokenizer_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(UserError, match="LlamaTokenizer"):
        load(checkpoint)
    (checkpoint / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json' is not a valid"):
        load(checkpoint)


def test_integer_tensors_are_user_errors(checkpoint: Path) -> None:
    state = load_file(checkpoint / "model.safetensors")
    save_file(state | {"model.norm.weight": torch.ones(24, dtype=torch.int32)}, str(checkpoint / "model.safetensors"))
    with pytest.raises(UserError, match=r"model\.safetensors: tensor 'model\.norm\.weight' holds int32"):
        load(checkpoint)


def test_several_end_of_text_ids_are_one_event(checkpoint: Path) -> None:
    """Llama 3 names three. The probability of ending is the sum of theirs, and none of them occurs in a text."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"eos_token_id": [7, 9]}))
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9, 11]}))
    model = load(checkpoint, "cpu")
    assert (model.spec.tokens.eos_id, model.spec.tokens.stop_ids) == (7, (9, 11))
    seen = []
    run = model.start([[5, 6, 4]], model.settings(max_new_tokens=1))
    run.loop.on_answer = lambda request, out: seen.append(out.log_p[0].exp())
    list(run)
    p = model.logits(torch.tensor([[5, 6, 4]]))[0, -1].softmax(-1)
    torch.testing.assert_close(seen[0][7], p[[7, 9, 11]].sum())
    assert seen[0][9] == seen[0][11] == 0
    model.save(checkpoint.parent / "again")
    assert load(checkpoint.parent / "again", "cpu").spec.tokens.stop_ids == (9, 11)


def test_ids_beyond_the_vocabulary_are_user_errors(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="Prompt id 50"):
        load(checkpoint).generate([[1, 50]], max_new_tokens=2)
