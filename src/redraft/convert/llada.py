"""LLaDA: dense masked-diffusion models, with the tensor names of OLMo.

Source: ML-GSAI/LLaDA, class ``LLaDAModelLM``. Paper: Nie et al. 2025, arXiv:2502.09992.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.transformer import Config
from redraft.weights import Layout, TensorMap

MASKED = {"name": "masked", "prompt_encoder": False, "length_head": False}


class Llada(Format):
    """Checkpoints ``GSAI-ML/LLaDA-8B-*`` and LLaDA 1.5.

    Not supported: ALiBi, activations other than SiLU, norms other than RMS norm, norms with biases.
    """

    summary = "LLaDA, LLaDA 1.5 (dense)"
    citation = "arXiv:2502.09992"
    unstated = {"activation_type": "swiglu", "block_type": "sequential", "layer_norm_type": "default", "rope": False}
    unstated |= {"embedding_size": 50304}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "llada" and "d_model" in config

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        c = _read_config(keys)
        return Translation({"name": "transformer", **config.to_mapping(c)}, MASKED, _layout(c))


def _read_config(keys: Keys) -> Config:
    keys.require("activation_type", "silu")
    keys.require("block_type", "llama")
    keys.require("layer_norm_type", "rms")
    keys.require("layer_norm_with_affine", True)
    keys.require("rope", True)
    for key in ("alibi", "attention_layer_norm", "bias_for_layer_norm", "input_emb_norm", "scale_logits"):
        keys.require(key, False)
    keys.ignore("alibi_bias_max", "attention_layer_norm_with_affine", "rope_full_precision", "flash_attention")
    keys.ignore("attention_dropout", "embedding_dropout", "residual_dropout", "precision", "block_group_size")
    keys.ignore("init_cutoff_factor", "init_device", "init_fn", "init_std")
    bias = keys.get("include_bias", bool, False)
    if bias and keys.optional("bias_for_layer_norm") is None:
        raise keys.unsupported("bias_for_layer_norm", "With include_bias, null means biases in norms: set false.")
    heads, dim = keys.get("n_heads", int), keys.get("d_model", int)
    one = keys.get("multi_query_attention", bool, False)
    size = keys.get("vocab_size", int)
    return Config(
        vocab_size=keys.get("embedding_size", int, size),
        dim=dim,
        layers=keys.get("n_layers", int),
        heads=heads,
        kv_heads=keys.get("n_kv_heads", int, 1 if one else heads),
        mlp_dim=keys.get("mlp_hidden_size", int, keys.get("mlp_ratio", int, 4) * dim),
        max_length=keys.get("max_sequence_length", int),
        rope_theta=keys.get("rope_theta", float, 10_000.0),
        norm_eps=keys.get("rms_norm_eps", float, 1e-5),
        tied=keys.get("weight_tying", bool, True),
        restart=False,
        qkv_bias=keys.get("include_qkv_bias", bool, False) or bias,
        out_bias=bias,
        mlp_bias=bias,
        head_bias=bias and not keys.get("weight_tying", bool, True),
    )


def _layout(c: Config) -> Layout:
    top = "model.transformer"
    places = {f"{top}.wte.weight": TensorMap("embedding.weight"), f"{top}.ln_f.weight": TensorMap("norm.weight")}
    for number in range(c.layers):
        own, stored = f"blocks.{number}", f"{top}.blocks.{number}"
        places[f"{stored}.attn_norm.weight"] = TensorMap(f"{own}.attention_norm.weight")
        places[f"{stored}.ff_norm.weight"] = TensorMap(f"{own}.mlp_norm.weight")
        qkvo = {**llama.projections(stored, "q", "k", "v"), "o": f"{stored}.attn_out"}
        llama.map_attention(places, own, qkvo, c, c.qkv_bias)
        mlp = {"gate": f"{stored}.ff_proj", "up": f"{stored}.up_proj", "down": f"{stored}.ff_out"}
        llama.map_swiglu(places, f"{own}.mlp", mlp, c.hidden, c.mlp_bias)
    if not c.tied:
        places[f"{top}.ff_out.weight"] = TensorMap("head.weight")
        if c.head_bias:
            places[f"{top}.ff_out.bias"] = TensorMap("head.bias")
    return Layout(places, {f"{top}.ff_out.weight": f"{top}.wte.weight"} if c.tied else {}, llama.ROTARY)
