"""iLLaDA: Llama with full attention, trained from scratch for masked diffusion. Read and written.

Source: ML-GSAI/LLaDA, class ``ILLaDAForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.llada import MASKED
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.parts.backbone import Backbone
from redraft.types import Spec
from redraft.weights import Layout

_MASK = 5  # the configurations don't contain it


class Illada(Format):
    """Checkpoints iLLaDA: the keys and tensors of Llama. Not supported: LayerNorm (``layer_norm_eps``), scaled rope."""

    summary = "iLLaDA (dense)"
    citation = "github.com/ML-GSAI/LLaDA"
    writable = True

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "illada"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        keys.require("layer_norm_eps")
        keys.require("rope_scaling")
        keys.ignore("resid_pdrop")
        bias, mlp_bias = keys.get("attention_bias", bool, False), keys.get("mlp_bias", bool, False)
        c = llama.read_config(keys, qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)
        return Translation({"name": "transformer", **config.to_mapping(c)}, MASKED, llama.layout(c), mask=_MASK)

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = llama.diffusion_config(network, spec, "full")
        if c.qk_norm or c.experts or c.rotary_dim or c.head_bias or c.window or c.stretch or c.qkv_bias != c.out_bias:
            raise llama.not_writable("iLLaDA has no norms of queries and keys, experts, windows or scaled rope")
        own: dict[str, Any] = {"model_type": "illada", "architectures": ["ILLaDAForCausalLM"], "mlp_bias": c.mlp_bias}
        own |= {"layer_norm_eps": None, "mask_token_id": spec.tokens.mask_id}
        return {**own, **llama.to_keys(c, "is_causal")}, llama.layout(c)
