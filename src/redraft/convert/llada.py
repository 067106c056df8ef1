"""LLaDA: the dense ones, in the names of OLMo."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _llama
from redraft.convert._keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.transformer import Config
from redraft.weights import Layout, Place

MASKED = {"name": "masked", "isolate_prompt": False, "length_head": False}


class Llada:
    """``LLaDAModelLM`` (Nie et al. 2025, arXiv:2502.09992), LLaDA 1 and 1.5."""

    summary = "LLaDA, LLaDA 1.5 (dense)"
    citation = "arXiv:2502.09992"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "llada" and "d_model" in config

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        c = _shape(keys)
        return Plan({"name": "transformer", **config.to_mapping(c)}, MASKED, _layout(c))


def _shape(keys: Keys) -> Config:
    keys.must("activation_type", "silu")
    keys.must("block_type", "llama")
    keys.must("layer_norm_type", "rms")
    keys.must("layer_norm_with_affine", True)
    keys.must("rope", True)
    for key in ("alibi", "attention_layer_norm", "bias_for_layer_norm", "input_emb_norm", "scale_logits"):
        keys.must(key, False)
    keys.silent("alibi_bias_max", "attention_layer_norm_with_affine", "rope_full_precision", "flash_attention")
    keys.silent("attention_dropout", "embedding_dropout", "residual_dropout", "precision", "block_group_size")
    keys.silent("init_cutoff_factor", "init_device", "init_fn", "init_std")
    bias = keys.get("include_bias", bool, False)
    if bias and keys.maybe("bias_for_layer_norm") is None:
        raise keys.unsupported("bias_for_layer_norm", "With include_bias its absence means biases in norms: set false.")
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
    places = {f"{top}.wte.weight": Place("embedding.weight"), f"{top}.ln_f.weight": Place("norm.weight")}
    for number in range(c.layers):
        ours, theirs = f"blocks.{number}", f"{top}.blocks.{number}"
        places[f"{theirs}.attn_norm.weight"] = Place(f"{ours}.attention_norm.weight")
        places[f"{theirs}.ff_norm.weight"] = Place(f"{ours}.mlp_norm.weight")
        qkvo = {**_llama.names(theirs, "q", "k", "v"), "o": f"{theirs}.attn_out"}
        _llama.attention(places, ours, qkvo, c, c.qkv_bias)
        mlp = {"gate": f"{theirs}.ff_proj", "up": f"{theirs}.up_proj", "down": f"{theirs}.ff_out"}
        _llama.swiglu(places, f"{ours}.mlp", mlp, c.hidden, c.mlp_bias)
    if not c.tied:
        places[f"{top}.ff_out.weight"] = Place("head.weight")
        if c.head_bias:
            places[f"{top}.ff_out.bias"] = Place("head.bias")
    return Layout(places, {f"{top}.ff_out.weight": f"{top}.wte.weight"} if c.tied else {}, _llama.ROTARY)
