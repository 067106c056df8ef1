"""One network pass for the calls of many canvases: which calls go together, and how they are laid side by side."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from redraft.decode import Call
from redraft.types import Forward, Guess, Vectors


def groups(calls: Sequence[Call], slack: int) -> list[list[int]]:
    """Indices of calls that run together.

    Calls can share a pass if they agree in network, attention, shift, store and in whether they name a prompt, a time
    and a draft, and have no mask of their own. They do share it as long as padding the narrow ones to the widest adds
    at most ``slack`` positions to the pass: about what a pass of its own would cost. Members stand in the order of
    their seats, which lets the store read slices.
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


# How the fields of a request are laid together. A test holds this list against ``Forward``.
_PADDED = {"x": 0, "pos": -1, "want": -1, "cell": -1}  # rectangles, and what they are padded with
_JOINED = ("prompt", "t", "slot", "read", "whole")  # a number a row
_SHARED = ("attend", "net", "shift")  # the same in all
# for samplers, cache policies, stores and training: no network reads them here
_UNREAD = ("rows", "stamp", "active", "branch", "number", "clean", "without", "learns")


def merge(calls: Sequence[Call]) -> Forward:
    """Several requests as one: rows below one another, padded on the right to the widest."""
    asks = [call.ask for call in calls]
    if len(asks) == 1:
        return asks[0]
    made: dict[str, Any] = {name: getattr(asks[0], name) for name in _SHARED}
    for name, fill in _PADDED.items():
        made[name] = _stack([getattr(ask, name) for ask in asks], fill)
    for name in _JOINED:
        made[name] = _join([getattr(ask, name) for ask in asks])
    if asks[0].vectors is not None:
        made["vectors"] = _vectors([ask.vectors for ask in asks if ask.vectors is not None])
    if asks[0].guess is not None:
        made["guess"] = _guesses([ask.guess for ask in asks if ask.guess is not None])
    if asks[0].mask is not None:
        made["mask"] = _squares([ask.mask for ask in asks if ask.mask is not None])
    return Forward(**made)


def split(logits: Tensor, calls: Sequence[Call]) -> list[Tensor]:
    """The flat logits [N, V] of a merged request -> those of its parts."""
    if len(calls) == 1:
        return [logits]
    counts = [int((call.ask.want >= 0).sum()) for call in calls]
    return list(logits.split(counts))


def _kind(call: Call) -> Hashable:
    ask = call.ask
    absent = tuple(getattr(ask, name) is None for name in ("prompt", "t", "read", "cell", "mask", "whole", "guess"))
    vectors = None if ask.vectors is None else (ask.vectors.kind, ask.vectors.guess is None)
    return ask.net, ask.attend, ask.shift, id(call.store), absent, vectors


def _seat(call: Call) -> int:
    return -1 if call.ask.slot is None else int(call.ask.slot[0])


def _stack(given: Sequence[Tensor | None], fill: int) -> Tensor | None:
    """[R, w, ...] each -> [sum R, max w, ...]."""
    parts = [part for part in given if part is not None]
    if not parts:
        return None
    width = parts[0].shape[1]
    if all(part.shape[1] == width for part in parts):
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    shape = sum(len(part) for part in parts), width, *parts[0].shape[2:]
    whole = torch.full(shape, fill, dtype=parts[0].dtype)
    row = 0
    for part in parts:
        whole[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return whole


def _vectors(parts: Sequence[Vectors]) -> Vectors:
    """Of requests of one kind."""
    laid = {name: _stack([getattr(part, name) for part in parts], 0) for name in ("z", "noisy", "guess")}
    return Vectors(parts[0].kind, **laid)


def _guesses(parts: Sequence[Guess]) -> Guess:
    """Of requests of one model."""
    laid = {name: _stack([getattr(part, name) for part in parts], 0) for name in ("token", "weight")}
    return Guess(**laid)  # type: ignore[arg-type] # all of them have both


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    real = [part for part in parts if part is not None]
    return torch.cat(real) if real else None


def _squares(parts: Sequence[Tensor]) -> Tensor:
    """[R, q, q] bool each -> [sum R, max q, max q]. Padding sees itself alone: seeing nothing it is no number."""
    width = max(part.shape[1] for part in parts)
    whole = torch.eye(width, dtype=torch.bool).repeat(sum(len(part) for part in parts), 1, 1)
    row = 0
    for part in parts:
        whole[row : row + len(part), : part.shape[1], : part.shape[1]] = part
        row += len(part)
    return whole
