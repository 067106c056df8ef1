"""DiffuGPT: a GPT-2 taught to fill masks, its next-token shift kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan
from redraft.convert._keys import Keys
from redraft.convert.diffullama import SHIFTED
from redraft.convert.gpt2 import blocks, shape
from redraft.data.vocabulary import Ids
from redraft.weights import Layout, Place


class Diffugpt:
    """``DiscreteDiffusionModel`` (Gong et al. 2024, arXiv:2410.17891)."""

    summary = "DiffuGPT: GPT-2 adapted to masked diffusion"
    citation = "arXiv:2410.17891"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "gpt2" and "DiscreteDiffusionModel" in (config.get("architectures") or [])

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        prefix = "denoise_model."
        c = shape(keys, tied=True, qkv_bias=f"{prefix}h.0.attn.c_attn.bias" in names)
        places = {"embed_tokens.weight": Place("embedding.weight"), **blocks(c, prefix)}
        twins = {"lm_head.weight": "embed_tokens.weight", f"{prefix}wte.weight": "embed_tokens.weight"}
        layout = Layout(places, twins, (".attn.bias", ".attn.masked_bias"))
        return Plan({"name": "gpt", **config.to_mapping(c)}, SHIFTED, layout)
