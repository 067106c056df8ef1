"""DiffuGPT: GPT-2 adapted to masked diffusion, with the next-token shift kept.

Source: HKUNLP/DiffuLLaMA, class ``DiscreteDiffusionModel``. Paper: Gong et al. 2024, arXiv:2410.17891.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.diffullama import SHIFTED
from redraft.convert.gpt2 import blocks, read_config
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.weights import Layout, TensorMap


class Diffugpt(Format):
    """Checkpoints ``diffusionfamily/diffugpt-*``. Reads the keys of ``gpt2``, with the same limits."""

    summary = "DiffuGPT: GPT-2 adapted to masked diffusion"
    citation = "arXiv:2410.17891"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "gpt2" and "DiscreteDiffusionModel" in (config.get("architectures") or [])

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        prefix = "denoise_model."
        c = read_config(keys, tied=True, qkv_bias=f"{prefix}h.0.attn.c_attn.bias" in names)
        places = {"embed_tokens.weight": TensorMap("embedding.weight"), **blocks(c, prefix)}
        twins = {"lm_head.weight": "embed_tokens.weight", f"{prefix}wte.weight": "embed_tokens.weight"}
        layout = Layout(places, twins, (".attn.bias", ".attn.masked_bias"))
        return Translation({"name": "gpt", **config.to_mapping(c)}, SHIFTED, layout)
