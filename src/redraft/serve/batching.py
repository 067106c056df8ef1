"""One forward pass for the calls of many canvases: which calls run together, and how they are merged and split."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from redraft.generation.loop import Call
from redraft.models.parts.store import KeyValueView
from redraft.types import Extra, Forward
from redraft.types.request import stack


def groups(calls: Sequence[Call], slack: int) -> list[list[int]]:
    """Indices of calls that run together.

    Calls can share a pass if their signatures are equal: network, attention, store, optional tensors, and the
    signatures of their extras. A group grows until padding to its widest call would add more than ``slack`` positions,
    which is about the cost of a separate pass. The calls of a group are sorted by slot, so that the store reads slices.
    """
    by_signature: dict[Hashable, list[int]] = {}
    for index, call in enumerate(calls):
        by_signature.setdefault(_signature(call), []).append(index)
    found = []
    for members in by_signature.values():
        members.sort(key=lambda i: calls[i].request.tokens.shape[1], reverse=True)
        group: list[int] = []
        padding = 0
        for index in members:
            rows, width = calls[index].request.tokens.shape
            added = rows * (calls[group[0]].request.tokens.shape[1] - width) if group else 0
            if group and padding + added > slack:
                found.append(group)
                group, padding, added = [], 0, 0
            group.append(index)
            padding += added
        found.append(group)
    for group in found:
        group.sort(key=lambda i: _slot(calls[i]))
    return found


def merge(calls: Sequence[Call]) -> Call:
    """Merge several calls into one: concatenate their rows, padded on the right to the widest."""
    if len(calls) == 1:
        return calls[0]
    requests, views = [call.request for call in calls], [call.store for call in calls if call.store is not None]
    first = requests[0]
    request = Forward(
        tokens=stack([each.tokens for each in requests], 0),
        positions=stack([each.positions for each in requests], -1),
        targets=stack([each.targets for each in requests], -1),
        attention=first.attention,
        prompt=_join([each.prompt for each in requests]),
        time=_join([each.time for each in requests]),
        network=first.network,
        extra=tuple(_joined(requests, type(each)) for each in first.extra),
    )
    if not views:
        return Call(request, None)
    slots, below = torch.cat([view.slots for view in views]), torch.cat([view.visible_below for view in views])
    return Call(request, KeyValueView(views[0].store, slots, below))


def split(logits: Tensor, calls: Sequence[Call]) -> list[Tensor]:
    """Split the flat logits [N, V] of a merged call into those of each call."""
    if len(calls) == 1:
        return [logits]
    counts = [[int((targets >= 0).sum()) for targets in call.request.target_lists] for call in calls]
    by_stream = list(zip(*counts, strict=True))  # all of the noisy streams come before all of the clean ones
    streams = logits.split([sum(stream) for stream in by_stream])
    parts = [stream.split(list(count)) for stream, count in zip(streams, by_stream, strict=True)]
    return [own[0] if len(own) == 1 else torch.cat(own) for own in zip(*parts, strict=True)]


def _signature(call: Call) -> Hashable:
    request, store = call.request, None if call.store is None else id(call.store.store)
    extras = frozenset(each.signature for each in request.extra)
    return request.network, request.attention, request.prompt is None, request.time is None, store, extras


def _slot(call: Call) -> int:
    return -1 if call.store is None else int(call.store.slots[0])


def _joined(requests: Sequence[Forward], kind: type[Extra]) -> Extra:
    return kind.join([each for request in requests for each in request.extra if type(each) is kind])


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    real = [part for part in parts if part is not None]
    return torch.cat(real) if real else None
