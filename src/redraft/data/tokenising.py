"""Tokenising examples into one flat array, in pieces of bounded size."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from redraft.data.chat import continued_ids, example_ids
from redraft.data.examples import Example, pieces
from redraft.data.loader import Tokenised
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError

_COUNTED = 1 << 22  # tokens whose bytes are added up at once


def tokenise(examples: Sequence[Example], tokenizer: Tokenizer, continues: bool = False) -> Tokenised:
    """Tokenise examples. Either all have a prompt, or none has. ``continues``: targets continue prompts as plain text.

    Raises:
        UserError: there are no examples, or only some of them have a prompt.
    """
    paired = {example.prompt is not None for example in examples}
    if not paired:
        raise UserError("The data set has no examples.", "Give a file with at least one row.")
    if len(paired) > 1:
        raise UserError(
            "Some examples have a prompt and some are plain text.", "Use only prompt and target rows, or only texts."
        )
    pairs = paired.pop()
    ids, lengths, prompts = array("i"), array("q"), array("q")
    read = continued_ids if continues else example_ids
    for piece in pieces(examples):
        for head, target in zip(*read(piece, tokenizer), strict=True):
            begin_at = len(ids)
            if pairs:
                ids.extend(head or [tokenizer.bos_id])  # the first target token needs a context
                prompts.append(len(ids) - begin_at)
            ids.extend(target)
            lengths.append(len(ids) - begin_at)
    flat = np.frombuffer(ids, dtype=np.int32).astype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32)
    texts = np.array([len(example.target.encode()) for example in examples], dtype=np.int64)
    token_bytes = tokenizer.byte_lengths.astype(np.float64)
    counted = sum(token_bytes[flat[at : at + _COUNTED]].sum() for at in range(0, len(flat), _COUNTED))
    if not pairs and counted > 0:
        token_bytes *= texts.sum() / counted  # 1 for a lossless tokenizer
    return Tokenised(
        ids=flat,
        starts=np.concatenate(([0], np.cumsum(np.frombuffer(lengths, dtype=np.int64)))),
        prompts=np.frombuffer(prompts, dtype=np.int64) if pairs else None,
        bytes=texts,
        where=[example.where for example in examples],
        token_bytes=token_bytes,
    )
