"""DreamOn: Dream with two more tokens, which change the length of what is filled in. Read and written.

Source: DreamLM/DreamOn, class ``DreamModel``. Paper: Wu et al. 2026, arXiv:2602.01326.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redraft import config
from redraft.convert import dream
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids
from redraft.models.parts.backbone import Backbone
from redraft.types import Spec
from redraft.weights import Layout


class Dreamon(Format):
    """Checkpoints ``Dream-org/DreamOn-*``: the keys of ``dream`` and ``expand_token_id``. End-of-text is ``delete``."""

    summary = "DreamOn"
    citation = "arXiv:2602.01326"
    writable = True
    unstated = dream.UNSTATED

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "Dream" and "expand_token_id" in config

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        keys.ignore("expand_token_id")  # read with the other special tokens (``find_ids``)
        c = dream.read_config(keys)
        family = {"name": "expand", "prompt_encoder": False, "length_head": False, "shift": 1}
        return Translation({"name": "transformer", **config.to_mapping(c)}, family, llama.layout(c), delete=ids.eos)

    @staticmethod
    def write(network: Backbone, spec: Spec) -> tuple[dict[str, Any], Layout]:
        if spec.tokens.expand_id < 0 or spec.tokens.delete_id != spec.tokens.eos_id:
            raise llama.not_writable("it has no token that expands, or its delete token is not end-of-text")
        own = {**dream.keys_of(network, spec), "expand_token_id": spec.tokens.expand_id}
        return own, llama.layout(network.config)
