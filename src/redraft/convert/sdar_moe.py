"""SDAR with a mixture of experts: Qwen3-MoE trained for block diffusion. Read and written.

Source: JetLM/SDAR-30B-A3B-* on the Hugging Face hub, class ``SDARMoeForCausalLM``. Paper: Cheng et al. 2025,
arXiv:2510.06303.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import qwen3_moe
from redraft.convert.sdar import DYNAMIC, block_family, ignore_training
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.parts.backbone import Backbone
from redraft.types import Spec
from redraft.weights import Layout


class SdarMoe(Format):
    """Checkpoints ``JetLM/SDAR-30B-A3B-*``. Keys and tensors are those of Qwen3-MoE, with the size of the blocks."""

    summary = "SDAR (mixtures of experts)"
    citation = "arXiv:2510.06303"
    writable = True
    unstated = {"num_key_value_heads": 4, "use_sliding_window": False}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "sdar_moe"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        ignore_training(keys)
        c = qwen3_moe.read_config(keys)
        network = {"name": "transformer", **config.to_mapping(c)}
        return Translation(network, block_family(keys), llama.layout(c), defaults=DYNAMIC)

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = llama.diffusion_config(network, spec, "block")
        own: dict[str, Any] = {"model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"]}
        own |= {"use_sliding_window": False, "mask_token_id": spec.tokens.mask_id}
        own |= {"block_size": spec.network.attention.block}
        return {**own, **qwen3_moe.to_keys(c)}, llama.layout(c)
