"""Making canvases from prompts and holes, and reading texts off them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from redraft.registry import find
from redraft.types import DRAFT, FREE, GIVEN, PAD, SEALED, Canvas, Draw, Spec

_NOISE_STREAM = 1 << 42  # keeps the noise that a canvas begins with apart from that which draws tokens and orders them


def make_canvas(
    rows: Sequence[Sequence[int | None]],
    prompts: Sequence[int],
    spec: Spec,
    *,
    seeds: Sequence[int],
    copies: int = 1,
    requests: Sequence[int] | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Canvas:
    """A canvas from rows in which ``None`` marks a free position, which begins as noise of the model's own kind.

    Args:
        prompts: length of each row's leading prompt. seeds: noise key of each row.
        copies: rows per request (candidates, beams); copies of a request stand together and differ in seed.
        requests: owner of each row, ascending; None: every row is its own request.
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
        request=torch.tensor(range(len(rows)) if requests is None else requests).repeat_interleave(copies),
        nfe=torch.zeros(count, dtype=torch.int64),
        score=torch.zeros(count, dtype=torch.float64),
        draw=Draw(
            temperature=torch.full((count,), float(temperature)),
            top_k=torch.full((count,), top_k),
            top_p=torch.full((count,), float(top_p)),
        ),
    )


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
