"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _llama
from redraft.convert._keys import Keys
from redraft.data.vocabulary import Ids


class Qwen2:
    """``Qwen2ForCausalLM`` (Yang et al. 2024, arXiv:2407.10671): Llama with biases on queries, keys and values."""

    summary = "Qwen2, Qwen2.5"
    citation = "arXiv:2407.10671"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "qwen2"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        c = _llama.shape(keys, shift=1, qkv_bias=True)
        family = {"name": "autoregressive", "isolate_prompt": False}
        return Plan({"name": "transformer", **config.to_mapping(c)}, family, _llama.layout(c))
