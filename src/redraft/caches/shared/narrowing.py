"""Compare a request with the stored tokens, and drop positions from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from redraft.types import DraftQuery, Extra, Request, VectorQuery


def matching(request: Request, stored: np.ndarray) -> np.ndarray:
    """[R, Q] bool: positions whose stored token [R, C] is the same. The request must list all positions in order."""
    tokens, positions = request.tokens.numpy(), request.positions.numpy()
    return (tokens == stored[:, : tokens.shape[1]]) & (positions >= 0)


def prefix(same: np.ndarray) -> np.ndarray:
    """[R] number of leading True in each row of ``same`` [R, Q]."""
    ended = np.concatenate([same, np.zeros((len(same), 1), bool)], 1)  # the last column ends every run
    result: np.ndarray = ended.argmin(1)
    return result


def closed_prefix(request: Request, match: np.ndarray) -> np.ndarray:
    """[R] the longest prefix, of at most ``match`` [R] positions, that attends to nothing after itself."""
    prompt = np.zeros_like(match) if request.prompt is None else request.prompt.numpy()
    offset = match - prompt
    draft = request.find(DraftQuery)
    if draft is not None and draft.draft_from is not None:  # the text before drafts is causal
        return np.where(offset >= 0, np.minimum(match, draft.draft_from.numpy()), 0)
    if request.attention.kind == "causal":
        return np.where(offset >= 0, match, 0)
    if request.attention.kind == "full":
        return np.where(offset >= 0, prompt, 0)
    return np.where(offset >= 0, prompt + offset // request.attention.block * request.attention.block, 0)


def exact_prefix(request: Request, stored: np.ndarray, shift: int) -> np.ndarray:
    """[R] length of the prefix that is valid exactly and need not run (see ``caches/exact.py``)."""
    # In vector diffusion only the noisy vectors depend on the time, not the tokens of a prompt.
    if request.time is not None and request.find(VectorQuery) is None:
        return np.zeros(len(request.tokens), dtype=np.int64)
    targets, width = request.targets.numpy(), request.tokens.shape[1]
    first = targets[:, 0] if targets.shape[1] == 1 else np.where(targets < 0, width + shift, targets).min(1)
    # The valid prefix ends at an attention group, but the pass may start inside one: the last position of a stored
    # prompt can run alone.
    result: np.ndarray = np.minimum(closed_prefix(request, prefix(matching(request, stored))), first - shift)
    return result


def drop_prefix(request: Request, keep: np.ndarray) -> Request:
    """The request without the first ``keep`` [R] positions of each row, which are read from the store."""
    below, least = torch.from_numpy(keep), int(keep.min())
    if (keep == least).all():
        if not least:
            return request.with_cache(visible_below=below)
        return replace(
            request,
            tokens=request.tokens[:, least:],
            positions=request.positions[:, least:],
            cache=replace(request.cache, visible_below=below),
            extra=_columns(request, torch.arange(least, request.tokens.shape[1])),
        )
    columns = np.arange(request.tokens.shape[1])
    return only(request, (columns >= keep[:, None]) & (request.positions.numpy() >= 0), keep)


def only(request: Request, run: np.ndarray, below: np.ndarray) -> Request:
    """The request with only the positions in ``run`` [R, Q] bool; it reads stored positions below ``below`` [R] too."""
    tokens, positions = request.tokens.numpy(), request.positions.numpy()
    count = run.sum(1)
    column = np.argsort(~run, axis=1, kind="stable")[:, : max(1, int(count.max()))]
    real = np.arange(column.shape[1]) < count[:, None]
    return replace(
        request,
        tokens=torch.from_numpy(np.take_along_axis(tokens, column, 1)),
        positions=torch.from_numpy(np.where(real, np.take_along_axis(positions, column, 1), -1)),
        cache=replace(request.cache, visible_below=torch.from_numpy(below)),
        extra=_columns(request, torch.from_numpy(column)),
    )


def _columns(request: Request, column: Tensor) -> tuple[Extra, ...]:
    """The request's extras for some columns, [q] or [R, q]."""
    return tuple(each.columns(column) for each in request.extra)


def extent(request: Request) -> np.ndarray:
    """[R] number of positions of each row."""
    result: np.ndarray = request.positions.numpy().max(1) + 1
    return result


def region(request: Request) -> tuple[np.ndarray, np.ndarray]:
    """[R], [R] first position of the sampler's active region, and one past its last; by default, the whole row."""
    if request.cache.active_region is None:
        return np.zeros(len(request.tokens), dtype=np.int64), extent(request)
    active = request.cache.active_region.numpy()
    return active[:, 0], active[:, 1]


def due(request: Request, refresh: int) -> np.ndarray:
    """[R] bool: rows in which all positions run at this step, once every ``refresh`` steps; 0 is never."""
    if refresh == 0 or request.drawing.noise_step is None:
        return np.zeros(len(request.tokens), dtype=bool)
    return request.drawing.noise_step.numpy() % refresh == 0


def unsettled(request: Request, stored: np.ndarray, shift: int, refresh: np.ndarray) -> Request:
    """The request with only the target positions, and those whose token differs from the stored one.

    In the rows ``refresh`` [R] bool, and in rows that are not stored completely, only the exact prefix is dropped.
    """
    exact = exact_prefix(request, stored, shift)
    known = (stored[:, : request.tokens.shape[1]] >= 0) | (request.positions.numpy() < 0)
    valid = known.all(1) & ~refresh
    if not valid.any():
        return drop_prefix(request, exact)
    real, columns = request.positions.numpy() >= 0, np.arange(request.tokens.shape[1])
    stale = ~matching(request, stored)
    targets = request.targets.numpy()
    row, column = np.nonzero(targets >= 0)
    stale[row, targets[row, column] - shift] = True
    run = real & np.where(valid[:, None], stale, columns >= exact[:, None])
    return only(request, run, np.where(valid, extent(request), exact))
