"""LLaDA-MoE: LLaDA with a mixture of experts.

Source: inclusionAI on the Hugging Face hub, class ``LLaDAMoEModelLM``. Paper: Zhu et al. 2025, arXiv:2509.24389.
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


class LladaMoe(Format):
    """Checkpoints ``inclusionAI/LLaDA-MoE-7B-A1B-*``.

    Not supported: shared experts, router groups, expert biases, routers other than softmax, partial rotary positions.
    """

    summary = "LLaDA-MoE"
    citation = "arXiv:2509.24389"
    unstated = {"num_key_value_heads": 16, "qk_layernorm": True, "rope_theta": 50000.0}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") in ("llada", "lladamoe", "llada_moe") and "expert_intermediate_size" in config

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        for key in ("shared_expert_intermediate_size", "clip_qkv", "router_num_group", "router_topk_group"):
            keys.require(key)
        keys.require("moe_router_enable_expert_bias", False)
        keys.require("moe_router_score_function", "softmax")
        keys.require("partial_rotary_factor", 1, 1.0)
        keys.ignore("output_router_logits", "router_aux_loss_coef")
        layers = keys.get("num_hidden_layers", int)
        sparse = keys.get("moe_layer_freq", list, [1] * layers)
        if len(sparse) != layers:
            raise keys.unsupported("moe_layer_freq", f"It needs one entry for each of {layers} layers.")
        experts = Experts(
            count=keys.get("num_experts", int),
            active=keys.get("num_experts_per_tok", int),
            hidden=keys.get("expert_intermediate_size", int),
            dense=tuple(number for number, moe in enumerate(sparse) if not moe),
            normalise=keys.get("norm_topk_prob", bool, False),
            scale=keys.get("routed_scaling_factor", float, 1.0),
        )
        bias = keys.get("attention_bias", bool, False)
        c = llama.read_config(
            keys,
            mlp_dim=keys.get("dense_intermediate_size", int),
            qk_norm=keys.get("qk_layernorm", bool),
            qkv_bias=bias,
            out_bias=bias,
            experts=experts,
        )
        return Translation({"name": "transformer", **config.to_mapping(c)}, MASKED, llama.layout(c))
