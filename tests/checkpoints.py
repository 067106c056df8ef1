"""Tiny checkpoints in every public format, written by the inverse of reading them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from redraft import convert, weights
from redraft.data.vocabulary import find_ids

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
_GEMMA: dict[str, Any] = {key: value for key, value in _LLAMA.items() if key != "rms_norm_eps"}
_GEMMA |= {"model_type": "diffusion_gemma_text", "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 6}
_GEMMA |= {"num_global_key_value_heads": 1, "global_head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 20.0}
_GEMMA |= {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "num_experts": 4}
_GEMMA |= {"top_k_experts": 2, "moe_intermediate_size": 12, "use_bidirectional_attention": "vision"}
_GEMMA |= {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}
_GEMMA["rope_parameters"]["full_attention"] = {"rope_type": "proportional", "rope_theta": 1e6}
_GEMMA["rope_parameters"]["full_attention"]["partial_rotary_factor"] = 0.5
# Configurations that the parity references lack: grouped queries, wide heads, biases, tied heads, scaled rotations.
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
        _LLAMA | {"model_type": "mistral", "num_key_value_heads": None, "sliding_window": None},
    ],
    "qwen2": [
        _LLAMA | {"model_type": "qwen2", "num_key_value_heads": 1, "rope_theta": 1e6},
        _LLAMA  # the keys of Qwen2.5
        | {
            "model_type": "qwen2",
            "num_key_value_heads": 4,
            "use_mrope": False,
            "use_sliding_window": False,
            "sliding_window": 8,
        }
        | {"max_window_layers": 1, "attention_dropout": 0.0, "tie_word_embeddings": True, "use_cache": True},
        _LLAMA
        | {
            "model_type": "qwen2",
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
    ],
    "qwen3": [_LLAMA | {"model_type": "qwen3", "head_dim": 10, "num_key_value_heads": 2, "attention_bias": True}],
    "dream": [
        _LLAMA | {"model_type": "Dream", "num_key_value_heads": 4, "mask_token_id": 49, "tie_word_embeddings": True}
    ],
    "dreamon": [_LLAMA | {"model_type": "Dream", "num_key_value_heads": 4, "mask_token_id": 49, "expand_token_id": 48}],
    "illada": [
        _LLAMA  # the keys that its code reads
        | {"model_type": "illada", "num_key_value_heads": 2, "layer_norm_eps": None, "attention_bias": False}
        | {"mlp_bias": False, "rope_theta": 5e5, "rope_scaling": None, "resid_pdrop": 0.0, "tie_word_embeddings": True}
    ],
    "llada": [
        {
            "model_type": "llada",
            "activation_type": "silu",
            "block_type": "llama",
            "layer_norm_type": "rms",
            "rope": True,
        }
        | {"d_model": 24, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "mlp_ratio": 2}
        | {"max_sequence_length": 64, "vocab_size": 48, "embedding_size": 50, "weight_tying": tied}
        | {"include_bias": bias, "bias_for_layer_norm": False, "include_qkv_bias": True}
        for tied, bias in ((True, False), (False, True))
    ],
    "llada_moe": [
        {key: value for key, value in _LLAMA.items() if key != "intermediate_size"}
        | _MOE
        | {"model_type": "llada", "expert_intermediate_size": 12, "dense_intermediate_size": 32}
        | {"moe_layer_freq": [0, 1], "qk_layernorm": False, "norm_topk_prob": True, "num_key_value_heads": 4}
    ],
    "llada2_moe": [
        _LLAMA
        | _MOE
        | {"model_type": "llada2_moe", "moe_intermediate_size": 12, "num_shared_experts": 2}
        | {"partial_rotary_factor": 1.0, "use_qkv_bias": True, "first_k_dense_replace": 0, "score_function": "sigmoid"}
        | {"use_bias": False, "use_qk_norm": False, "n_group": 4, "topk_group": 2},
        _LLAMA  # the keys of LLaDA2.1: use_qk_norm is not among them
        | _MOE
        | {"model_type": "llada2_moe", "moe_intermediate_size": 12, "num_shared_experts": 1, "use_bias": False}
        | {"first_k_dense_replace": 1, "head_dim": 8, "rotary_dim": 4, "use_qkv_bias": False, "norm_topk_prob": True},
    ],
    "sdar": [
        _LLAMA  # the keys of SDAR
        | {"model_type": "sdar", "head_dim": 8, "num_key_value_heads": 2, "block_size": 4, "mask_token_id": 49}
        | {"debug": False, "ep_size": 1, "fuse_cross_entropy": True, "micro_forward": False, "skip_checkpoint": False}
        | {"use_deepep": False, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2}
        | {"attention_bias": False, "rope_theta": 1e6, "rope_scaling": None}
    ],
    "fast_dllm_v2": [
        _LLAMA  # the keys of Fast-dLLM v2
        | {"model_type": "Fast_dLLM_Qwen", "num_key_value_heads": 2, "bd_size": 16, "conplemenrary_mask": True}
        | {"layer_types": ["full_attention"] * 2, "max_window_layers": 2, "mask_token_id": 49, "rope_theta": 1e6}
        | {"sliding_window": None, "use_sliding_window": False, "rope_scaling": None, "attention_dropout": 0.0}
    ],
    "nemotron_labs_diffusion": [
        {key: value for key, value in _LLAMA.items() if key != "rope_scaling"}
        | {"model_type": "nemotron_labs_diffusion", "num_key_value_heads": 2, "head_dim": 8, "block_size": 8}
        | {"mask_token_id": 49, "ar_loss_weight": 1.0, "dlm_loss_weight": None, "dlm_paradigm": "bidirectional"}
        | {"dp_varying_mask_ratio": False, "attention_bias": False, "mlp_bias": False, "sliding_window": None}
        | {
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
            | {"rope_theta": 1e6, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0}
            | {"beta_fast": 32.0, "beta_slow": 1.0}
        }
    ],
    "qwen3_moe": [
        _LLAMA
        | _MOE
        | {"model_type": "qwen3_moe", "num_key_value_heads": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}
        | {"head_dim": 8, "decoder_sparse_step": 2, "mlp_only_layers": [], "router_aux_loss_coef": 0.001},
    ],
    "sdar_moe": [
        _LLAMA  # the keys of Qwen3-MoE and SDAR
        | _MOE
        | {"model_type": "sdar_moe", "num_key_value_heads": 2, "moe_intermediate_size": 12, "norm_topk_prob": True}
        | {"head_dim": 8, "decoder_sparse_step": 1, "mlp_only_layers": [0], "output_router_logits": False}
        | {"block_size": 4, "mask_token_id": 49, "use_sliding_window": False, "max_window_layers": 2, "debug": False}
    ],
    "diffusion_gemma": [
        {"model_type": "diffusion_gemma", "canvas_length": 8, "text_config": _GEMMA, "tie_word_embeddings": True}
        | {"boi_token_id": 255999, "eoi_token_id": 258882, "image_token_id": 258880, "initializer_range": 0.02},
        {"model_type": "diffusion_gemma", "canvas_length": 4}  # as transformers 5.23 writes it
        | {
            "text_config": {key: value for key, value in _GEMMA.items() if "global" not in key}
            | {"per_layer_config": {"2": {"head_dim": 10, "num_key_value_heads": 2}}}
        },
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


def translate(config: dict[str, Any], names: list[str] | None = None) -> tuple[str, Any]:
    ids = find_ids(Path("nowhere"), config, 50, {})
    file = Path("config.json")
    name = convert.recognise(config, ids, file)
    return name, convert.translate(name, config, file, names or [], ids)


def write(folder: Path, config: dict[str, Any], shards: int = 1) -> Path:
    """A checkpoint of random weights in a public format, written from a network of ours."""
    from redraft import models

    prefix = ["transformer.wte.weight"] if config.get("model_type") == "gpt2" else []
    _, found = translate(config, [*prefix, "denoise_model.h.0.attn.c_attn.bias"])
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
