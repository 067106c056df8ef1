"""Laws of checkpoint formats: in and out is exact, every key is read, what is wrong with a file is said in words."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from redraft import registry, weights
from redraft.convert import Keys, find_ids, open_foreign
from redraft.errors import UserError
from redraft.loading import load

_LLAMA = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": 50,
}
_DIT = {"cond_dim": 8, "hidden_dim": 24, "model_length": 64, "n_blocks": 2, "n_heads": 2, "vocab_size": 50}
_MOE = {"num_experts": 8, "num_experts_per_tok": 2}
_GPT = {"model_type": "gpt2", "n_embd": 24, "n_head": 2, "n_layer": 2, "n_positions": 64, "vocab_size": 50}
# Other configurations than those recorded: grouped queries, wide heads, biases, tied and untied, stretched rotations.
CONFIGS: dict[str, list[dict[str, Any]]] = {
    "llama": [
        _LLAMA | {"model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": True},
        _LLAMA | {"model_type": "llama", "head_dim": 8, "attention_bias": True, "mlp_bias": True},
        _LLAMA  # the keys of SmolLM2
        | {"model_type": "llama", "is_llama_config": True, "rope_interleaved": False, "rope_scaling": None}
        | {"pretraining_tp": 1, "rope_theta": 100000, "tie_word_embeddings": True, "transformers.js_config": {}},
        _LLAMA | {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
    ],
    "diffullama": [_LLAMA | {"model_type": "llama", "mask_token_id": 49}],
    "mistral": [
        _LLAMA | {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 8, "head_dim": None},
        _LLAMA | {"model_type": "mistral", "sliding_window": None},
    ],
    "qwen2": [
        _LLAMA | {"model_type": "qwen2", "num_key_value_heads": 1, "rope_theta": 1e6},
        _LLAMA  # the keys of Qwen2.5
        | {"model_type": "qwen2", "use_mrope": False, "use_sliding_window": False, "sliding_window": 8}
        | {"max_window_layers": 1, "attention_dropout": 0.0, "tie_word_embeddings": True, "use_cache": True},
        _LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ],
    "qwen3": [_LLAMA | {"model_type": "qwen3", "head_dim": 10, "num_key_value_heads": 2, "attention_bias": True}],
    "dream": [_LLAMA | {"model_type": "Dream", "mask_token_id": 49, "tie_word_embeddings": True}],
    "llada": [
        {"model_type": "llada", "d_model": 24, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "mlp_ratio": 2}
        | {"max_sequence_length": 64, "vocab_size": 48, "embedding_size": 50, "weight_tying": tied}
        | {"include_bias": bias, "bias_for_layer_norm": False, "include_qkv_bias": True}
        for tied, bias in ((True, False), (False, True))
    ],
    "llada_moe": [
        {key: value for key, value in _LLAMA.items() if key != "intermediate_size"}
        | _MOE
        | {"model_type": "llada", "expert_intermediate_size": 12, "dense_intermediate_size": 32}
        | {"moe_layer_freq": [0, 1], "qk_layernorm": False, "norm_topk_prob": True}
    ],
    "llada2_moe": [
        _LLAMA
        | _MOE
        | {"model_type": "llada2_moe", "moe_intermediate_size": 12, "num_shared_experts": 2}
        | {"partial_rotary_factor": 1.0, "use_qkv_bias": True, "first_k_dense_replace": 0, "score_function": "sigmoid"}
    ],
    "gpt2": [_GPT, _GPT | {"tie_word_embeddings": False, "n_inner": 30, "activation_function": "gelu"}],
    "diffugpt": [_GPT | {"architectures": ["DiscreteDiffusionModel"], "mask_token_id": 49}],
    "mdlm": [_DIT | {"model_type": "mdlm", "time_conditioning": True}],
    "bd3lm": [_DIT | {"model_type": "bd3lm", "block_size": 4}],
    "sedd": [
        {"tokens": 49, "graph": {"type": "absorb"}, "noise": {"type": "geometric", "sigma_min": 1e-3, "sigma_max": 9}}
        | {
            "model": {
                "hidden_size": 24,
                "cond_dim": 8,
                "n_blocks": 2,
                "n_heads": 2,
                "length": 64,
                "scale_by_sigma": True,
            }
        }
    ],
    "bert": [
        {"model_type": "bert", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
        | {"intermediate_size": 40, "max_position_embeddings": 64, "type_vocab_size": 2, "tie_word_embeddings": False}
    ],
    "modern_bert": [
        {"model_type": "modernbert", "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
        | {"intermediate_size": 40, "max_position_embeddings": 64, "vocab_size": 50, "norm_bias": True}
        | {"attention_bias": True, "mlp_bias": True, "decoder_bias": False, "classifier_bias": True}
    ],
}
CASES = [pytest.param(name, config, id=f"{name}-{n}") for name in CONFIGS for n, config in enumerate(CONFIGS[name])]


def plan(config: dict[str, Any], names: list[str] | None = None) -> tuple[str, Any]:
    from redraft.convert import recognise

    ids = find_ids(Path("nowhere"), config, 50, {})
    name = recognise(config, ids, Path("config.json"))
    keys = Keys(config, "config.json")
    found = registry.find("convert", name).read(keys, names or [], ids)
    keys.finish()
    return name, found


def write(folder: Path, config: dict[str, Any], shards: int = 1) -> Path:
    """A checkpoint of random weights in a public format, made by going the way back from our network."""
    from redraft import models

    prefix = ["transformer.wte.weight"] if config.get("model_type") == "gpt2" else []
    _, found = plan(config, [*prefix, "denoise_model.h.0.attn.c_attn.bias"])
    network = models.empty(found.network, "test")
    models.allocate(network, torch.float32, torch.device("cpu"))
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.normal_(std=0.3)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    state = weights.stored(network, found.layout)
    if shards == 1:
        save_file(state, str(folder / "model.safetensors"))
        return folder
    names = sorted(state)
    where = {name: f"model-{number % shards:05d}.safetensors" for number, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: state[name] for name in names if where[name] == file}, str(folder / file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def foreign(folder: Path) -> Any:
    """Network of a folder, with weights; families that a branch lacks don't matter here."""
    from redraft import models
    from redraft.files import read_json

    found = open_foreign(folder, read_json(folder / "config.json"))
    models.allocate(found.network, torch.float32, torch.device("cpu"))
    weights.fill(found.network, found.files, found.plan.layout)
    return found


