"""SDAR: Qwen3 trained for block diffusion. Read and written.

Source: JetAstra/SDAR, class ``SDARForCausalLM``. Paper: Cheng et al. 2025, arXiv:2510.06303.
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
from redraft.models.parts.backbone import Backbone
from redraft.types import Spec
from redraft.weights import Layout


class Sdar(Format):
    """Checkpoints ``JetLM/SDAR-*-Chat``. Keys and tensors are those of Qwen3, with the size of the blocks.

    Blocks are counted from the beginning of the text, prompt included. Mixtures of experts are of format ``sdar_moe``.
    """

    summary = "SDAR (dense)"
    citation = "arXiv:2510.06303"
    writable = True
    unstated = {"num_key_value_heads": 32, "head_dim": 128, "use_sliding_window": False}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "sdar"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        ignore_training(keys)
        bias = keys.get("attention_bias", bool, False)
        windows = llama.window_fields(keys, **QWEN)
        c = llama.read_config(keys, qk_norm=True, qkv_bias=bias, out_bias=bias, **windows)
        network = {"name": "transformer", **config.to_mapping(c)}
        return Translation(network, block_family(keys), llama.layout(c), defaults=DYNAMIC)

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = llama.diffusion_config(network, spec, "block")
        if not c.qk_norm or c.mlp_bias or c.qkv_bias != c.out_bias or c.experts or c.rotary_dim or c.head_bias:
            raise llama.not_writable("SDAR has norms of queries and keys, and biases in attention or nowhere")
        own: dict[str, Any] = {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "use_sliding_window": False}
        own |= {"block_size": spec.network.attention.block, "mask_token_id": spec.tokens.mask_id}
        return {**own, **llama.to_keys(c, "is_causal")}, llama.layout(c)


def ignore_training(keys: Keys) -> None:
    """Mark the keys of SDAR's training code as read."""
    keys.ignore("debug", "ep_size", "use_deepep", "fuse_cross_entropy", "micro_forward", "skip_checkpoint")


def block_family(keys: Keys) -> dict[str, Any]:
    """The family of a configuration, with the size of its blocks.

    Raises:
        UserError: the configuration does not state the size.
    """
    return {"name": "block", "prompt_encoder": False, "block": keys.get("block_size", int)}


# The published setting of generation, "low_confidence_dynamic".
DYNAMIC: dict[str, Any] = {"sampler": "threshold", "options": {"threshold": 0.85}}
