"""LLaDA-MoE: LLaDA with a mixture of experts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _llama
from redraft.convert._keys import Keys
from redraft.convert.llada import MASKED
from redraft.data.vocabulary import Ids
from redraft.models.parts.moe import Experts


class LladaMoe:
    """``LLaDAMoEModelLM`` (Zhu et al. 2025, arXiv:2509.24389)."""

    summary = "LLaDA-MoE"
    citation = "arXiv:2509.24389"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") in ("llada", "lladamoe", "llada_moe") and "expert_intermediate_size" in config

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        for key in ("shared_expert_intermediate_size", "clip_qkv", "router_num_group", "router_topk_group"):
            keys.must(key)
        keys.must("moe_router_enable_expert_bias", False)
        keys.must("moe_router_score_function", "softmax")
        keys.must("partial_rotary_factor", 1, 1.0)
        keys.silent("output_router_logits", "router_aux_loss_coef")
        layers = keys.get("num_hidden_layers", int)
        sparse = keys.get("moe_layer_freq", list, [1] * layers)
        if len(sparse) != layers:
            raise keys.unsupported("moe_layer_freq", f"It must have one entry for each of {layers} layers.")
        experts = Experts(
            count=keys.get("num_experts", int),
            active=keys.get("num_experts_per_tok", int),
            hidden=keys.get("expert_intermediate_size", int),
            dense=tuple(number for number, moe in enumerate(sparse) if not moe),
            normalise=keys.get("norm_topk_prob", bool, False),
            scale=keys.get("routed_scaling_factor", float, 1.0),
        )
        bias = keys.get("attention_bias", bool, False)
        c = _llama.shape(
            keys,
            mlp_dim=keys.get("dense_intermediate_size", int),
            qk_norm=keys.get("qk_layernorm", bool, False),
            qkv_bias=bias,
            out_bias=bias,
            experts=experts,
        )
        return Plan({"name": "transformer", **config.to_mapping(c)}, MASKED, _llama.layout(c))
