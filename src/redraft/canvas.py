"""Making canvases from prompts and holes, and reading texts off them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redraft.registry import find
from redraft.types import DELETE, DRAFT, FREE, GIVEN, INSERT, PAD, SEALED, Canvas, Draw, Spec, Step

_NOISE_STREAM = 1 << 42  # keeps the noise that a canvas begins with apart from that which draws tokens and orders them


@dataclass(frozen=True)
class Growth:
    """How many cells each row may have. Cells may be inserted beside free ones, and before the positions named."""

    limits: Sequence[int]
    gaps: Sequence[Sequence[int]] = ()


def make_canvas(
    rows: Sequence[Sequence[int | None]],
    prompts: Sequence[int],
    spec: Spec,
    *,
    seeds: Sequence[int],
    copies: int = 1,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    growth: Growth | None = None,
) -> Canvas:
    """A canvas from rows in which ``None`` marks a free position, which begins as noise of the model's own kind.

    Args:
        prompts: length of each row's leading prompt. seeds: noise key of each row.
        copies: rows per request (candidates, beams); copies of a request stand together and differ in seed.
        growth: None: lengths stand.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), spec.pad_id, dtype=torch.int64)
    status = torch.full((len(rows), width), PAD, dtype=torch.int8)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor([spec.mask_id if token is None else token for token in row])
        free = torch.tensor([token is None for token in row])
        status[number, : len(row)] = torch.where(free, FREE, GIVEN).to(torch.int8)
    count = len(rows) * copies
    ids, status = ids.repeat_interleave(copies, 0), status.repeat_interleave(copies, 0)
    seed = torch.tensor(seeds).repeat_interleave(copies) + 0x5EED * torch.arange(copies).repeat(len(rows))
    gap = torch.zeros_like(status, dtype=torch.bool)
    if growth is not None:
        gap = status == FREE
        gap[:, 1:] |= gap[:, :-1].clone() & (status[:, 1:] != PAD)
        for number, places in enumerate(growth.gaps):
            gap[number * copies : (number + 1) * copies, list(places)] = True
    noise = find("noise", spec.process)().draw(
        seed, torch.full_like(seed, _NOISE_STREAM), torch.arange(width).expand(count, -1), spec
    )
    return Canvas(
        ids=torch.where(status == FREE, noise, ids),
        status=status,
        prompt=torch.tensor(prompts).repeat_interleave(copies),
        seed=seed,
        step=torch.zeros(count, dtype=torch.int64),
        slot=torch.arange(count),
        request=torch.arange(len(rows)).repeat_interleave(copies),
        nfe=torch.zeros(count, dtype=torch.int64),
        score=torch.zeros(count, dtype=torch.float64),
        draw=Draw(
            temperature=torch.full((count,), float(temperature)),
            top_k=torch.full((count,), top_k),
            top_p=torch.full((count,), float(top_p)),
        ),
        limit=torch.tensor([len(row) for row in rows] if growth is None else growth.limits).repeat_interleave(copies),
        gap=gap,
    )


def joined(steps: Sequence[Step]) -> Step:
    """The ops of several steps that set cells, one after the other; of no steps, one without ops."""
    if not steps:
        nothing = torch.zeros(0, dtype=torch.int64)
        return Step(nothing, nothing, nothing, nothing, torch.zeros(0))
    names = ("row", "pos", "token", "status", "conf")
    return Step(*(torch.cat([getattr(step, name) for step in steps]) for name in names))


def extent(canvas: Canvas) -> Tensor:
    """[B] cells of each row, padding left out."""
    return torch.where(canvas.status != PAD, torch.arange(1, canvas.ids.shape[1] + 1), 0).amax(1)


