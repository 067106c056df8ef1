"""Create canvases from prompts and holes, resize them, and read the generated tokens from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redraft.types import DELETE, DRAFT, FREE, GIVEN, INSERT, PAD, SEALED, Canvas, NoiseStream, Sampling, Spec, Step


@dataclass(frozen=True)
class Growth:
    """How far rows may grow. Positions may be inserted next to free ones, and before the positions in ``gaps``."""

    limits: Sequence[int]  # maximum number of positions of each row
    gaps: Sequence[Sequence[int]] = ()  # of each row


def make_canvas(
    rows: Sequence[Sequence[int | None]],
    prompts: Sequence[int],
    spec: Spec,
    *,
    seeds: Sequence[int],
    copies: int = 1,
    growth: Growth | None = None,
    **sampling: float,
) -> Canvas:
    """A canvas from rows in which ``None`` marks a free position. Free positions start as noise of the model's process.

    Args:
        prompts: length of each row's leading prompt. seeds: seed of each row's random numbers.
        copies: canvas rows per prompt (candidates, beams). Copies of a row are adjacent and differ in seed.
        growth: how far rows may grow; None: their lengths are fixed.
        sampling: fields of ``Sampling``; the temperature is 0 if it is not given.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), spec.tokens.pad_id, dtype=torch.int64)
    status = torch.full((len(rows), width), PAD, dtype=torch.int8)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor([spec.tokens.mask_id if token is None else token for token in row])
        free = torch.tensor([token is None for token in row])
        status[number, : len(row)] = torch.where(free, FREE, GIVEN).to(torch.int8)
    count = len(rows) * copies
    ids, status = ids.repeat_interleave(copies, 0), status.repeat_interleave(copies, 0)
    seed = torch.tensor(seeds).repeat_interleave(copies) + 0x5EED * torch.arange(copies).repeat(len(rows))
    gap = torch.zeros_like(status, dtype=torch.bool)
    if growth is not None:
        gap = status == FREE
        gap[:, 1:] |= gap[:, :-1].clone() & (status[:, 1:] != PAD)
        for number, positions in enumerate(growth.gaps):
            gap[number * copies : (number + 1) * copies, list(positions)] = True
    noise = torch.full_like(ids, spec.tokens.mask_id)
    if spec.family.process is not None:
        key = torch.full_like(seed, NoiseStream.INITIAL_TOKENS)
        noise = spec.family.process.sample(seed, key, torch.arange(width).expand(count, -1), spec)
    return Canvas(
        ids=torch.where(status == FREE, noise, ids),
        status=status,
        prompt=torch.tensor(prompts).repeat_interleave(copies),
        seed=seed,
        step=torch.zeros(count, dtype=torch.int64),
        kv_slot=torch.arange(count),
        owner=torch.arange(len(rows)).repeat_interleave(copies),
        nfe=torch.zeros(count, dtype=torch.int64),
        score=torch.zeros(count, dtype=torch.float64),
        sampling=Sampling.of(count, **{"temperature": 0.0, **sampling}),
        limit=torch.tensor([len(row) for row in rows] if growth is None else growth.limits).repeat_interleave(copies),
        gap=gap,
        draft_length=torch.full((count,), -1),
    )


def joined(steps: Sequence[Step]) -> Step:
    """One step with the changes of several steps, none of which has a ``kind``. Without steps, it has no changes."""
    if not steps:
        empty = torch.zeros(0, dtype=torch.int64)
        return Step(empty, empty, empty, empty, torch.zeros(0))
    names = ("row", "pos", "token", "status", "conf")
    return Step(*(torch.cat([getattr(step, name) for step in steps]) for name in names))


def extent(canvas: Canvas) -> Tensor:
    """[B] number of positions of each row, padding excluded."""
    return torch.where(canvas.status != PAD, torch.arange(1, canvas.ids.shape[1] + 1), 0).amax(1)


