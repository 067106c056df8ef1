"""A key that a configuration lacks has the value of the published configuration class, or is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError

from redraft import registry
from redraft.errors import UserError
from tests.checkpoints import CONFIGS, translate

CLASSES = {
    "llama": transformers.LlamaConfig,
    "diffullama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "qwen3_moe": transformers.Qwen3MoeConfig,
    "gpt2": transformers.GPT2Config,
    "diffugpt": transformers.GPT2Config,
    "bert": transformers.BertConfig,
    "modern_bert": transformers.ModernBertConfig,
}
# Defaults of the configuration classes that come with the weights, as published; sizes, which every file states, aside.
_QWEN2: dict[str, Any] = {"num_key_value_heads": 32, "hidden_act": "silu", "tie_word_embeddings": False}
_QWEN2 |= {"rope_theta": 10000.0, "rope_scaling": None, "use_sliding_window": False, "max_window_layers": 28}
PUBLISHED: dict[str, dict[str, Any]] = {
    "dream": {**_QWEN2, "sliding_window": 4096},
    "dreamon": {**_QWEN2, "sliding_window": 4096},
    "nemotron_labs_diffusion": {"num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu", "mlp_bias": False}
    | {"tie_word_embeddings": False, "rope_theta": 1e6, "rope_parameters": None, "attention_bias": False}
    | {"sliding_window": None, "dlm_paradigm": "bidirectional", "block_size": 32},
    "fast_dllm_v2": {**_QWEN2, "sliding_window": 4096, "bd_size": 32},
    "sdar": {**_QWEN2, "head_dim": 128, "attention_bias": False},
    "llada": {"n_kv_heads": None, "mlp_ratio": 4, "mlp_hidden_size": None, "activation_type": "swiglu"}
    | {"block_type": "sequential", "alibi": False, "rope": False, "multi_query_attention": None}
    | {"attention_layer_norm": False, "input_emb_norm": False, "layer_norm_type": "default"}
    | {"layer_norm_with_affine": True, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "include_qkv_bias": False}
    | {"include_bias": False, "bias_for_layer_norm": None, "scale_logits": False, "embedding_size": 50304}
    | {"weight_tying": True},
    "llada_moe": {"num_key_value_heads": 16, "hidden_act": "silu", "tie_word_embeddings": False, "clip_qkv": None}
    | {"attention_bias": False, "shared_expert_intermediate_size": None, "moe_layer_freq": None}
    | {"qk_layernorm": True, "moe_router_score_function": "softmax", "moe_router_enable_expert_bias": False}
    | {"router_num_group": None, "router_topk_group": None, "routed_scaling_factor": 1, "norm_topk_prob": None}
    | {"rope_theta": 50000.0, "rope_scaling": None, "partial_rotary_factor": 1.0},
    "llada2_moe": {"hidden_act": "silu", "use_qkv_bias": False, "use_qk_norm": True, "use_bias": True}
    | {"norm_head": False, "tie_word_embeddings": False, "rope_theta": 10000.0, "use_sliding_window": False}
    | {"sliding_window": 4096, "rope_scaling": None, "num_shared_experts": 0, "n_group": 8, "topk_group": 4}
    | {"routed_scaling_factor": 2.5, "first_k_dense_replace": 0, "head_dim": None, "partial_rotary_factor": 0.5}
    | {"num_experts": 16, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5},
}
OWN = (
    "mdlm",
    "sedd",
    "bd3lm",
    "illada",
    "sdar_moe",
)  # there is no copy of the configuration class to compare with here
NESTED = ("diffusion_gemma",)  # whose keys are in a table


def test_every_format_is_compared() -> None:
    assert {*CLASSES, *PUBLISHED, *OWN, *NESTED} == set(registry.names("convert"))


def translated(config: dict[str, Any]) -> Any:
    """The network of a configuration, or the message that refuses it."""
    try:
        network = dict(translate(config)[1].network)
    except UserError as error:
        return str(error)
    if "head_dim" in network:
        network["head_dim"] = network["head_dim"] or network["dim"] // network["heads"]
    return network


def check(config: dict[str, Any], key: str, filled: dict[str, Any]) -> None:
    found = translated({name: value for name, value in config.items() if name != key})
    assert found == translated(filled) or (isinstance(found, str) and f"'{key}'" in found), key


@pytest.mark.parametrize(("name", "kind"), CLASSES.items())
def test_missing_keys_have_the_defaults_of_transformers(name: str, kind: Any) -> None:
    stated = {**kind(**CONFIGS[name][0]).to_dict(), **CONFIGS[name][0]}
    skipped = {"chunk_size_feed_forward", "is_encoder_decoder"}  # of all classes; not in files
    config = {key: value for key, value in stated.items() if key not in skipped}
    for key in config.keys() - {"model_type", "architectures", "mask_token_id"}:
        rest = {name: value for name, value in config.items() if name not in (key, "layer_types")}
        try:
            default = kind(**rest).to_dict().get(key)
        except (ValueError, StrictDataclassClassValidationError):  # sizes that don't fit together
            assert f"'{key}'" in str(translated(rest))
            continue
        check(config, key, {**config, key: default})


@pytest.mark.parametrize(("name", "defaults"), PUBLISHED.items())
def test_missing_keys_have_the_published_defaults(name: str, defaults: dict[str, Any]) -> None:
    for config in CONFIGS[name]:
        for key, value in defaults.items():
            check({**defaults, **config}, key, {**defaults, **config, key: value})


def test_the_norms_of_queries_and_keys_of_llada2_are_on_unless_the_file_says_otherwise() -> None:
    config = {key: value for key, value in CONFIGS["llada2_moe"][0].items() if key != "use_qk_norm"}
    assert translate(config)[1].network["qk_norm"] is True
    assert translate({**config, "use_qk_norm": False})[1].network["qk_norm"] is False


def test_missing_keys_of_the_table_of_diffusion_gemma_have_the_defaults_of_transformers() -> None:
    [whole, _] = CONFIGS["diffusion_gemma"]
    text = {**whole["text_config"], "attention_bias": False, "hidden_activation": "gelu_pytorch_tanh"}
    text |= {"rms_norm_eps": 1e-6}
    del text["layer_types"]  # as many as there are layers
    for key in text.keys() - {"model_type"}:
        rest = {name: value for name, value in text.items() if name != key}
        config = transformers.DiffusionGemmaConfig(text_config=dict(rest), canvas_length=8).to_dict()["text_config"]
        shape = "per_layer_config" if "global" in key else key
        default = {"final_logit_softcapping": 30.0}.get(key, config.get(shape))
        if default is None and key not in ("use_bidirectional_attention",):
            assert f"'{key}'" in str(translated({**whole, "text_config": rest})), key  # refused by name
            continue
        filled = {**rest, shape: default}
        assert translated({**whole, "text_config": rest}) == translated({**whole, "text_config": filled}), key