def test_every_format_is_here() -> None:
    assert set(CONFIGS) == set(registry.names("convert"))


@pytest.mark.parametrize(("name", "config"), CASES)
def test_in_and_out_is_exact(name: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Every stored number lands somewhere, none twice, and comes back the same; sharded as well."""
    found = foreign(write(tmp_path / "a", config, shards=3))
    assert found.format == name
    expected = {}
    for file in (tmp_path / "a").glob("*.safetensors"):
        expected |= load_file(file)
    back = weights.stored(found.network, found.plan.layout)
    assert back.keys() == expected.keys()
    for key in back:
        assert torch.equal(back[key], expected[key]), key
    assert sum(t.numel() for t in back.values()) == sum(p.numel() for p in found.network.parameters())


@pytest.mark.parametrize(("name", "config"), CASES)
def test_an_unknown_key_is_named(name: str, config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="'novel_gate' = 3 is not supported"):
        plan({**config, "novel_gate": 3})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama", "hidden_act", "gelu"),
        ("llama", "rope_scaling", {"rope_type": "longrope", "factor": 4.0}),
        ("llama", "num_hidden_layers", "two"),
        ("qwen3", "layer_types", ["full_attention", "sliding_attention"]),
        ("qwen3", "layer_types", ["full_attention", "chunked_attention"]),
        ("qwen2", "layer_types", ["full_attention"]),
        ("mistral", "sliding_window", -3),
        ("llama", "sliding_window", 8),
        ("llama", "rope_interleaved", True),
        ("qwen2", "use_mrope", True),
        ("dream", "sliding_window", 8),
        ("llada_moe", "sliding_window", 8),
        ("llada", "alibi", True),
        ("llada", "block_type", "sequential"),
        ("llada", "layer_norm_type", "default"),
        ("llada", "scale_logits", True),
        ("llada_moe", "shared_expert_intermediate_size", 64),
        ("llada_moe", "moe_router_score_function", "sigmoid"),
        ("llada2_moe", "norm_topk_prob", False),
        ("llada2_moe", "rotary_dim", 2),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "activation_function", "tanh"),
        ("bd3lm", "causal", True),
        ("bert", "position_embedding_type", "relative_key"),
        ("modern_bert", "layer_types", ["full_attention"]),
    ],
)
def test_a_value_that_our_networks_do_not_compute_is_named(name: str, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"'{key}'"):
        plan({**CONFIGS[name][0], key: value})


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'mamba'.*Known: .*llada"):
        plan({"model_type": "mamba"})


# files


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "m", CONFIGS["llama"][0])


def test_a_truncated_file_is_named_with_its_first_lost_tensor(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors' is corrupt or truncated, from tensor '\S+' on"):
        load(checkpoint)


def test_a_broken_header_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="corrupt"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("model.norm.weight"), "tensor 'model.norm.weight' is missing"),
        (lambda state: state.update(extra=torch.ones(2)), "unexpected tensor 'extra'"),
        (lambda state: state.update({"model.norm.weight": torch.ones(7)}), r"'model.norm.weight' has shape \[7\]"),
        (lambda state: state.update({"lm_head.weight": torch.ones(50, 24)}), "'lm_head.weight' differs"),
    ],
)
def test_tensors_that_do_not_match_are_named(checkpoint: Path, change: Any, says: str) -> None:
    state = load_file(checkpoint / "model.safetensors")
    change(state)
    save_file(state, str(checkpoint / "model.safetensors"))
    with pytest.raises(UserError, match=says):
        load(checkpoint)


def test_a_tied_head_may_be_stored_too(checkpoint: Path) -> None:
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
    with pytest.raises(UserError, match="must lie beside"):
        load(folder)


def test_pickled_weights_load_with_a_warning_and_run_nothing(checkpoint: Path) -> None:
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


def test_weights_arrive_in_the_type_asked_for(checkpoint: Path) -> None:
    model = load(checkpoint, dtype=torch.bfloat16)
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
    assert model.logits(torch.arange(5)[None]).dtype == torch.bfloat16


# special tokens


def test_a_mask_that_no_file_names_can_be_given(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", CONFIGS["llada_moe"][0])
    with pytest.raises(UserError, match=r"don't name its mask.*mask_id"):
        load(folder).generate([[1, 2]], max_new_tokens=4)
    model = load(folder, mask_id=49)
    assert model.spec.mask_id == 49
    [found] = model.generate([[1, 2]], max_new_tokens=4, steps=2)
    assert found.text == " ".join(map(str, found.ids))  # no tokenizer: texts are ids in words
    model.save(tmp_path / "own")
    again = load(tmp_path / "own")
    assert again.spec == model.spec
    assert torch.equal(again.logits(torch.arange(6)[None]), model.logits(torch.arange(6)[None]))
    assert again.generate([[1, 2]], max_new_tokens=4, steps=2)[0].ids == found.ids


def test_special_tokens_are_found_in_the_tokenizers_files(tmp_path: Path) -> None:
    from tokenizers import AddedToken

    from redraft.data.tokenizer import Tokenizer

    folder = write(tmp_path / "m", {**CONFIGS["llada"][0], "vocab_size": 300, "embedding_size": 304})
    backend = Tokenizer.bytes().backend
    backend.add_special_tokens([AddedToken("<|mdm_mask|>", special=True), AddedToken("<|end|>", special=True)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "mask_token": "<|mdm_mask|>"}))
    model = load(folder)
    assert (model.spec.mask_id, model.spec.eos_id) == (261, 262)
    assert model.tokenizer.vocab_size == 304
    assert model.tokenizer.decode(model.tokenizer.encode("naïve")) == "naïve"
    model.save(tmp_path / "own")
    assert (tmp_path / "own" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert load(tmp_path / "own").generate("ab", max_new_tokens=4, steps=2)


@pytest.mark.parametrize("kind", ["DreamTokenizer", "GPT2Tokenizer", "BertTokenizer"])
def test_older_tokenizer_files_are_read_as_transformers_reads_them(kind: str, tmp_path: Path) -> None:
    """Dream has vocab.json, merges.txt and code of its own, which is not run; what is saved has a tokenizer.json."""
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
    theirs = getattr(transformers, kind.replace("Dream", "Qwen2")).from_pretrained(folder)
    model = load(folder)
    text = "the cats are three, 12 cats"
    assert model.tokenizer.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert model.spec.mask_id == theirs.mask_token_id
    model.save(tmp_path / "own")
    assert load(tmp_path / "own").tokenizer.encode(text) == model.tokenizer.encode(text)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "own")
    assert again(text, add_special_tokens=False).input_ids == model.tokenizer.encode(text)


def test_a_tokenizer_that_cannot_be_read_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(UserError, match="LlamaTokenizer"):
        load(checkpoint)
    (checkpoint / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json' is corrupt"):
        load(checkpoint)


def test_numbers_that_are_no_weights_are_refused(checkpoint: Path) -> None:
    state = load_file(checkpoint / "model.safetensors")
    save_file(state | {"model.norm.weight": torch.ones(24, dtype=torch.int32)}, str(checkpoint / "model.safetensors"))
    with pytest.raises(UserError, match=r"model\.safetensors: tensor 'model\.norm\.weight' holds int32"):
        load(checkpoint)


def test_several_ends_of_text_are_one_event(checkpoint: Path) -> None:
    """Llama 3 names three. The probability of ending is the sum of theirs, and none of them stands in a text."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"eos_token_id": [7, 9]}))
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9, 11]}))
    model = load(checkpoint, "cpu")
    assert (model.spec.eos_id, model.spec.ends) == (7, (9, 11))
    seen = []
    drafting = model.draft([[5, 6, 4]], model.settings(max_new_tokens=1))
    drafting.loop.watch = lambda ask, out: seen.append(out.log_p[0].exp())
    list(drafting)
    p = model.logits(torch.tensor([[5, 6, 4]]))[0, -1].softmax(-1)
    torch.testing.assert_close(seen[0][7], p[[7, 9, 11]].sum())
    assert seen[0][9] == seen[0][11] == 0
    model.save(checkpoint.parent / "again")
    assert load(checkpoint.parent / "again", "cpu").spec.ends == (9, 11)


def test_ids_beyond_the_vocabulary_are_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="prompt id 50"):
        load(checkpoint).generate([[1, 50]], max_new_tokens=2)
