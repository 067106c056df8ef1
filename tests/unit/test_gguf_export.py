"""GGUF files that are written here, read back by this project's own reader, by transformers and by the package gguf."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.convert import export
from redraft.data import chat
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.gguf_file import GgufFile
from redraft.loading import load
from redraft.model import Model
from redraft.presets import preset
from tests import checkpoints

gguf = pytest.importorskip("gguf")

TEXT = "It's 1234 o'clock,\n\n  the café 猫 "
_SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 64}
_SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 400, "rms_norm_eps": 1e-5}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 8192}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
# The architecture, and the configuration of a public checkpoint that it must hold without a difference.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"model_type": "llama", "tie_word_embeddings": True}),
    ("llama", {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    ("llama", {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": _LLAMA3}),
    ("qwen2", {"model_type": "qwen2", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    ("qwen3", {"model_type": "qwen3", "head_dim": 32, "rope_scaling": _YARN}),
    ("dream", {"model_type": "Dream", "mask_token_id": 3, "tie_word_embeddings": True}),
    ("llada", {"model_type": "illada", "mask_token_id": 3, "rope_theta": 5e5}),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT, "the cat sat on the mat " * 3], 300)


def fresh(tokenizer: Tokenizer, family: dict[str, Any], paired: bool = False, **shape: Any) -> Model:
    """An untrained model whose weights are all different."""
    model = Model.fresh(family, tokenizer, preset("toy", tokenizer.vocab_size, dim=64, layers=2, **shape), paired)
    for parameter in model.network.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return model


def write(model: Model, folder: Path, storage: str = "float32") -> Path:
    export("gguf", model.network, model.tokenizer, model.spec, folder, storage, "# card\n", model.paired)
    return folder / f"{folder.name}.gguf"


@pytest.mark.parametrize(("arch", "shape"), CASES, ids=lambda value: str(value)[:12])
def test_a_public_checkpoint_is_read_back_unchanged(
    arch: str, shape: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    ids = {f"{key}_token_id": getattr(tokenizer, f"{key}_id") for key in ("eos", "pad", "bos")}
    tokenizer.save(checkpoints.write(tmp_path / "hf", _SHAPE | ids | shape))
    model = load(tmp_path / "hf", "cpu")
    file = write(model, tmp_path / "out")
    again, tokens = load(file, "cpu"), torch.arange(60).view(2, 30) * 4 % 300
    assert GgufFile(file).metadata["general.architecture"] == arch
    own = model.network.config
    assert again.network.config == replace(own, head_dim=own.head_width)
    assert torch.equal(again.logits(tokens), model.logits(tokens))
    assert (again.spec.network, again.family) == (model.spec.network, model.family)
    assert again.spec.tokens.mask_id == model.spec.tokens.mask_id or arch not in ("dream", "llada")
    assert again.tokenizer.encode(TEXT) == model.tokenizer.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.tokenizer.eos_id == tokenizer.eos_id and again.tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("arch", "shape"), [("llama", {"kv_heads": 2}), ("qwen2", {"qkv_bias": True}), ("qwen3", {"qk_norm": True})]
)
def test_transformers_computes_the_same(arch: str, shape: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Its reader of GGUF files assumes heads of 128 numbers for Qwen3."""
    import transformers

    model = fresh(tokenizer, {"name": "autoregressive"}, heads=4, head_dim=128 if arch == "qwen3" else 0, **shape)
    file = write(model, tmp_path / "out")
    found = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ids = torch.randint(5, 290, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = found.eval()(input_ids=ids).logits
    assert GgufFile(file).metadata["general.architecture"] == arch
    torch.testing.assert_close(logits, model.logits(ids), rtol=1e-4, atol=1e-4)
    assert torch.equal(load(file, "cpu").logits(ids), model.logits(ids))
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert theirs(TEXT).input_ids == model.tokenizer.encode_opening(TEXT)
    assert load(file, "cpu").tokenizer.encode_opening(TEXT) == model.tokenizer.encode_opening(TEXT)


@pytest.mark.parametrize(("storage", "type_"), [("float16", "F16"), ("bfloat16", "BF16"), ("q8_0", "Q8_0")])
def test_weights_have_the_type_asked_for(storage: str, type_: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The values are those of the package ``gguf``; vectors stay float32."""
    model = fresh(tokenizer, {"name": "autoregressive"}, mlp_dim=96)
    file = GgufFile(write(model, tmp_path / "out", storage))
    kinds = {name: kind.name for name, kind in file.types.items()}
    assert {kinds[name] for name, one in file.stored.items() if len(one.shape) == 2} == {type_}
    assert {kinds[name] for name, one in file.stored.items() if len(one.shape) == 1} == {"F32"}
    down = model.network.get_parameter("blocks.1.mlp.down.weight").detach().numpy()
    kind = gguf.GGMLQuantizationType[type_]
    packed = gguf.quantize(down, kind)
    expected = gguf.dequantize(packed.view("u1") if type_ == "BF16" else packed, kind)
    assert torch.equal(file.read("blk.1.ffn_down.weight").float(), torch.from_numpy(expected.copy()))


def test_what_a_quantised_type_cannot_hold_is_finer_and_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = fresh(tokenizer, {"name": "autoregressive"}, mlp_dim=72)  # rows of 72 are no blocks of 32
    notes = export("gguf", model.network, tokenizer, model.spec, tmp_path / "out", "q4_0", "")
    assert notes == ["token_embd.weight (Q8_0)", *(f"blk.{n}.ffn_down.weight (F16)" for n in range(2))]
    kinds = {name: kind.name for name, kind in GgufFile(tmp_path / "out" / "out.gguf").types.items()}
    assert kinds["blk.0.attn_q.weight"] == "Q4_0" and kinds["blk.0.ffn_down.weight"] == "F16"


@pytest.mark.parametrize(("shift", "arch"), [(1, "dream"), (0, "llada")])
def test_masked_models_have_what_the_diffusion_example_of_llama_cpp_reads(
    shift: int, arch: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Keys as its converter writes them, read here with the package ``gguf``."""
    model = fresh(tokenizer, {"name": "masked", "shift": shift}, qkv_bias=shift == 1)
    file = write(model, tmp_path / "out")
    fields = gguf.GGUFReader(file).fields

    def value(key: str) -> Any:
        return fields[key].contents()

    assert value("general.architecture") == arch
    assert value(f"{arch}.attention.causal") is False and value("diffusion.shift_logits") is bool(shift)
    assert value("tokenizer.ggml.mask_token_id") == tokenizer.mask_id
    assert gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[arch.upper()]] == arch
    again, ids = load(file, "cpu"), torch.arange(5, 45).view(2, 20)
    assert torch.equal(again.logits(ids), model.logits(ids)) and again.spec.network.shift == shift
    assert again.spec.masks and again.tokenizer.mask_id == tokenizer.mask_id


def test_a_model_of_pairs_gets_a_template_of_its_prompts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = fresh(tokenizer, {"name": "autoregressive", "prompt_encoder": False}, paired=True)
    again = load(write(model, tmp_path / "out"), "cpu")
    asked = [{"role": "user", "content": "the cat"}]
    ids, _ = chat.prompt(asked, again.tokenizer, False, again.tokenizer.chat_template)
    assert ids == model.tokenizer.encode_prompt("the cat")
    assert GgufFile(tmp_path / "out" / "out.gguf").metadata["tokenizer.ggml.add_bos_token"] is False


def test_what_llama_cpp_cannot_compute_or_read_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plain = {"name": "autoregressive"}
    blocks = {"name": "masked", "block": 4, "prompt_encoder": False, "length_head": False}
    for family, paired, shape, words in (
        (plain, True, {}, "prompt encoder"),
        (plain, False, {"window": 6}, "no sliding windows"),
        (plain, False, {"qk_norm": True, "qkv_bias": True, "out_bias": True}, "Qwen3 has no biases"),
        ({"name": "masked"}, True, {}, "length head"),
        ({"name": "masked"}, False, {"qkv_bias": True, "out_bias": True}, "LLaDA loads biases"),
        (blocks, False, {}, "attention is block"),
        ({"name": "masked", "timed": True}, False, {}, "time conditioning"),
    ):
        with pytest.raises(UserError, match=words):
            write(fresh(tokenizer, family, paired, **shape), tmp_path / "out")
    odd = Tokenizer.train(["a b c"], 270)
    odd.backend.pre_tokenizer = None
    model = fresh(odd, plain)
    with pytest.raises(UserError, match="splits text"):
        write(model, tmp_path / "out")
    assert os.listdir(tmp_path) == []
