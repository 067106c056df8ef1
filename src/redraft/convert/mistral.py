"""Mistral: Llama with sliding windows in its first release. Read and written.

Source: mistralai/mistral-inference, transformers' ``MistralForCausalLM``. Paper: Jiang et al. 2023, arXiv:2310.06825.
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

_UNKNOWN = ("attention_bias", "use_sliding_window", "layer_types", "max_window_layers")


class Mistral(Format):
    """Checkpoints such as ``mistralai/Mistral-7B-v0.1`` and Mistral Nemo. The limits are those of ``llama``."""

    summary = "Mistral 7B, Mistral Nemo"
    citation = "arXiv:2310.06825"
    writable = True
    unstated = {"num_key_value_heads": 8}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "mistral"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        c = llama.read_config(keys, shift=1, **llama.window_fields(keys, used=True, first=0, width=4096))
        family = {"name": "autoregressive", "prompt_encoder": False}
        return Translation({"name": "transformer", **config.to_mapping(c)}, family, llama.layout(c))

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = llama.exportable_config(network, spec)
        if c.qk_norm or c.qkv_bias or c.out_bias or c.mlp_bias or c.distant:
            raise UserError(
                "This model can't be written as Mistral, which has no biases, no norms of queries and keys, and the "
                "same window in all layers.",
                "Use --to llama or qwen3.",
            )
        names = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
        return {**names, **llama.to_keys(c, *_UNKNOWN)}, llama.layout(c)
