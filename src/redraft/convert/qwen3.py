"""Qwen3: dense models with norms of queries and keys in each head. Read and written.

Source: QwenLM/Qwen3, transformers' ``Qwen3ForCausalLM``. Paper: Yang et al. 2025, arXiv:2505.09388.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.qwen2 import QWEN
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.errors import UserError
from redraft.models.parts.backbone import Backbone
from redraft.types import Spec
from redraft.weights import Layout


class Qwen3(Format):
    """Checkpoints such as ``Qwen/Qwen3-0.6B``. LongRoPE is not supported. Mixtures of experts: ``qwen3_moe``."""

    summary = "Qwen3 (dense)"
    citation = "arXiv:2505.09388"
    writable = True
    unstated = {"num_key_value_heads": 32, "head_dim": 128}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "qwen3"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        bias = keys.get("attention_bias", bool, False)
        c = llama.read_config(
            keys, shift=1, qk_norm=True, qkv_bias=bias, out_bias=bias, **llama.window_fields(keys, **QWEN)
        )
        family = {"name": "autoregressive", "prompt_encoder": False}
        return Translation({"name": "transformer", **config.to_mapping(c)}, family, llama.layout(c))

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = llama.exportable_config(network, spec)
        if not c.qk_norm or c.mlp_bias or c.qkv_bias != c.out_bias:
            raise UserError(
                "This model can't be written as Qwen3, which has norms of queries and keys, and biases in attention "
                "everywhere or nowhere.",
                "Use --to llama.",
            )
        names = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False}
        return {**names, **llama.to_keys(c)}, llama.layout(c)