def resize(canvas: Canvas, step: Step) -> Step:
    """Insert and delete cells as a step says, and return the step as it reads on the canvas that results.

    Inserts beyond a row's limit are left out, the last ones first. Everything else about an op is for the loop to
    write; new cells are padding until then.

    Raises:
        ValueError: an op that takes away a given cell, or inserts where there is no gap.
    """
    assert step.kind is not None
    kind, row, pos = step.kind.numpy(), step.row.numpy(), step.pos.numpy()
    status, gap = canvas.status.numpy(), canvas.gap.numpy()
    rows, width = status.shape
    gone, new = kind == DELETE, np.flatnonzero(kind == INSERT)
    if (status[row[gone], pos[gone]] == GIVEN).any():
        raise ValueError("a step deletes a given cell")
    length = extent(canvas).numpy()
    # A row that ends open may be appended to.
    ends_open = np.isin(status[np.arange(rows), length - 1], (FREE, DRAFT))
    grows = np.concatenate([gap, np.zeros((rows, 1), bool)], 1)
    grows[np.arange(rows), length] |= ends_open & gap.any(1)
    if not grows[row[new], pos[new]].all():
        raise ValueError("a step inserts where there is no gap")
    kept = np.arange(width) < length[:, None]
    kept[row[gone], pos[gone]] = False
    order = np.lexsort((new, pos[new], row[new]))
    new = new[order]
    begins = np.searchsorted(row[new], np.arange(rows))
    place = np.arange(len(new)) - begins[row[new]]  # the how manieth insert of its row
    new = new[place < (canvas.limit.numpy() - kept.sum(1))[row[new]]]

    # Old and new cells of all rows in one list, a new one before the old one at its position.
    old_row, old_pos = np.nonzero(kept)
    owner = np.concatenate([old_row, row[new]])
    order = np.lexsort(
        (np.concatenate([np.ones_like(old_row), np.zeros_like(new)]), np.concatenate([old_pos, pos[new]]), owner)
    )
    owner = owner[order]
    column = np.arange(len(owner)) - np.searchsorted(owner, np.arange(rows))[owner]
    source = np.full((rows, max(width, int(column.max(initial=-1)) + 1)), -1)
    source[owner, column] = np.concatenate([old_pos, np.full(len(new), -1)])[order]
    found = np.empty(len(owner), dtype=np.int64)
    found[order] = column
    now = np.full((rows, width), -1)
    now[old_row, old_pos] = found[: len(old_row)]

    moving = torch.from_numpy(source)
    canvas.ids, canvas.status = moved(canvas.ids, moving, 0), moved(canvas.status, moving, PAD)
    canvas.gap = moved(canvas.gap, moving, False)
    canvas.gap.numpy()[row[new], found[len(old_row) :]] = True
    stays = np.flatnonzero((kind != DELETE) & (kind != INSERT))
    index = np.concatenate([stays, new])
    where = np.concatenate([now[row[stays], pos[stays]], found[len(old_row) :]])
    part = torch.from_numpy(index)
    return Step(
        row=step.row[part],
        pos=torch.from_numpy(where),
        token=step.token[part],
        status=step.status[part],
        conf=step.conf[part],
        kind=step.kind[part],
        source=moving,
    )


def moved(values: Tensor, source: Tensor, fill: float) -> Tensor:
    """Values of cells [B, L] after a step that moved them by ``source`` [B, M]; ``fill`` for new cells -> [B, M]."""
    return torch.where(source >= 0, values.gather(1, source.clamp(min=0)), torch.tensor(fill, dtype=values.dtype))


def winners(canvas: Canvas, by_score: bool) -> list[int]:
    """One row per request: the one likeliest per token, the likelihood of its length included, or the first.

    The closing end-of-text counts as a token, so that an empty answer has a mean too.
    """
    count = int(canvas.request.max()) + 1
    if not by_score:
        return [int((canvas.request == request).nonzero()[0]) for request in range(count)]
    mean = canvas.score / ((canvas.status == SEALED).sum(1) + 1)
    chosen = []
    for request in range(count):
        rows = (canvas.request == request).nonzero()[:, 0]
        chosen.append(int(rows[mean[rows].argmax()]))
    return chosen


def completion(canvas: Canvas, row: int, eos_id: int) -> tuple[list[int], str]:
    """What stands after the prompt, up to end-of-text, and why it ended: ``stop`` or ``length``.

    Positions that are still free are left out, so an unfinished canvas can be read too. An end-of-text before a
    later given token ends nothing and is left out as well.
    """
    status = canvas.status[row, int(canvas.prompt[row]) :]
    ids = canvas.ids[row, int(canvas.prompt[row]) :]
    stands = (status == SEALED) | (status == GIVEN) | (status == DRAFT)
    columns = torch.arange(len(ids))
    last = int(torch.where((status == GIVEN) & (ids != eos_id), columns, -1).max())  # the last given token
    ends = (stands & (ids == eos_id) & (columns > last)).nonzero()[:, 0]
    end = int(ends[0]) if len(ends) else len(ids)
    return ids[stands & (ids != eos_id) & (columns < end)].tolist(), "stop" if len(ends) else "length"
