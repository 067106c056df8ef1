"""Llama: Llama 1 to 3.x, and whatever else exports itself as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _llama
from redraft.convert._keys import Keys
from redraft.data.vocabulary import Ids
from redraft.errors import UserError
from redraft.models.parts.backbone import Backbone
from redraft.types import Spec
from redraft.weights import Layout


class Llama:
    """``LlamaForCausalLM`` (Touvron et al. 2023, arXiv:2302.13971), in and out."""

    summary = "Llama 1 to 3.x"
    citation = "arXiv:2302.13971"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        causal = config.get("is_causal", ids.mask < 0)  # one with a mask is a DiffuLLaMA, unless it says otherwise
        return bool(config.get("model_type") == "llama" and causal)

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        bias = keys.get("attention_bias", bool, False)
        mlp_bias = keys.get("mlp_bias", bool, False)
        c = _llama.shape(keys, shift=1, qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)
        family = {"name": "autoregressive", "isolate_prompt": False}
        return Plan({"name": "transformer", **config.to_mapping(c)}, family, _llama.layout(c))

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = _llama.plain(network, spec)
        if c.qk_norm or c.window or c.qkv_bias != c.out_bias:
            raise UserError(
                "this model can't be written so: Llama has no norms of queries and keys, no windows, and no biases of "
                "these alone.",
                "Try --to qwen3, mistral or qwen2.",
            )
        names = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "mlp_bias": c.mlp_bias}
        return {**names, **_llama.describe(c)}, _llama.layout(c)
