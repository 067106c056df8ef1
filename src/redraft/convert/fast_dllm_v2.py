"""Fast-dLLM v2: Qwen2.5 adapted to block diffusion, with the next-token shift kept. Read and written.

Source: NVlabs/Fast-dLLM, class ``Fast_dLLM_QwenForCausalLM``. Paper: Wu et al. 2025, arXiv:2509.26328.
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

_MASK = 151665  # "|<MASK>|"; the configurations don't contain it


class FastDllmV2(Format):
    """Checkpoints ``Efficient-Large-Model/Fast_dLLM_v2_*``. Keys and tensors are those of Qwen2, with ``bd_size``.

    Blocks are counted from the beginning of the text, prompt included.
    """

    summary = "Fast-dLLM v2"
    citation = "arXiv:2509.26328"
    writable = True
    unstated = {"num_key_value_heads": 32, "bd_size": 32}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "Fast_dLLM_Qwen"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        keys.ignore("conplemenrary_mask")  # of training; spelt so
        c = llama.read_config(keys, shift=1, qkv_bias=True, **llama.window_fields(keys, **QWEN))
        family = {"name": "block", "prompt_encoder": False, "block": keys.get("bd_size", int), "shift": 1}
        mask = _MASK if c.vocab_size > _MASK else None
        defaults = {"sampler": "sub_blocks", "cache": "sub_block"}
        return Translation(
            {"name": "transformer", **config.to_mapping(c)}, family, llama.layout(c), mask=mask, defaults=defaults
        )

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        c = llama.diffusion_config(network, spec, "block", shift=1)
        llama.check_qwen2(c)
        own: dict[str, Any] = {"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"]}
        own |= {"use_sliding_window": False, "bd_size": spec.network.attention.block}
        own |= {"mask_token_id": spec.tokens.mask_id}
        return {**own, **llama.to_keys(c, "head_dim", "attention_bias", "is_causal")}, llama.layout(c)
