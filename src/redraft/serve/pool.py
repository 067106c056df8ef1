"""One network pass for the calls of many canvases: which calls go together, and how they are laid side by side."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from redraft.decode import Call
from redraft.types import Forward


def groups(calls: Sequence[Call], slack: int) -> list[list[int]]:
    """Indices of calls that run together.

    Calls can share a pass if they agree in network, attention, store and in whether they name a prompt and a time. They
    do share it as long as padding the narrow ones to the widest adds at most ``slack`` positions to the pass: about
    what a pass of its own would cost. Members stand in the order of their seats, which lets the store read slices.
    """
    alike: dict[Hashable, list[int]] = {}
    for index, call in enumerate(calls):
        alike.setdefault(_kind(call), []).append(index)
    found = []
    for members in alike.values():
        members.sort(key=lambda i: calls[i].ask.x.shape[1], reverse=True)
        group: list[int] = []
        padding = 0
        for index in members:
            rows, width = calls[index].ask.x.shape
            more = rows * (calls[group[0]].ask.x.shape[1] - width) if group else 0
            if group and padding + more > slack:
                found.append(group)
                group, padding, more = [], 0, 0
            group.append(index)
            padding += more
        found.append(group)
    for group in found:
        group.sort(key=lambda i: _seat(calls[i]))
    return found


def merge(calls: Sequence[Call]) -> Forward:
    """Several requests as one: rows below one another, padded on the right to the widest."""
    asks = [call.ask for call in calls]
    if len(asks) == 1:
        return asks[0]
    first = asks[0]
    return Forward(
        x=_stack([ask.x for ask in asks], 0),
        pos=_stack([ask.pos for ask in asks], -1),
        want=_stack([ask.want for ask in asks], -1),
        attend=first.attend,
        prompt=_join([ask.prompt for ask in asks]),
        t=_join([ask.t for ask in asks]),
        net=first.net,
        slot=_join([ask.slot for ask in asks]),
        read=_join([ask.read for ask in asks]),
    )


def split(logits: Tensor, calls: Sequence[Call]) -> list[Tensor]:
    """The flat logits [N, V] of a merged request -> those of its parts."""
    if len(calls) == 1:
        return [logits]
    counts = [int((call.ask.want >= 0).sum()) for call in calls]
    return list(logits.split(counts))


def _kind(call: Call) -> Hashable:
    ask = call.ask
    alone = None if ask.mask is None else id(ask)  # a mask of its own does not go with others
    return ask.net, ask.attend, id(call.store), ask.prompt is None, ask.t is None, ask.read is None, alone


def _seat(call: Call) -> int:
    return -1 if call.ask.slot is None else int(call.ask.slot[0])


def _stack(parts: Sequence[Tensor], fill: int) -> Tensor:
    """[R, w] each -> [sum R, max w]."""
    width = parts[0].shape[1]
    if all(part.shape[1] == width for part in parts):
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    whole = torch.full((sum(len(part) for part in parts), width), fill, dtype=parts[0].dtype)
    row = 0
    for part in parts:
        whole[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return whole


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    real = [part for part in parts if part is not None]
    return torch.cat(real) if real else None
