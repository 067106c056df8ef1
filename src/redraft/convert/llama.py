"""Llama: Llama 1 to 3.x, and other models that are exported as Llama. Read and written.

Source: meta-llama/llama, transformers' ``LlamaForCausalLM``. Paper: Touvron et al. 2023, arXiv:2302.13971.
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


class Llama(Format):
    """Checkpoints such as ``meta-llama/Llama-3.2-1B``, with linear, llama3, YaRN or dynamic rope scaling.

    Not supported: sliding windows, LongRoPE, activations other than SiLU.
    """

    summary = "Llama 1 to 3.x"
    citation = "arXiv:2302.13971"
    writable = True

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "llama" and not llama.is_masked(config)

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        bias = keys.get("attention_bias", bool, False)
        mlp_bias = keys.get("mlp_bias", bool, False)
        c = llama.read_config(keys, shift=1, qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)
        family = {"name": "autoregressive", "prompt_encoder": False}
        return Translation({"name": "transformer", **config.to_mapping(c)}, family, llama.layout(c))

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = llama.exportable_config(network, spec)
        if c.qk_norm or c.window or c.qkv_bias != c.out_bias:
            raise UserError(
                "This model can't be written as Llama, which has no norms of queries and keys, no sliding windows, and "
                "no biases of queries, keys and values alone.",
                "Use --to qwen3, mistral or qwen2.",
            )
        names = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "mlp_bias": c.mlp_bias}
        return {**names, **llama.to_keys(c)}, llama.layout(c)
