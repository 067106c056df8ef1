"""What cache policies share: comparing a request with what is on record, and dropping positions from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from redraft.types import Forward, Vectors


def matching(ask: Forward, cells: np.ndarray) -> np.ndarray:
    """[R, Q] bool: real positions whose cell was computed from the same token. ``ask`` must list positions in order."""
    x, pos = ask.x.numpy(), ask.pos.numpy()
    return (x == cells[:, : x.shape[1]]) & (pos >= 0)


def prefix(same: np.ndarray) -> np.ndarray:
    """[R] length of each row's longest run of True from the front."""
    ended = np.concatenate([same, np.zeros((len(same), 1), bool)], 1)  # the last column ends every run
    result: np.ndarray = ended.argmin(1)
    return result


def stage_start(ask: Forward, match: np.ndarray) -> np.ndarray:
    """[R] the longest prefix, of at most ``match`` positions, that sees nothing beyond itself."""
    prompt = np.zeros_like(match) if ask.prompt is None else ask.prompt.numpy()
    after = match - prompt
    if ask.attend.kind == "causal":
        whole = match if ask.whole is None else np.minimum(match, ask.whole.numpy())
        return np.where(after >= 0, whole, 0)
    if ask.attend.kind == "full":
        return np.where(after >= 0, prompt, 0)
    return np.where(after >= 0, prompt + after // ask.attend.block * ask.attend.block, 0)


def exact_prefix(ask: Forward, cells: np.ndarray, shift: int) -> np.ndarray:
    """[R] positions at the front that hold exactly and need not run (see ``caches/exact.py``)."""
    if ask.t is not None and ask.vectors is None:  # of noisy vectors alone the network is told the time
        return np.zeros(len(ask.x), dtype=np.int64)
    want, width = ask.want.numpy(), ask.x.shape[1]
    first = want[:, 0] if want.shape[1] == 1 else np.where(want < 0, width + shift, want).min(1)
    # Holding ends where a stage begins; running need not: of a known prompt the last position alone can run.
    result: np.ndarray = np.minimum(stage_start(ask, prefix(matching(ask, cells))), first - shift)
    return result


def drop_prefix(ask: Forward, keep: np.ndarray) -> Forward:
    """The request without the first ``keep`` [R] positions of each row, which are read from the store."""
    read, low = torch.from_numpy(keep), int(keep.min())
    if (keep == low).all():
        if not low:
            return replace(ask, read=read)
        return replace(
            ask,
            x=ask.x[:, low:],
            pos=ask.pos[:, low:],
            read=read,
            vectors=_columns(ask, torch.arange(low, len(ask.x[0]))),
        )
    columns = np.arange(ask.x.shape[1])
    return only(ask, (columns >= keep[:, None]) & (ask.pos.numpy() >= 0), keep)


def only(ask: Forward, run: np.ndarray, read: np.ndarray) -> Forward:
    """The request for the positions marked in ``run`` [R, Q] alone; cells below ``read`` [R] are visible besides."""
    x, pos = ask.x.numpy(), ask.pos.numpy()
    count = run.sum(1)
    column = np.argsort(~run, axis=1, kind="stable")[:, : max(1, int(count.max()))]
    real = np.arange(column.shape[1]) < count[:, None]
    return replace(
        ask,
        x=torch.from_numpy(np.take_along_axis(x, column, 1)),
        pos=torch.from_numpy(np.where(real, np.take_along_axis(pos, column, 1), -1)),
        read=torch.from_numpy(read),
        vectors=_columns(ask, torch.from_numpy(column)),
    )


def _columns(ask: Forward, column: Tensor) -> Vectors | None:
    """The vectors of some columns, [q] or [R, q]."""
    if ask.vectors is None:
        return None
    rows = torch.arange(len(ask.x))[:, None]
    z, noisy, guess = (
        None if part is None else part[rows, column] for part in (ask.vectors.z, ask.vectors.noisy, ask.vectors.guess)
    )
    return replace(ask.vectors, z=z, noisy=noisy, guess=guess)


def extent(ask: Forward) -> np.ndarray:
    """[R] positions of each row."""
    result: np.ndarray = ask.pos.numpy().max(1) + 1
    return result


def region(ask: Forward) -> tuple[np.ndarray, np.ndarray]:
    """[R], [R] beginning and end of what the sampler is at work on; the whole row where it doesn't say."""
    if ask.active is None:
        return np.zeros(len(ask.x), dtype=np.int64), extent(ask)
    active = ask.active.numpy()
    return active[:, 0], active[:, 1]


def due(ask: Forward, refresh: int) -> np.ndarray:
    """[R] bool: rows whose turn it is to compute everything anew, every ``refresh`` steps; 0 is never."""
    if refresh == 0 or ask.stamp is None:
        return np.zeros(len(ask.x), dtype=bool)
    return ask.stamp.numpy() % refresh == 0


def unsettled(ask: Forward, cells: np.ndarray, shift: int, anew: np.ndarray) -> Forward:
    """The wanted positions, and those whose token is not the one on record; in the rows ``anew`` [R] bool, and those
    that are not on record as a whole, everything."""
    certain = exact_prefix(ask, cells, shift)
    known = (cells[:, : ask.x.shape[1]] >= 0) | (ask.pos.numpy() < 0)
    holds = known.all(1) & ~anew
    if not holds.any():
        return drop_prefix(ask, certain)
    real, columns = ask.pos.numpy() >= 0, np.arange(ask.x.shape[1])
    stale = ~matching(ask, cells)
    want = ask.want.numpy()
    row, column = np.nonzero(want >= 0)
    stale[row, want[row, column] - shift] = True
    run = real & np.where(holds[:, None], stale, columns >= certain[:, None])
    return only(ask, run, np.where(holds, extent(ask), certain))
