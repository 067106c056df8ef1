"""DiffuLLaMA: a Llama taught to fill masks, its next-token shift kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from redraft.convert import Plan
from redraft.convert._keys import Keys
from redraft.convert.llama import Llama
from redraft.data.vocabulary import Ids


class Diffullama:
    """Gong et al. 2024 (arXiv:2410.17891): a Llama by its names, told apart by the mask token among its files."""

    summary = "DiffuLLaMA: Llama adapted to masked diffusion"
    citation = "arXiv:2410.17891"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return bool(config.get("model_type") == "llama" and not config.get("is_causal", ids.mask < 0))

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        return replace(Llama.read(keys, names, ids), family=SHIFTED)


SHIFTED = {"name": "masked", "isolate_prompt": False, "length_head": False, "shift": 1}