def resize(canvas: Canvas, step: Step) -> Step:
    """Insert and delete positions, and return the step with positions that refer to the resulting canvas.

    Insertions beyond a row's limit are dropped, the last ones first. The loop writes tokens and status; new positions
    are padding until then.

    Raises:
        ValueError: the step deletes a given position, or inserts where there is no gap.
    """
    assert step.kind is not None
    kind, row, pos = step.kind.numpy(), step.row.numpy(), step.pos.numpy()
    rows, width = canvas.status.shape
    kept, new = _kept_and_new(canvas, kind, row, pos)

    # Old and new positions of all rows in one list. A new one precedes the old one at its position.
    old_row, old_pos = np.nonzero(kept)
    owner = np.concatenate([old_row, row[new]])
    order = np.lexsort(
        (np.concatenate([np.ones_like(old_row), np.zeros_like(new)]), np.concatenate([old_pos, pos[new]]), owner)
    )
    owner = owner[order]
    column = np.arange(len(owner)) - np.searchsorted(owner, np.arange(rows))[owner]
    source = np.full((rows, max(width, int(column.max(initial=-1)) + 1)), -1)
    source[owner, column] = np.concatenate([old_pos, np.full(len(new), -1)])[order]
    new_column = np.empty(len(owner), dtype=np.int64)
    new_column[order] = column
    now = np.full((rows, width), -1)
    now[old_row, old_pos] = new_column[: len(old_row)]

    source_tensor = torch.from_numpy(source)
    canvas.ids, canvas.status = moved(canvas.ids, source_tensor, 0), moved(canvas.status, source_tensor, PAD)
    canvas.gap = moved(canvas.gap, source_tensor, False)
    canvas.gap.numpy()[row[new], new_column[len(old_row) :]] = True
    changed = np.flatnonzero((kind != DELETE) & (kind != INSERT))
    position = np.concatenate([now[row[changed], pos[changed]], new_column[len(old_row) :]])
    index = torch.from_numpy(np.concatenate([changed, new]))
    return Step(
        row=step.row[index],
        pos=torch.from_numpy(position),
        token=step.token[index],
        status=step.status[index],
        conf=step.conf[index],
        kind=step.kind[index],
        source=source_tensor,
    )


def _kept_and_new(canvas: Canvas, kind: np.ndarray, row: np.ndarray, pos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[B, L] bool: the positions that are kept; [I]: indices of the insertions that fit, ordered by position."""
    status, gap = canvas.status.numpy(), canvas.gap.numpy()
    rows, width = status.shape
    deleted, new = kind == DELETE, np.flatnonzero(kind == INSERT)
    if (status[row[deleted], pos[deleted]] == GIVEN).any():
        raise ValueError("a step deletes a given position")
    length = extent(canvas).numpy()
    # Positions may be appended to a row whose last position is open.
    ends_open = np.isin(status[np.arange(rows), length - 1], (FREE, DRAFT))
    grows = np.concatenate([gap, np.zeros((rows, 1), bool)], 1)
    grows[np.arange(rows), length] |= ends_open & gap.any(1)
    if not grows[row[new], pos[new]].all():
        raise ValueError("a step inserts where there is no gap")
    kept = np.arange(width) < length[:, None]
    kept[row[deleted], pos[deleted]] = False
    new = new[np.lexsort((new, pos[new], row[new]))]
    begins = np.searchsorted(row[new], np.arange(rows))
    number = np.arange(len(new)) - begins[row[new]]  # number of the insertion within its row
    return kept, new[number < (canvas.limit.numpy() - kept.sum(1))[row[new]]]


def moved(values: Tensor, source: Tensor, fill: float) -> Tensor:
    """Values [B, L] of positions after a step moved these by ``source`` [B, M] -> [B, M]; ``fill`` for new ones."""
    return torch.where(source >= 0, values.gather(1, source.clamp(min=0)), torch.tensor(fill, dtype=values.dtype))


def best_rows(canvas: Canvas, by_score: bool) -> list[int]:
    """One row per prompt: the one with the highest mean log-probability per token, or the first if not ``by_score``.

    The score includes the log-probability of the predicted length. The final end-of-text counts as a token, so that
    the mean is defined for an empty answer.
    """
    count = int(canvas.owner.max()) + 1
    if not by_score:
        return [int((canvas.owner == prompt).nonzero()[0]) for prompt in range(count)]
    mean = canvas.score / ((canvas.status == SEALED).sum(1) + 1)
    chosen = []
    for prompt in range(count):
        rows = (canvas.owner == prompt).nonzero()[:, 0]
        chosen.append(int(rows[mean[rows].argmax()]))
    return chosen


def completion(canvas: Canvas, row: int, eos_id: int) -> tuple[list[int], str]:
    """The tokens after the prompt, up to end-of-text, and the finish reason: ``stop`` or ``length``.

    Free positions are skipped, so an unfinished canvas can be read too. An end-of-text token before a later given token
    does not end the sequence and is skipped as well.
    """
    status = canvas.status[row, int(canvas.prompt[row]) :]
    ids = canvas.ids[row, int(canvas.prompt[row]) :]
    filled = (status == SEALED) | (status == GIVEN) | (status == DRAFT)
    columns = torch.arange(len(ids))
    last = int(torch.where((status == GIVEN) & (ids != eos_id), columns, -1).max())  # the last given token
    ends = (filled & (ids == eos_id) & (columns > last)).nonzero()[:, 0]
    end = int(ends[0]) if len(ends) else len(ids)
    return ids[filled & (ids != eos_id) & (columns < end)].tolist(), "stop" if len(ends) else "length"
