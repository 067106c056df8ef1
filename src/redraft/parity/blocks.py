"""Shared by the suites of block models: logits with each attention, cached passes, and the ids given to every pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from redraft.model import Model
from redraft.models.parts import streams
from redraft.models.parts.store import KeyValueView
from redraft.parity.outputs import model_logits
from redraft.parity.reference import Check, Reference
from redraft.types import AttentionPattern, CleanStream, Forward


@dataclass
class Traced:
    """A network that records the ids of the first row in every pass, and the position of the first one."""

    network: Any
    passes: list[tuple[int, list[int]]] = field(default_factory=list)

    def __call__(self, request: Forward, store: Any = None) -> Tensor:
        real = request.positions[0] >= 0
        self.passes.append((int(request.positions[0, 0]), request.tokens[0, real].tolist()))
        found: Tensor = self.network(request, store)
        return found

    def store(self, seats: int, cells: int) -> Any:
        """The key-value cache of the network."""
        return self.network.store(seats, cells)


def joined_passes(recorded: Sequence[tuple[int, bool, list[int]]]) -> list[tuple[int, list[int]]]:
    """The passes that redraft makes for those of a reference that has extra passes only to store keys and values.

    redraft runs these ids in the next pass, which stores them. After the last block nothing is stored.

    Args:
        recorded: position of the first id, whether the pass only stores, and the ids.
    """
    found: list[tuple[int, list[int]]] = []
    begin, waiting = -1, list[int]()
    for first, stores, ids in recorded:
        begin, waiting = (first if begin < 0 else begin), [*waiting, *ids]
        if not stores:
            found.append((begin, waiting))
            begin, waiting = -1, []
    return found


def flat(passes: Sequence[tuple[int, list[int]]]) -> list[int]:
    """Passes as one list of numbers, for ``Reference.same``."""
    return [number for begin, ids in passes for number in (-1, begin, *ids)]


def logits(
    reference: Reference, model: Model, values: Mapping[str, Tensor], within: AttentionPattern
) -> Iterator[Check]:
    """Logits [B, L, V] of block models with each attention, and those of the training pass over two streams."""
    ids = values["input_ids"]
    patterns = {"block_causal": within, "full": AttentionPattern("full"), "causal": AttentionPattern("causal")}
    for name, pattern in patterns.items():
        found = model_logits(model, ids, pattern)
        yield reference.close(f"logits, {name.replace('_', '-')}", found, values[f"logits_{name}"])
    noisy, clean = values["train_noisy_ids"], values["train_clean_ids"]
    pos = torch.arange(noisy.shape[1])[None]
    shift = model.spec.network.shift
    request = Forward(noisy, pos, pos + shift, within, extra=(CleanStream(clean, pos, within),))
    with torch.inference_mode():
        trained = model.network(request).view(*noisy.shape, -1)
    yield reference.close("logits, training pass", trained, values["train_logits_noisy"])
    mask = streams.dense_mask(request)[0, 0].long().tolist()
    yield reference.same("mask of training", mask, values["train_mask"].long().tolist())


def prefix_store(model: Model, ids: Tensor, begin: int) -> Any:
    """A key-value store that holds the first ``begin`` positions of ids [1, L], from one pass over them."""
    store = model.network.store(1, ids.shape[1])
    cached(model, store, ids[:, :begin], 0, 0)
    return store


def cached(
    model: Model, store: Any, ids: Tensor, begin: int, below: int, attend: AttentionPattern | None = None
) -> Tensor:
    """Logits [1, Q, V] of ids [1, Q] from position ``begin`` on, with the stored positions under ``below``."""
    pos = torch.arange(begin, begin + ids.shape[1])[None]
    shift = model.spec.network.shift
    request = Forward(ids, pos, pos + shift, attend or model.spec.network.attention)
    with torch.inference_mode():
        found: Tensor = model.network(request, KeyValueView(store, torch.tensor([0]), torch.tensor([below])))
    return found[None]
