"""Mistral: Llama whose layers see only what is nearby, in its first release."""

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

_UNKNOWN = ("attention_bias", "use_sliding_window", "layer_types", "max_window_layers")


class Mistral:
    """``MistralForCausalLM`` (Jiang et al. 2023, arXiv:2310.06825), in and out."""

    summary = "Mistral 7B, Mistral Nemo"
    citation = "arXiv:2310.06825"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "mistral"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        c = _llama.shape(keys, shift=1, **_llama.windows(keys, used=True, first=0, width=4096))
        family = {"name": "autoregressive", "isolate_prompt": False}
        return Plan({"name": "transformer", **config.to_mapping(c)}, family, _llama.layout(c))

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = _llama.plain(network, spec)
        if c.qk_norm or c.qkv_bias or c.out_bias or c.mlp_bias or c.distant:
            reason = (
                "Mistral has no biases and no norms of queries and keys, and all of its layers have the same window"
            )
            raise UserError(f"this model can't be written so: {reason}.", "Try --to llama or qwen3.")
        names = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
        return {**names, **_llama.describe(c, *_UNKNOWN)}, _llama.layout(c)
