"""LLaDA2: block-causal masked diffusion with a mixture of experts.

Source: inclusionAI on the Hugging Face hub, class ``LLaDA2MoeModelLM``. Paper: Bie et al. 2025, arXiv:2512.15745.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.llada import MASKED
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.parts.moe import Experts
from redraft.models.transformer import Config
from redraft.weights import Layout, TensorMap

_BLOCK = 32  # block length of the published models; their configurations don't contain it


class Llada2Moe(Format):
    """Checkpoints ``inclusionAI/LLaDA2.*-mini`` and ``-flash``.

    Not supported: routers other than sigmoid, biases outside attention, norms other than RMS norm.
    """

    summary = "LLaDA2 mini, flash"
    citation = "arXiv:2512.15745"
    unstated = {"use_qk_norm": True, "use_bias": True, "moe_router_enable_expert_bias": True}
    unstated |= {"n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "partial_rotary_factor": 0.5}
    unstated |= {"use_sliding_window": False}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "llada2_moe"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        c = _read_config(keys)
        return Translation({"name": "transformer", **config.to_mapping(c)}, {**MASKED, "block": _BLOCK}, _layout(c))


def _read_config(keys: Keys) -> Config:
    for key in ("norm_head", "norm_softmax", "use_bias", "using_split_qkv_in_self_attention"):
        keys.require(key, False)
    for key in ("use_rmsnorm", "norm_topk_prob"):
        keys.require(key, True)
    keys.require("score_function", "sigmoid")
    keys.require("router_dtype", "fp32", "float32")
    keys.ignore("embedding_dropout", "output_dropout", "output_router_logits", "router_aux_loss_coef", "seq_aux")
    keys.ignore("num_nextn_predict_layers", "mtp_loss_scaling_factor", "moe_router_topk_scaling_factor")
    hidden = keys.get("moe_intermediate_size", int)
    experts = Experts(
        count=keys.get("num_experts", int),
        active=keys.get("num_experts_per_tok", int),
        hidden=hidden,
        shared=hidden * keys.get("num_shared_experts", int, 0),
        dense=tuple(range(keys.get("first_k_dense_replace", int, 0))),
        score="sigmoid",
        bias=keys.get("moe_router_enable_expert_bias", bool),
        normalise=True,
        scale=keys.get("routed_scaling_factor", float),
        groups=keys.get("n_group", int),
        top_groups=keys.get("topk_group", int),
    )
    width = keys.get("head_dim", int, keys.get("hidden_size", int) // keys.get("num_attention_heads", int))
    share = keys.get("partial_rotary_factor", float)
    rotary = keys.get("rotary_dim", int, int(width * share))
    if rotary != int(width * share):
        raise keys.unsupported("rotary_dim", f"partial_rotary_factor gives {int(width * share)}.")
    return llama.read_config(
        keys,
        mlp_dim=keys.get("intermediate_size", int),
        head_dim=width,
        rotary_dim=rotary,
        qk_norm=keys.get("use_qk_norm", bool),
        qkv_bias=keys.get("use_qkv_bias", bool, False),
        experts=experts,
    )


def _layout(c: Config) -> Layout:
    assert c.experts is not None
    places = {
        "model.word_embeddings.weight": TensorMap("embedding.weight"),
        "model.norm.weight": TensorMap("norm.weight"),
    }
    for number in range(c.layers):
        own, stored = f"blocks.{number}", f"model.layers.{number}"
        places[f"{stored}.input_layernorm.weight"] = TensorMap(f"{own}.attention_norm.weight")
        places[f"{stored}.post_attention_layernorm.weight"] = TensorMap(f"{own}.mlp_norm.weight")
        for ending in ("weight", "bias") if c.qkv_bias else ("weight",):
            places[f"{stored}.attention.query_key_value.{ending}"] = TensorMap(f"{own}.attention.qkv.{ending}")
        places[f"{stored}.attention.dense.weight"] = TensorMap(f"{own}.attention.out.weight")
        if c.qk_norm:
            for key, norm in (("query_layernorm", "q_norm"), ("key_layernorm", "k_norm")):
                places[f"{stored}.attention.{key}.weight"] = TensorMap(f"{own}.attention.{norm}.weight")
        mlp = f"{stored}.mlp"
        if number in c.experts.dense:
            llama.map_swiglu(places, f"{own}.mlp", llama.projections(mlp, "gate", "up", "down"), c.hidden)
            continue
        llama.map_experts(places, f"{own}.mlp", mlp, c)
        if c.experts.bias:
            places[f"{mlp}.gate.expert_bias"] = TensorMap(f"{own}.mlp.balance")
        if c.experts.shared:
            shared = llama.projections(f"{mlp}.shared_experts", "gate", "up", "down")
            llama.map_swiglu(places, f"{own}.mlp.shared", shared, c.experts.shared)
    if not c.tied:
        places["lm_head.weight"] = TensorMap("head.weight")
    return Layout(places, {"lm_head.weight": "model.word_embeddings.weight"} if c.tied else {}, llama.ROTARY)
