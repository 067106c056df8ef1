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


class Dream(Format):
    """Checkpoints ``Dream-org/Dream-*`` and DreamCoder. Sliding windows are not supported."""

    summary = "Dream, DreamCoder"
    citation = "arXiv:2508.15487"
    unstated = {"num_key_value_heads": 32, "use_sliding_window": False}

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "Dream"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        c = llama.read_config(keys, shift=1, qkv_bias=True)
        return Translation({"name": "transformer", **config.to_mapping(c)}, SHIFTED, llama.layout(c))
