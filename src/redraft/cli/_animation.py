"""A canvas in a terminal: open positions are shaded, tokens are colored by their probability."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from redraft.trace.marks import Marks, pieces
from redraft.trace.recording import Timed
from redraft.types import FREE, GIVEN, Canvas

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from redraft.data.tokenizer import Tokenizer
    from redraft.generation.run import GenerationRun


def watch(drafting: GenerationRun, console: Console, pace: float) -> float:
    """Run a generation and show every step for at least ``pace`` seconds.

    Returns:
        Seconds of the generation itself.
    """
    from rich.live import Live

    canvas, timed = drafting.canvas, Timed(drafting)
    marks = Marks.blank(canvas)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        live.update(frame(canvas, marks, drafting.tokenizer, 0.0), refresh=True)
        for step in timed:
            marks.note(step)
            live.update(frame(canvas, marks, drafting.tokenizer, timed.seconds), refresh=True)
            time.sleep(pace)
    return timed.seconds


def plain(drafting: GenerationRun, console: Console) -> float:
    """The same for a file or a pipe: one line with the answer after each step. Returns the generation's own seconds."""
    timed = Timed(drafting)
    for number, _ in enumerate(timed, 1):
        ids, status = drafting.canvas.ids[0].tolist(), drafting.canvas.status[0].tolist()
        begin = int(drafting.canvas.prompt[0])
        parts = pieces(ids[begin:], status[begin:], None, drafting.tokenizer)
        console.print(f"step {number:2}  {''.join(part.text for part in parts)}", markup=False)
    return timed.seconds


def frame(canvas: Canvas, marks: Marks, tokenizer: Tokenizer, seconds: float, row: int = 0) -> Text:
    """One row of the canvas as colored text, with forward passes and tokens per second below."""
    from rich.text import Text

    picture = Text()
    status, ids = canvas.status[row].tolist(), canvas.ids[row].tolist()
    for part in pieces(ids, status, marks.rows[row], tokenizer):
        picture.append(part.text, style=style(part.status, part.probability))
    written = sum(s > FREE for s in status)
    rate = f"{written / seconds:.0f} tokens/s" if seconds else ""
    picture.append(f"\n{int(canvas.nfe[row])} forward passes  {written} tokens  {rate}", style="dim")
    return picture


def style(kind: int, sure: float) -> str:
    """Prompt and open positions are dim; tokens go from red (improbable) over yellow to green (probability 1)."""
    if kind in (GIVEN, FREE) or math.isnan(sure):
        return "dim"
    red, green = min(1.0, 2 - 2 * sure), min(1.0, 0.25 + 1.5 * sure)
    return f"rgb({int(55 + 200 * red)},{int(55 + 180 * green)},70)"
