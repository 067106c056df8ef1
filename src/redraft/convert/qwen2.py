"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values. Read and written.

Source: QwenLM/Qwen2.5, transformers' ``Qwen2ForCausalLM``. Paper: Yang et al. 2024, arXiv:2407.10671.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.errors import UserError
from redraft.models.parts.backbone import Backbone
from redraft.types import Spec
from redraft.weights import Layout

QWEN: dict[str, Any] = {"used": False, "first": 28, "width": 4096}  # defaults of sliding windows


class Qwen2(Format):
    """Checkpoints such as ``Qwen/Qwen2.5-0.5B``. Not supported: multimodal positions (``use_mrope``), LongRoPE."""

    summary = "Qwen2, Qwen2.5"
    citation = "arXiv:2407.10671"
    writable = True
    unstated = {"num_key_value_heads": 32}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "qwen2"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        c = llama.read_config(keys, shift=1, qkv_bias=True, **llama.window_fields(keys, **QWEN))
        family = {"name": "autoregressive", "prompt_encoder": False}
        return Translation({"name": "transformer", **config.to_mapping(c)}, family, llama.layout(c))

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = llama.exportable_config(network, spec)
        if c.qk_norm or c.mlp_bias or c.out_bias or not c.qkv_bias or c.head_dim not in (0, c.dim // c.heads):
            raise UserError(
                "This model can't be written as Qwen2, which has biases of queries, keys and values, and no others.",
                "Use --to llama.",
            )
        names = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}
        return {**names, **llama.to_keys(c, "head_dim", "attention_bias")}, llama.layout(c)
