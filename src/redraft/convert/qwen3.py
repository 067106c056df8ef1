"""Qwen3, the dense ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _llama
from redraft.convert._keys import Keys
from redraft.convert.qwen2 import QWEN
from redraft.data.vocabulary import Ids
from redraft.errors import UserError
from redraft.models.parts.backbone import Backbone
from redraft.types import Spec
from redraft.weights import Layout


class Qwen3:
    """``Qwen3ForCausalLM`` (Yang et al. 2025, arXiv:2505.09388): queries and keys are normalised, head by head."""

    summary = "Qwen3 (dense)"
    citation = "arXiv:2505.09388"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "qwen3"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        bias = keys.get("attention_bias", bool, False)
        c = _llama.shape(keys, shift=1, qk_norm=True, qkv_bias=bias, out_bias=bias, **_llama.windows(keys, **QWEN))
        family = {"name": "autoregressive", "isolate_prompt": False}
        return Plan({"name": "transformer", **config.to_mapping(c)}, family, _llama.layout(c))

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = _llama.plain(network, spec)
        if not c.qk_norm or c.mlp_bias or c.qkv_bias != c.out_bias:
            raise UserError("this model can't be written so: Qwen3 normalises queries and keys.", "Try --to llama.")
        names = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False}
        return {**names, **_llama.describe(c)}, _llama.layout(c)
