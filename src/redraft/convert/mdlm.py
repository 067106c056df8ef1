"""MDLM: masked diffusion with a diffusion transformer.

Source: kuleshov-group/mdlm, class ``MDLM``. Paper: Sahoo et al. 2024, arXiv:2406.07524.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.llada import MASKED
from redraft.convert.shared import dit
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.dit import Config


class Mdlm(Format):
    """Checkpoints ``kuleshov-group/mdlm-*``, with or without time conditioning.

    The mask is the last id and is never generated.
    """

    summary = "MDLM"
    citation = "arXiv:2406.07524"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "mdlm"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        c = read_config(keys)
        family = {**MASKED, "timed": c.timed}
        layout = dit.layout(c, "backbone.")
        return Translation(
            {"name": "dit", **config.to_mapping(c)}, family, layout, forbid_mask=True, mask=c.vocab_size - 1
        )


def read_config(keys: Keys) -> Config:
    """The network configuration from the keys of MDLM. Its schedule, called log-linear there, is ``linear`` here."""
    keys.ignore("dropout")
    return Config(
        vocab_size=keys.get("vocab_size", int),
        dim=keys.get("hidden_dim", int),
        condition_dim=keys.get("cond_dim", int),
        layers=keys.get("n_blocks", int),
        heads=keys.get("n_heads", int),
        max_length=keys.get("model_length", int),
        noise="linear" if keys.get("time_conditioning", bool, False) else "none",
    )
