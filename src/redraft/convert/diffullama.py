"""DiffuLLaMA: Llama adapted to masked diffusion, with the next-token shift kept.

Source: HKUNLP/DiffuLLaMA. Paper: Gong et al. 2024, arXiv:2410.17891.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from redraft.convert.llama import Llama
from redraft.convert.shared import llama
from redraft.convert.shared.format import Format, Translation
from redraft.convert.shared.keys import Keys
from redraft.data.vocabulary import Ids


class Diffullama(Format):
    """Checkpoints ``diffusionfamily/diffullama``. Keys and tensors are those of ``llama``, with the same limits.

    ``shared.llama.is_masked`` has the rule that tells it from a Llama. A checkpoint that names its mask only in its
    tokenizer is loaded as this format with ``load(..., mask_id=...)``.
    """

    summary = "DiffuLLaMA: Llama adapted to masked diffusion"
    citation = "arXiv:2410.17891"

    @staticmethod
    def fits(config: Mapping[str, Any], ids: Ids) -> bool:
        return config.get("model_type") == "llama" and llama.is_masked(config)

    @staticmethod
    def read(keys: Keys, names: Collection[str], ids: Ids) -> Translation:
        return replace(Llama.read(keys, names, ids), family=SHIFTED)


SHIFTED = {"name": "masked", "prompt_encoder": False, "length_head": False, "shift": 1}
