"""Qwen3, the dense ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _llama
from redraft.convert._keys import Keys
from redraft.data.vocabulary import Ids


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
        c = _llama.shape(keys, shift=1, qk_norm=True, qkv_bias=bias, out_bias=bias)
        family = {"name": "autoregressive", "isolate_prompt": False}
        return Plan({"name": "transformer", **config.to_mapping(c)}, family, _llama.layout(c))
