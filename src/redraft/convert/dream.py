"""Dream: a Qwen2 taught to fill masks, its next-token shift kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _llama
from redraft.convert._keys import Keys
from redraft.convert.diffullama import SHIFTED
from redraft.data.vocabulary import Ids


class Dream:
    """``DreamModel`` (Ye et al. 2025, arXiv:2508.15487)."""

    summary = "Dream, DreamCoder"
    citation = "arXiv:2508.15487"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "Dream"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        c = _llama.shape(keys, shift=1, qkv_bias=True)
        return Plan({"name": "transformer", **config.to_mapping(c)}, SHIFTED, _llama.layout(c))
