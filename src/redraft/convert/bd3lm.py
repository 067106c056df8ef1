"""BD3-LM: block diffusion with a diffusion transformer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _dit
from redraft.convert._keys import Keys
from redraft.convert.llada import MASKED
from redraft.convert.mdlm import shape
from redraft.data.vocabulary import Ids


class Bd3lm:
    """``BD3LM`` (Arriola et al. 2025, arXiv:2503.09573). The mask is the last id, and is never predicted."""

    summary = "BD3-LM"
    citation = "arXiv:2503.09573"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "bd3lm"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        keys.must("adaln", True)
        keys.must("causal", False)
        keys.must("cross_attn", True)  # trained with the clean text beside the noisy one
        keys.silent("attn_backend", "sampling_eps_max", "sampling_eps_min", "var_min")  # of training's noise levels
        c = shape(keys)
        family = {**MASKED, "timed": c.timed, "block": keys.get("block_size", int)}
        layout = _dit.layout(c, "backbone.", ("sampling_eps_min", "sampling_eps_max"))
        return Plan({"name": "dit", **config.to_mapping(c)}, family, layout, forbid_mask=True, mask=c.vocab_size - 1)
