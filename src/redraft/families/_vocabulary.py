"""What every family's spec takes from the tokenizer."""

from __future__ import annotations

from typing import Any

from redraft.data.tokenizer import Tokenizer


def vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of ``Spec`` that are the tokenizer's to say."""
    return {
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "eos_id": tokenizer.eos_id,
        "mask_id": tokenizer.mask_id,
        "forbidden": tokenizer.markers,
        "ends": tokenizer.ends,
    }
