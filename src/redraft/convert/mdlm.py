"""MDLM: masked diffusion with a diffusion transformer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import Plan, _dit
from redraft.convert._keys import Keys
from redraft.convert.llada import MASKED
from redraft.data.vocabulary import Ids
from redraft.models.dit import Config


class Mdlm:
    """``MDLM`` (Sahoo et al. 2024, arXiv:2406.07524). The mask is the last id, and is never predicted."""

    summary = "MDLM"
    citation = "arXiv:2406.07524"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "mdlm"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Plan:
        c = shape(keys)
        family = {**MASKED, "timed": c.timed}
        layout = _dit.layout(c, "backbone.")
        return Plan({"name": "dit", **config.to_mapping(c)}, family, layout, forbid_mask=True, mask=c.vocab_size - 1)


def shape(keys: Keys) -> Config:
    """The keys of MDLM's Hugging Face form; its noise is the linear schedule, called log-linear there."""
    keys.silent("dropout")
    return Config(
        vocab_size=keys.get("vocab_size", int),
        dim=keys.get("hidden_dim", int),
        condition_dim=keys.get("cond_dim", int),
        layers=keys.get("n_blocks", int),
        heads=keys.get("n_heads", int),
        max_length=keys.get("model_length", int),
        noise="linear" if keys.get("time_conditioning", bool, False) else "none",
    )
