"""Attention masks by group, in the cheapest form, and compared on the device that computes."""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.runtime import upload

LAST = torch.iinfo(torch.int32).max  # of keys that nobody attends to


def group_mask(query: Tensor, key: Tensor, where: torch.device) -> Tensor | None:
    """The mask on ``where`` by which a query attends to the keys of its own group and of earlier ones.

    Only the groups go to the device, R (Q + K) numbers instead of the R Q K of a mask made on the host. Where all
    queries of a row attend to the same keys, one line of the mask serves them all.

    Args:
        query: [R, Q] groups on the host; negative for padding, which attends to every visible key, so that no row of
            the mask is empty. key: [R, K] groups on the host; ``LAST`` for keys that no query attends to.
    Returns:
        [R, 1, Q, K] or [R, 1, 1, K] bool; None if every query attends to every key.
    """
    visible, real = key < LAST, query >= 0
    last, first = key.masked_fill(~visible, -1).amax(1), query.masked_fill(~real, LAST).amin(1)
    if bool((first >= last).all()):
        return None if bool(visible.all()) else upload(visible, where)[:, None, None]
    own = torch.where(real, query, LAST - 1).int()
    both = upload(torch.cat([own, key.int()], 1), where)
    own, key = both.split([query.shape[1], key.shape[1]], 1)
    return (key[:, None] <= own[:, :, None])[:, None]


def near_mask(query: Tensor, key: Tensor, radius: int, where: torch.device) -> Tensor | None:
    """The mask on ``where`` of keys at most ``radius`` positions away (sliding windows).

    Args:
        query: [R, Q] positions on the host; negative for padding, which attends to every key. key: [R or 1, K].
    Returns:
        [R, 1, Q, K] bool; None if no key is farther away.
    """
    real = query >= 0
    highest, lowest = query.amax(1), torch.where(real, query, query.amax()).amin(1)
    if bool(((highest - key.amin(1) <= radius) & (key.amax(1) - lowest <= radius)).all()):
        return None
    own, key = upload(query.int(), where)[:, :, None], upload(key.int(), where)[:, None]
    return (((own - key).abs() <= radius) | (own < 0))[:, None]
