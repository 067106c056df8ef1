"""GGUF files, written here with the package gguf: weights, tokenizer, chat template; and what is refused, and how."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from redraft import shipped
from redraft.data import chat
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.gguf_file import GgufFile
from redraft.loading import load, model_info, resolve, stable_name
from tests import checkpoints

gguf = pytest.importorskip("gguf")

_SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 64}
_SHAPE |= {"num_attention_heads": 4, "vocab_size": 300, "rms_norm_eps": 1e-5}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 8192}
_LINEAR = {"rope_type": "linear", "factor": 2.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
# Type of the matrices, architecture, and the configuration of the checkpoint that the file is made from.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("F32", "llama", {"num_key_value_heads": 2}),
    ("F16", "llama", {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True}),
    ("Q8_0", "llama", {"mlp_bias": True, "rope_theta": 1e5}),
    ("Q4_1", "llama", {"head_dim": 32, "rope_theta": 5e5, "rope_scaling": _LLAMA3}),
    ("Q4_0", "qwen2", {"num_key_value_heads": 2, "rope_scaling": _LINEAR}),
    ("Q5_0", "qwen2", {"rope_scaling": _YARN}),
    ("Q5_1", "qwen3", {"head_dim": 32, "num_key_value_heads": 2}),
    ("BF16", "qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
]
_RENAMED = {
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "norm": "output_norm",
}


def write(folder: Path, kind: str, arch: str, shape: dict[str, Any], metadata: dict[str, Any] | None = None) -> Path:
    """A GGUF file in a folder, beside ``hf``: the checkpoint that it stands for, with the values that the package
    ``gguf`` reads from it. ``metadata`` replaces or removes (None) entries."""
    config = _SHAPE | {"num_key_value_heads": 4, "head_dim": 16, "rope_theta": 1e4, "model_type": arch} | shape
    weights = checkpoints.write(folder / "hf", config) / "model.safetensors"
    state, path = load_file(weights), folder / "model.gguf"
    writer = gguf.GGUFWriter(path, arch)
    for name, value in state.items():
        *block, stem, ending = name.split(".")
        stored = f"{_RENAMED[stem]}.{ending}"
        used = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        heads = config["num_attention_heads" if stem == "q_proj" else "num_key_value_heads"]
        swapped = arch == "llama" and stem in ("q_proj", "k_proj")  # partners in a rotation become neighbours
        rows = value.view(heads, 2, -1, *value.shape[1:]).transpose(1, 2).reshape(value.shape) if swapped else value
        data = gguf.quantize(rows.numpy(), used)
        writer.add_tensor(f"blk.{block[2]}.{stored}" if "layers" in block else stored, data, raw_dtype=used)
        read = torch.from_numpy(gguf.dequantize(data.view("u1") if kind == "BF16" else data, used).copy())
        state[name] = (
            read.view(heads, -1, 2, *value.shape[1:]).transpose(1, 2).reshape(value.shape) if swapped else read
        )
    save_file(state, str(weights))
    if config.get("rope_scaling") == _LLAMA3:
        writer.add_tensor("rope_freqs.weight", _divisors(config).numpy())
    _describe(writer, arch, config)
    for key, setting in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)
        if setting is not None:
            kind_of = gguf.GGUFValueType.UINT32 if type(setting) is int else gguf.GGUFValueType.get_type(setting)
            writer.add_key_value(key, setting, kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _divisors(config: dict[str, Any]) -> torch.Tensor:
    """[head_dim / 2] how much Llama 3.1 slows each rotation down."""
    found = []
    for i in range(0, config["head_dim"], 2):
        turns = 8192 / (2 * math.pi * config["rope_theta"] ** (i / config["head_dim"]))
        smooth = (turns - 1) / 3
        found.append(8.0 if turns < 1 else 1.0 if turns > 4 else 1 / ((1 - smooth) / 8 + smooth))
    return torch.tensor(found)


def _describe(writer: Any, arch: str, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    if config.get("rope_scaling") in (_LINEAR, _YARN):
        scaling = config["rope_scaling"]
        writer.add_string(f"{arch}.rope.scaling.type", scaling["rope_type"])
        writer.add_float32(f"{arch}.rope.scaling.factor", scaling["factor"])
        if scaling is _YARN:
            writer.add_uint32(f"{arch}.rope.scaling.original_context_length", 16)
    letters = sorted(symbol for symbol in Tokenizer.bytes().backend.get_vocab() if len(symbol) == 1)
    tokens = ["<|im_start|>", "<|im_end|>", "<think>", *letters, "Ġt", "he", "Ġthe", "12"]
    fill = range(len(tokens), config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*tokens, *(f"[PAD{number}]" for number in fill)])
    writer.add_token_types([3, 3, 4, *[1] * (len(tokens) - 3), *[5] * len(fill)])
    writer.add_token_merges(["Ġ t", "h e", "Ġt he", "1 2"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(_TEMPLATE)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf"), "Q8_0", "llama", {})


@pytest.mark.parametrize(("kind", "arch", "shape"), CASES, ids=lambda value: str(value)[:12])
def test_a_file_is_the_checkpoint_it_was_made_from(kind: str, arch: str, shape: dict[str, Any], tmp_path: Path) -> None:
    path, ids = write(tmp_path, kind, arch, shape), torch.arange(60).view(2, 30) * 4 % 300
    ours, theirs = load(path, "cpu"), load(tmp_path / "hf", "cpu")
    assert ours.network.config == theirs.network.config
    assert torch.equal(ours.logits(ids), theirs.logits(ids))
    half = load(path, "cpu", torch.bfloat16)
    assert {parameter.dtype for parameter in half.network.parameters()} == {torch.bfloat16}


def test_the_tokenizer_and_the_chat_template_come_from_the_metadata(file: Path) -> None:
    tokenizer, template = load(file, "cpu").tokenizer, chat.template_of(file)
    vocabulary = tokenizer.backend.get_vocab()
    assert [tokenizer.backend.id_to_token(i) for i in tokenizer.encode("a the 12")] == ["a", "Ġthe", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer.encode("Ünï the 12\n")) == "Ünï the 12\n"
    assert tokenizer.bos_id == 0 and tokenizer.eos_id == 1 and tokenizer.encode_opening("") == []
    assert not any(token.startswith("[PAD") for token in vocabulary)
    ids, stops = chat.prompt([{"role": "user", "content": "the <|im_end|>"}], tokenizer, False, template)
    shown = "".join(tokenizer.backend.id_to_token(i) for i in ids)
    assert shown == "<|im_start|>userĊtheĠ<|im_end|><|im_end|>Ċ" and stops == ()
    assert ids.count(1) == 1, "the text of a message cannot end a turn"


def test_several_tokens_can_end_a_text(tmp_path: Path) -> None:
    metadata = {"tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.add_bos_token": True}
    tokenizer = load(write(tmp_path, "F16", "llama", {}, metadata), "cpu").tokenizer
    assert (tokenizer.eos_id, tokenizer.stop_ids) == (1, (2,)) and tokenizer.encode_opening("a")[0] == 0


def test_a_gguf_model_is_saved_as_safetensors(file: Path, tmp_path: Path) -> None:
    model, ids = load(file, "cpu"), torch.arange(40)[None]
    model.save(tmp_path / "own")
    again = load(tmp_path / "own", "cpu")
    assert torch.equal(again.logits(ids), model.logits(ids))
    assert again.tokenizer.encode("the 12") == model.tokenizer.encode("the 12")
    assert chat.template_of(tmp_path / "own") == chat.template_of(file) == _TEMPLATE
    assert model.public is not None and "model.layers.1.self_attn.q_proj.weight" in model.public, "as peft names them"


def test_a_folder_with_one_file_stands_for_it(file: Path, tmp_path: Path) -> None:
    (tmp_path / "model-Q8_0.gguf").write_bytes(file.read_bytes())
    assert resolve(tmp_path) == tmp_path / "model-Q8_0.gguf"
    assert model_info(resolve(tmp_path)).family == "autoregressive"
    (tmp_path / "model-F16.gguf").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="2 GGUF files: model-F16.gguf, model-Q8_0.gguf"):
        resolve(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"general.architecture": "mamba"}, "'mamba' is not supported"),
        ({"general.architecture": None}, "architecture None"),
        ({"general.type": "adapter"}, "no language model but 'adapter'"),
        ({"split.count": 3}, "one of the 3 parts"),
        ({"llama.logit_scale": 2.0}, "'llama.logit_scale' = 2.0"),
        ({"llama.expert_count": 8}, "'llama.expert_count' = 8"),
        ({"llama.rope.scaling.type": "longrope"}, "'llama.rope.scaling.type' = 'longrope'"),
        ({"llama.rope.dimension_count": 8}, "'llama.rope.dimension_count' = 8"),
        ({"llama.embedding_length": None}, "'llama.embedding_length' is missing"),
        ({"llama.feed_forward_length": 1 << 30}, "= 1073741824 is too large"),
        ({"llama.feed_forward_length": 128}, "the metadata need [128, 64]"),
        ({"llama.block_count": 1 << 30}, "tensors of 1 blocks"),
        ({"llama.attention.head_count": 0}, "'llama.attention.head_count' = 0"),
        ({"tokenizer.ggml.pre": "tekken"}, "'tekken'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre = None"),
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv' is not supported"),
        ({"tokenizer.ggml.eos_token_id": 300}, "outside the vocabulary"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is missing"),
        ({"tokenizer.ggml.token_type": [1]}, "one entry for each token"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(metadata: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = write(tmp_path, "F16", "llama", {"num_hidden_layers": 1}, metadata)
    with pytest.raises(UserError) as caught:
        load(path, "cpu")
    assert says in str(caught.value) and "model.gguf" in str(caught.value)


def _put(at: int, code: str, value: int) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(f"<{code}", content, at, value)


def _after(text: bytes, code: str, value: int, skip: int = 0) -> Callable[[bytearray], None]:
    """Overwrites what follows a text."""
    return lambda content: struct.pack_into(f"<{code}", content, content.index(text) + len(text) + skip, value)


_TENSOR = b"token_embd.weight"  # then: dimensions u32, 2 x u64, type u32, offset u64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_put(0, "I", 0), "is not a GGUF file"),
        (_put(4, "I", 1), "has version 1"),
        (_put(4, "I", 4), "has version 4"),
        (_put(4, "I", 3 << 24), "is big-endian"),
        (_put(8, "Q", 1 << 60), "tensor '' has 0 dimensions"),
        (_put(16, "Q", 1 << 60), "truncated or damaged"),
        (_put(24, "Q", 1 << 62), "truncated or damaged"),
        (_after(b"tokenizer.ggml.tokens", "Q", 1 << 61, 8), "truncated or damaged"),
        (_after(b"tokenizer.ggml.token_type", "Q", 1 << 61, 8), "truncated or damaged"),
        (_after(b"tokenizer.ggml.tokens", "I", 9, 4), "unknown type 9"),
        (_after(b"general.architecture", "I", 77), "unknown type 77"),
        (_after(_TENSOR, "I", 5), "5 dimensions"),
        (_after(_TENSOR, "Q", 0, 4), "shape [300, 0]"),
        (_after(_TENSOR, "Q", 33, 4), "not a multiple of 32"),
        (_after(_TENSOR, "Q", 32, 4), "has shape [300, 32]"),
        (_after(_TENSOR, "I", 10, 20), "stored as Q2_K, which is not supported"),
        (_after(_TENSOR, "I", 999, 20), "stored as type 999"),
        (_after(_TENSOR, "Q", 1 << 40, 24), "beyond the end"),
    ],
)
def test_a_damaged_file_is_refused_in_words(
    change: Callable[[bytearray], None], says: str, file: Path, tmp_path: Path
) -> None:
    content = bytearray(file.read_bytes())
    change(content)
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "model.gguf", "cpu")
    assert says in str(caught.value) and "model.gguf" in str(caught.value)


def test_a_file_cut_anywhere_is_refused(file: Path, tmp_path: Path) -> None:
    content, path = file.read_bytes(), tmp_path / "model.gguf"
    for size in [*range(0, 2000, 37), *range(2000, len(content) - 64, len(content) // 40)]:
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="model.gguf"):
            load(path, "cpu")


def test_no_damage_to_the_header_ends_in_a_traceback(file: Path, tmp_path: Path) -> None:
    content, path, numbers = file.read_bytes(), tmp_path / "model.gguf", random.Random(0)
    header = GgufFile(file)._begin
    refused = 0
    for _ in range(150):
        changed = bytearray(content)
        for _ in range(numbers.choice([1, 1, 4])):
            changed[numbers.randrange(header)] = numbers.choice([0, 1, 0xFF, numbers.randrange(256)])
        path.write_bytes(changed)
        try:
            model_info(path)
        except UserError:
            refused += 1
    assert 40 < refused < 150


def test_a_packaged_model_is_found_by_its_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shipped.PackagedModel("no-such-package==1.0", "x/y.gguf", "org/name", "a model", "MIT")
    monkeypatch.setattr(shipped, "PACKAGED", {"tiny": made})
    with pytest.raises(UserError, match=r"make pretrained .*no-such-package==1.0.* org/name"):
        load("tiny")
    assert "tiny" not in shipped.named_models()
    monkeypatch.setattr(shipped.PackagedModel, "path", property(lambda self: file))
    assert shipped.named_models()["tiny"] == file == resolve("tiny")
    monkeypatch.setattr("redraft.loading.PACKAGED", shipped.PACKAGED)
    assert stable_name("tiny") == stable_name(file) == "tiny"
    assert load("tiny", "cpu").family_name == "autoregressive"
