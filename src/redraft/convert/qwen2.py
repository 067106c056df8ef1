"""Qwen2 and Qwen2.5."""

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

QWEN: dict[str, Any] = {"used": False, "first": 28, "width": 4096}  # windows where a file is silent


class Qwen2:
    """``Qwen2ForCausalLM`` (Yang et al. 2024, arXiv:2407.10671): Llama with biases on queries, keys and values."""

    summary = "Qwen2, Qwen2.5"
    citation = "arXiv:2407.10671"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "qwen2"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        c = _llama.shape(keys, shift=1, qkv_bias=True, **_llama.windows(keys, **QWEN))
        family = {"name": "autoregressive", "isolate_prompt": False}
        return Plan({"name": "transformer", **config.to_mapping(c)}, family, _llama.layout(c))

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = _llama.plain(network, spec)
        if c.qk_norm or c.mlp_bias or c.out_bias or not c.qkv_bias or c.head_dim not in (0, c.dim // c.heads):
            reason = "Qwen2 has biases of queries, keys and values, and no others"
            raise UserError(f"this model can't be written so: {reason}.", "Try --to llama.")
        names = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}
        return {**names, **_llama.describe(c, "head_dim", "attention_bias")}, _llama.layout(c)
