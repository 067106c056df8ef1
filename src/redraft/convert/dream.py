"""Dream: Qwen2 adapted to masked diffusion, with the next-token shift kept.

Source: DreamLM/Dream, class ``DreamModel``. Paper: Ye et al. 2025, arXiv:2508.15487.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.diffullama import SHIFTED
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.parts.backbone import Backbone
from redraft.models.transformer import Config
from redraft.types import Spec
from redraft.weights import Layout

UNSTATED = {"num_key_value_heads": 32, "use_sliding_window": False, "sliding_window": 4096}


class Dream(Format):
    """Checkpoints ``Dream-org/Dream-*`` and DreamCoder. Sliding windows are not supported."""

    summary = "Dream, DreamCoder"
    citation = "arXiv:2508.15487"
    writable = True
    unstated = UNSTATED

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "Dream" and "expand_token_id" not in config

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        c = read_config(keys)
        return Translation({"name": "transformer", **config.to_mapping(c)}, SHIFTED, llama.layout(c))

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        if spec.variable_length:
            raise llama.not_writable("it changes its length; dreamon is the format for that")
        return keys_of(network, spec), llama.layout(network.config)


def read_config(keys: Keys) -> Config:
    """The network configuration from the keys of Dream."""
    return llama.read_config(keys, shift=1, qkv_bias=True)


def keys_of(network: Backbone, spec: Spec) -> dict[str, Any]:
    """The keys of Dream for a network.

    Raises:
        UserError: Dream can't hold this model.
    """
    c = llama.diffusion_config(network, spec, "full", shift=1)
    llama.check_qwen2(c)
    if c.window:
        raise llama.not_writable("Dream has no sliding windows")
    own: dict[str, Any] = {"model_type": "Dream", "architectures": ["DreamModel"], "mask_token_id": spec.tokens.mask_id}
    own |= {"use_sliding_window": False, "sliding_window": None}
    return {**own, **llama.to_keys(c, "head_dim", "attention_bias", "is_causal")}
