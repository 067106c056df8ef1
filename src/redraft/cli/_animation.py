"""A canvas in a terminal: open positions are shaded, tokens are colored by their probability."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redraft.types import FREE, GIVEN, PAD, Canvas, Step

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from redraft.data.tokenizer import Tokenizer
    from redraft.generation.run import GenerationRun

_SHADE = "░░ "
_BROKEN = "\ufffd"  # an incomplete character decodes to this


@dataclass
class Timed:
    """Iterates over steps and measures the time spent in the iterable, without the time spent on display."""

    steps: Iterable[Step]
    seconds: float = 0.0

    def __iter__(self) -> Iterator[Step]:
        source = iter(self.steps)
        while True:
            begin = time.perf_counter()
            step = next(source, None)
            self.seconds += time.perf_counter() - begin
            if step is None:
                return
            yield step


def watch(drafting: GenerationRun, console: Console, pace: float) -> float:
    """Run a generation and show every step for at least ``pace`` seconds.

    Returns:
        Seconds of the generation itself.
    """
    from rich.live import Live

    canvas, timed = drafting.canvas, Timed(drafting)
    certainty = [[math.nan] * canvas.ids.shape[1] for _ in range(canvas.ids.shape[0])]
    with Live(console=console, auto_refresh=False, transient=True) as live:
        live.update(frame(canvas, certainty, drafting.tokenizer, 0.0), refresh=True)
        for step in timed:
            note(certainty, step)
            live.update(frame(canvas, certainty, drafting.tokenizer, timed.seconds), refresh=True)
            time.sleep(pace)
    return timed.seconds


def plain(drafting: GenerationRun, console: Console) -> float:
    """The same for a file or a pipe: one line with the answer after each step. Returns the generation's own seconds."""
    timed = Timed(drafting)
    for number, _ in enumerate(timed, 1):
        ids, status = drafting.canvas.ids[0].tolist(), drafting.canvas.status[0].tolist()
        begin = int(drafting.canvas.prompt[0])
        parts = pieces(ids[begin:], status[begin:], [1.0] * len(ids), drafting.tokenizer)
        console.print(f"step {number:2}  {''.join(text for text, _, _ in parts)}", markup=False)
    return timed.seconds


def note(certainty: list[list[float]], step: Step) -> None:
    """Store the probabilities of a step's tokens in ``certainty``, [B][L]. Rows that the step copied from others are
    copied first, and positions that it moved are moved."""
    if step.parents is not None:
        certainty[:] = [list(certainty[parent]) for parent in step.parents.tolist()]
    if step.source is not None:
        moves = zip(certainty, step.source.tolist(), strict=True)
        certainty[:] = [[old[place] if place >= 0 else math.nan for place in source] for old, source in moves]
    for row, pos, conf in zip(step.row.tolist(), step.pos.tolist(), step.conf.tolist(), strict=True):
        certainty[row][pos] = math.exp(conf)


def frame(canvas: Canvas, certainty: list[list[float]], tokenizer: Tokenizer, seconds: float, row: int = 0) -> Text:
    """One row of the canvas as colored text, with forward passes and tokens per second below."""
    from rich.text import Text

    picture = Text()
    status, ids = canvas.status[row].tolist(), canvas.ids[row].tolist()
    for text, probability, kind in pieces(ids, status, certainty[row], tokenizer):
        picture.append(text, style=style(kind, probability))
    written = sum(s > FREE for s in status)
    rate = f"{written / seconds:.0f} tokens/s" if seconds else ""
    picture.append(f"\n{int(canvas.nfe[row])} forward passes  {written} tokens  {rate}", style="dim")
    return picture


def pieces(
    ids: list[int], status: list[int], certainty: list[float], tokenizer: Tokenizer
) -> Iterator[tuple[str, float, int]]:
    """(text, probability, status) of each part of a row. Tokens that form one character together are one part."""
    waiting: list[int] = []
    sure = 1.0
    for index, (token, kind) in enumerate(zip(ids, status, strict=True)):
        if kind == PAD:
            continue
        if kind == FREE:
            yield _SHADE, math.nan, FREE
            continue
        if token == tokenizer.sep_id:
            yield "\n", math.nan, kind
            continue
        waiting.append(token)
        sure = min(sure, certainty[index]) if kind != GIVEN else sure
        text = tokenizer.decode(waiting)
        goes_on = index + 1 < len(ids) and status[index + 1] == kind
        if text.endswith(_BROKEN) and goes_on and len(waiting) < 4:
            continue
        yield text, sure, kind
        waiting, sure = [], 1.0


def style(kind: int, sure: float) -> str:
    """Prompt and open positions are dim; tokens go from red (improbable) over yellow to green (probability 1)."""
    if kind in (GIVEN, FREE) or math.isnan(sure):
        return "dim"
    red, green = min(1.0, 2 - 2 * sure), min(1.0, 0.25 + 1.5 * sure)
    return f"rgb({int(55 + 200 * red)},{int(55 + 180 * green)},70)"
