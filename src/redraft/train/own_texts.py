"""Training data that a model writes itself: it continues the prompts of the data, or the beginnings of its texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from redraft.data.loader import Tokenised
from redraft.errors import UserError
from redraft.families import build_family
from redraft.files import read_json, write_atomically
from redraft.model import Model
from redraft.objectives.base import OwnTexts
from redraft.runtime import release_memory
from redraft.targets import fingerprint

_CHUNK, _BATCH = 128, 32  # texts of a file, and of a batch
_HEAD = 4  # a text is continued after this part of a window
_LONGER = 1.25  # how much longer than the longest answer of the data a written one may be


def writer(model: Model) -> Model:
    """The model that a drafter drafts for, without the drafter."""
    assert model.network.companion is not None
    isolated = {"name": "autoregressive", "prompt_encoder": model.family.prompt_encoder}
    name, family = build_family(isolated)
    return Model(model.network.companion, model.tokenizer, family, name, model.paired)


def write(
    model: Model,
    data: Tokenised,
    wanted: OwnTexts,
    length: int,
    folder: Path,
    on_written: Callable[[int, int], None] = lambda done, total: None,
) -> Tokenised:
    """The texts that ``model`` writes after the prompts of ``data``, as pairs of what was given and what was written.

    Prompts are sorted by length and continued in chunks. Each chunk is written to ``folder`` once it is finished, so
    that a repeated call continues where this one was interrupted.

    Args:
        length: tokens of the longest row. on_written: called with the numbers of finished and of all texts.
    Raises:
        UserError: no prompt leaves room for an answer.
    """
    heads, where, most = _heads(model, data, length)
    index = np.linspace(0, len(heads) - 1, min(wanted.count, len(heads))).round().astype(int)
    order = sorted(index.tolist(), key=lambda i: len(heads[i]))
    order = [i for i in order if len(heads[i]) < length]
    if not order:
        raise UserError(f"No prompt leaves room for an answer in {length} tokens.", "Raise data.length.")
    key = _key(model, [heads[i] for i in order], wanted, length, most)
    written: list[list[int]] = []
    for begin in range(0, len(order), _CHUNK):
        on_written(begin, len(order))
        file, chunk = folder / key / f"{begin // _CHUNK:05}.json", [heads[i] for i in order[begin : begin + _CHUNK]]
        if not file.exists():
            room = min(most, length - max(map(len, chunk)))
            found = model.generate(chunk, _BATCH, max_new_tokens=room, seed=begin, temperature=wanted.temperature)
            rows = [[*one.ids, *_end(model, one.finish)] for one in found]
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps({"texts": rows}))
        written += read_json(file)["texts"]
    release_memory()
    return _tokenised([heads[i] for i in order], written, [where[i] for i in order], data)


def writing_flops(model: Model, written: Tokenised) -> int:
    """Operations of writing the answers of ``written``, with keys and values cached: each token runs once."""
    assert written.prompts is not None
    prompt, answer = written.prompts, written.lengths - written.prompts
    own = prompt**2 if model.spec.network.prompt_encoder else prompt * (prompt + 1) // 2
    pairs, encoded = int((own + answer * prompt + answer * (answer + 1) // 2).sum()), int(prompt.sum())
    return int(
        model.network.forward_cost().of_counts(
            int(written.lengths.sum()), pairs, int(answer.sum()), encoded=encoded, encoded_pairs=int((prompt**2).sum())
        )
    )


def _heads(model: Model, data: Tokenised, length: int) -> tuple[list[list[int]], list[str], int]:
    """What is continued, where it is from, and the most tokens to write."""
    rows = [data.ids[begin:end].tolist() for begin, end in zip(data.starts[:-1], data.starts[1:], strict=True)]
    if data.prompts is not None:
        longest = int((data.lengths - data.prompts).max())
        heads = [row[:count] for row, count in zip(rows, data.prompts.tolist(), strict=True)]
        return heads, data.where, max(1, int(_LONGER * longest))
    size, begin = max(1, length // _HEAD), [model.tokenizer.bos_id]
    windows = [
        (row[at : at + size], where)
        for row, where in zip(rows, data.where, strict=True)
        for at in range(0, len(row), length)
    ]
    return [[*begin, *head] for head, _ in windows], [where for _, where in windows], length


def _end(model: Model, finish: str) -> list[int]:
    return [model.spec.tokens.eos_id] if finish == "stop" and model.spec.tokens.eos_id >= 0 else []


def _key(model: Model, heads: Sequence[Sequence[int]], wanted: OwnTexts, *limits: int) -> str:
    """A name for these texts: the same model, prompts and settings have the same one."""
    described = json.dumps([fingerprint(model.network), heads, wanted.temperature, limits])
    return hashlib.blake2b(described.encode(), digest_size=8).hexdigest()


def _tokenised(
    heads: Sequence[list[int]], written: Sequence[list[int]], where: list[str], data: Tokenised
) -> Tokenised:
    rows = [[*head, *text] for head, text in zip(heads, written, strict=True)]
    return Tokenised(
        ids=np.concatenate([np.asarray(row, dtype=data.ids.dtype) for row in rows]),
        starts=np.concatenate(([0], np.cumsum([len(row) for row in rows]))),
        prompts=np.array([len(head) for head in heads], dtype=np.int64),
        bytes=np.array([round(data.token_bytes[text].sum()) for text in written], dtype=np.int64),
        where=where,
        token_bytes=data.token_bytes,
    )
