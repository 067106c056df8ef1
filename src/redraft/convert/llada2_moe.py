"""LLaDA2: block-causal masked diffusion with a mixture of experts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _llama
from redraft.convert._keys import Keys
from redraft.convert.llada import MASKED
from redraft.data.vocabulary import Ids
from redraft.models.parts.moe import Experts
from redraft.models.transformer import Config
from redraft.weights import Layout, Place

_BLOCK = 32  # of the published models, whose configurations don't say


class Llada2Moe:
    """``LLaDA2MoeModelLM`` (Bie et al. 2025, arXiv:2512.15745), mini and flash."""

    summary = "LLaDA2 mini, flash"
    citation = "arXiv:2512.15745"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "llada2_moe"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        c = _shape(keys)
        return Plan({"name": "transformer", **config.to_mapping(c)}, {**MASKED, "block": _BLOCK}, _layout(c))


def _shape(keys: Keys) -> Config:
    for key in ("norm_head", "norm_softmax", "use_bias", "using_split_qkv_in_self_attention"):
        keys.must(key, False)
    for key in ("use_rmsnorm", "norm_topk_prob"):
        keys.must(key, True)
    keys.must("score_function", "sigmoid")
    keys.must("router_dtype", "fp32", "float32")
    keys.silent("embedding_dropout", "output_dropout", "output_router_logits", "router_aux_loss_coef", "seq_aux")
    keys.silent("num_nextn_predict_layers", "mtp_loss_scaling_factor", "moe_router_topk_scaling_factor")
    hidden = keys.get("moe_intermediate_size", int)
    experts = Experts(
        count=keys.get("num_experts", int),
        active=keys.get("num_experts_per_tok", int),
        hidden=hidden,
        shared=hidden * keys.get("num_shared_experts", int, 0),
        dense=tuple(range(keys.get("first_k_dense_replace", int, 0))),
        score="sigmoid",
        bias=keys.get("moe_router_enable_expert_bias", bool, False),
        normalise=True,
        scale=keys.get("routed_scaling_factor", float, 1.0),
        groups=keys.get("n_group", int, 1),
        top_groups=keys.get("topk_group", int, 1),
    )
    width = keys.get("head_dim", int, keys.get("hidden_size", int) // keys.get("num_attention_heads", int))
    share = keys.get("partial_rotary_factor", float, 1.0)
    rotary = keys.get("rotary_dim", int, int(width * share))
    if rotary != int(width * share):
        raise keys.unsupported("rotary_dim", f"partial_rotary_factor says {int(width * share)}.")
    return _llama.shape(
        keys,
        mlp_dim=keys.get("intermediate_size", int),
        head_dim=width,
        rotary_dim=rotary,
        qk_norm=keys.get("use_qk_norm", bool, False),
        qkv_bias=keys.get("use_qkv_bias", bool, False),
        experts=experts,
    )


def _layout(c: Config) -> Layout:
    assert c.experts is not None
    places = {"model.word_embeddings.weight": Place("embedding.weight"), "model.norm.weight": Place("norm.weight")}
    for number in range(c.layers):
        ours, theirs = f"blocks.{number}", f"model.layers.{number}"
        places[f"{theirs}.input_layernorm.weight"] = Place(f"{ours}.attention_norm.weight")
        places[f"{theirs}.post_attention_layernorm.weight"] = Place(f"{ours}.mlp_norm.weight")
        for ending in ("weight", "bias") if c.qkv_bias else ("weight",):
            places[f"{theirs}.attention.query_key_value.{ending}"] = Place(f"{ours}.attention.qkv.{ending}")
        places[f"{theirs}.attention.dense.weight"] = Place(f"{ours}.attention.out.weight")
        if c.qk_norm:
            for key, norm in (("query_layernorm", "q_norm"), ("key_layernorm", "k_norm")):
                places[f"{theirs}.attention.{key}.weight"] = Place(f"{ours}.attention.{norm}.weight")
        mlp = f"{theirs}.mlp"
        if number in c.experts.dense:
            _llama.swiglu(places, f"{ours}.mlp", _llama.names(mlp, "gate", "up", "down"), c.hidden)
            continue
        _llama.experts(places, f"{ours}.mlp", mlp, c)
        if c.experts.bias:
            places[f"{mlp}.gate.expert_bias"] = Place(f"{ours}.mlp.balance")
        if c.experts.shared:
            shared = _llama.names(f"{mlp}.shared_experts", "gate", "up", "down")
            _llama.swiglu(places, f"{ours}.mlp.shared", shared, c.experts.shared)
    if not c.tied:
        places["lm_head.weight"] = Place("head.weight")
    return Layout(places, {"lm_head.weight": "model.word_embeddings.weight"} if c.tied else {}, _llama.ROTARY)
