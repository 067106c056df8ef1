"""Nemotron-Labs-Diffusion (text): one network, read causally or without a mask over a block. Read and written.

Source: nvidia/Nemotron-Labs-Diffusion-8B on the Hugging Face hub, class ``NemotronLabsDiffusionModel``, on the layers
of transformers' ``Ministral3Model``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from redraft import config
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.parts.backbone import Backbone
from redraft.models.transformer import Config, Transformer
from redraft.types import Spec
from redraft.weights import Layout

_NAMES = {"model.": "encoder.", "lm_head.": "diffusion_head."}  # Llama's names, and those here


class NemotronLabsDiffusion(Format):
    """Checkpoints ``nvidia/Nemotron-Labs-Diffusion-*`` for text. Images and the thinking budget are not supported.

    Text is read causally and predicts the next token; a block of masks after it sees all of itself, and each position
    predicts its own token.
    """

    summary = "Nemotron-Labs-Diffusion (text)"
    citation = "huggingface.co/nvidia/Nemotron-Labs-Diffusion-8B"
    writable = True
    unstated = {"num_key_value_heads": 8, "head_dim": 128, "block_size": 32, "rope_theta": 1e6}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "nemotron_labs_diffusion"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        keys.require("dlm_paradigm", "bidirectional", "block_diff", "autoregressive")  # of training
        keys.ignore("dlm_loss_weight", "ar_loss_weight", "dp_varying_mask_ratio")
        bias, mlp_bias = keys.get("attention_bias", bool, False), keys.get("mlp_bias", bool, False)
        c = llama.read_config(keys, growth=True, shift=1, qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)
        block = keys.get("block_size", int)
        defaults = {"sampler": "causal_blocks", "options": {"block": block}}
        family = {"name": "hybrid", "prompt_encoder": False, "block": block}
        return Translation({"name": "transformer", **config.to_mapping(c)}, family, _layout(c), defaults=defaults)

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = network.config
        drafter = spec.family.drafter
        if not isinstance(network, Transformer) or drafter is None or not drafter.masks or spec.network.prompt_encoder:
            raise llama.not_writable("it is no transformer that both reads text causally and drafts blocks")
        if c.qk_norm or c.experts or c.rotary_dim or c.head_bias or c.window or c.restart or c.qkv_bias != c.out_bias:
            raise llama.not_writable("its network has norms of queries and keys, experts, windows or other biases")
        own: dict[str, Any] = {"model_type": "nemotron_labs_diffusion", "architectures": ["NemotronLabsDiffusionModel"]}
        own |= {"mlp_bias": c.mlp_bias, "mask_token_id": spec.tokens.mask_id, "dlm_paradigm": "bidirectional"}
        own |= {"block_size": drafter.network.attention.block}
        shape = llama.to_keys(c, "is_causal", "rope_theta")
        scaling = shape.pop("rope_scaling") or {"rope_type": "default"}
        if c.stretch is not None and c.stretch.growth:
            scaling["llama_4_scaling_beta"] = c.stretch.growth
        return {**own, **shape, "rope_parameters": {**scaling, "rope_theta": c.rope_theta}}, _layout(c)


def _layout(c: Config) -> Layout:
    found = llama.layout(c)

    def renamed(name: str) -> str:
        for old, new in _NAMES.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    places = {renamed(name): place for name, place in found.places.items()}
    return replace(found, places=places, twins={renamed(a): renamed(b) for a, b in found.twins.items()})
