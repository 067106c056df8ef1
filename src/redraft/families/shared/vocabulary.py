"""The token ids of a spec, from a tokenizer."""

from __future__ import annotations

from redraft.data.tokenizer import Tokenizer
from redraft.types import TokenIds


def vocabulary(tokenizer: Tokenizer) -> TokenIds:
    """The token ids of a tokenizer."""
    return TokenIds(
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        mask_id=tokenizer.mask_id,
        forbidden=tokenizer.markers,
        stop_ids=tokenizer.stop_ids,
    )
