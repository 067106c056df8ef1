"""Qwen3-MoE: Qwen3 with a mixture of experts in place of most MLPs. Read and written.

Source: QwenLM/Qwen3, transformers' ``Qwen3MoeForCausalLM``. Paper: Yang et al. 2025, arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.moe import Experts
from redraft.models.transformer import Config
from redraft.types import Spec
from redraft.weights import Layout


class Qwen3Moe(Format):
    """Checkpoints such as ``Qwen/Qwen3-30B-A3B``. The limits are those of ``qwen3``."""

    summary = "Qwen3 (mixtures of experts)"
    citation = "arXiv:2505.09388"
    writable = True
    unstated = {"num_key_value_heads": 4, "intermediate_size": 6144, "sliding_window": 4096}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "qwen3_moe"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        c = read_config(keys, shift=1)
        family = {"name": "autoregressive", "prompt_encoder": False}
        return Translation({"name": "transformer", **config.to_mapping(c)}, family, llama.layout(c))

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = llama.exportable_config(network, spec, experts=True)
        names = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "use_sliding_window": False}
        return {**names, **to_keys(c)}, llama.layout(c)


def read_config(keys: Keys, **more: Any) -> Config:
    """The network configuration from the keys of Qwen3-MoE.

    Raises:
        UserError: a key is missing, or has a value that is not supported.
    """
    keys.ignore("output_router_logits", "router_aux_loss_coef")
    step, plain = keys.get("decoder_sparse_step", int, 1), keys.get("mlp_only_layers", list, [])
    if step < 1:
        raise keys.unsupported("decoder_sparse_step", "It must be at least 1.")
    layers = range(keys.get("num_hidden_layers", int))
    local = keys.get("num_local_experts", int, 0)  # as recent versions of transformers write it
    experts = Experts(
        count=local or keys.get("num_experts", int, 128),
        active=keys.get("num_experts_per_tok", int, 8),
        hidden=keys.get("moe_intermediate_size", int, 768),
        dense=tuple(layer for layer in layers if layer in plain or (layer + 1) % step),
        normalise=keys.get("norm_topk_prob", bool, False),
    )
    keys.ignore("num_experts")
    bias = keys.get("attention_bias", bool, False)
    window = keys.get("sliding_window", int, 0) if keys.get("use_sliding_window", bool, False) else 0
    if window < 0:
        raise keys.unsupported("sliding_window", "It must be positive.")
    keys.ignore("sliding_window", "max_window_layers")  # all layers have a window, or none
    more |= {"window": window, "distant": ()}
    return llama.read_config(keys, qk_norm=True, qkv_bias=bias, out_bias=bias, experts=experts, **more)


def to_keys(c: Config) -> dict[str, Any]:
    """The keys that ``read_config`` reads.

    Raises:
        UserError: Qwen3-MoE can't compute this shape.
    """
    e = c.experts
    if e is None or e != Experts(e.count, e.active, e.hidden, dense=e.dense, normalise=e.normalise):
        raise llama.not_writable("Qwen3-MoE has experts with a softmax router, and no shared ones")
    if not c.qk_norm or c.mlp_bias or c.head_bias or c.rotary_dim or c.qkv_bias != c.out_bias:
        raise llama.not_writable("Qwen3-MoE has norms of queries and keys, and biases in attention or nowhere")
    if c.window and c.distant:
        raise llama.not_writable("Qwen3-MoE has the same window in all layers")
    own: dict[str, Any] = {"num_experts": e.count, "num_experts_per_tok": e.active, "moe_intermediate_size": e.hidden}
    own |= {"norm_topk_prob": e.normalise, "decoder_sparse_step": 1, "mlp_only_layers": list(e.dense)}
    return {**llama.to_keys(c, "is_causal", "max_window_layers", "layer_types"), **own}
