"""BD3-LM: block diffusion with a diffusion transformer.

Source: kuleshov-group/bd3lms, class ``BD3LM``. Paper: Arriola et al. 2025, arXiv:2503.09573.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert.llada import MASKED
from redraft.convert.mdlm import read_config
from redraft.convert.shared import dit
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids


class Bd3lm(Format):
    """Checkpoints ``kuleshov-group/bd3lm-*``. The mask is the last id and is never generated.

    Not supported: causal attention, a network without time modulation (``adaln``), one trained on the noisy stream
    alone (without ``cross_attn``).
    """

    summary = "BD3-LM"
    citation = "arXiv:2503.09573"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "bd3lm"

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        keys.require("adaln", True)
        keys.require("causal", False)
        keys.require("cross_attn", True)  # trained with a clean and a noisy stream
        keys.ignore("attn_backend", "sampling_eps_max", "sampling_eps_min", "var_min")  # noise levels of training
        c = read_config(keys)
        family = {**MASKED, "timed": c.timed, "block": keys.get("block_size", int)}
        layout = dit.layout(c, "backbone.", ("sampling_eps_min", "sampling_eps_max"))
        return Translation(
            {"name": "dit", **config.to_mapping(c)}, family, layout, forbid_mask=True, mask=c.vocab_size - 1
        )
