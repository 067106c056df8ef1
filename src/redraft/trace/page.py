"""One self-contained HTML page that replays recordings: no scripts, fonts or images from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from redraft.trace.marks import Piece
from redraft.trace.order import WritingOrder
from redraft.trace.recording import Recording
from redraft.types import DRAFT, FREE, GIVEN

_KINDS = {GIVEN: "given", FREE: "open", DRAFT: "draft"}  # every other status is final


def render_page(recordings: Sequence[Recording]) -> str:
    """The page. Recordings stand beside each other and are replayed together."""
    folder = files("redraft.trace")
    style, script, body = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html")
    )
    data = json.dumps([_recording(one) for one in recordings], ensure_ascii=False, separators=(",", ":"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape("redraft: " + _titles(recordings))}</title>\n'
        f"<style>\n{style}</style></head>\n<body>\n{body}"
        f'<script type="application/json" id="recordings">{_inert(data)}</script>\n'
        f"<script>\n{script}</script></body></html>\n"
    )


def _titles(recordings: Sequence[Recording]) -> str:
    return " and ".join(dict.fromkeys(one.title for one in recordings))


def _inert(data: str) -> str:
    """JSON that can't end the element that holds it."""
    return data.replace("<", "\\u003c")


def _recording(one: Recording) -> dict[str, Any]:
    last = one.frames[-1]
    rate = f"{len(one.result.ids) / last.seconds:.0f}" if last.seconds else "-"
    facts = {
        **one.facts,
        "passes": f"{last.passes}",
        "tokens": f"{len(one.result.ids)}",
        "tokens per pass": f"{len(one.result.ids) / max(last.passes, 1):.2f}",
        "time": f"{last.seconds * 1000:.0f} ms",
        "tokens per second": rate,
        **_order(one.order),
    }
    frames: list[list[Any]] = []
    before: list[Piece] = []
    for frame in one.frames:
        now = [piece for piece in frame.pieces if not (one.left_to_right and piece.status == FREE)]
        frames.append([round(frame.seconds * 1000, 2), frame.passes, frame.tokens, *_difference(before, now)])
        before = now
    return {"title": one.title, "prompt": one.prompt, "facts": facts, "frames": frames}


def _order(order: WritingOrder | None) -> dict[str, str]:
    if order is None:
        return {}
    return {
        "tokens finished per step": f"{order.parallelism:.2f}",
        "left to right (Kendall's tau)": f"{order.tau:.2f}",
        "at the leftmost open position": f"{order.leftmost:.0%}",
    }


def _difference(before: Sequence[Piece], now: Sequence[Piece]) -> list[Any]:
    """What turns the pieces of a frame into those of the next: [at, number removed, [pieces]]."""
    same = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if not _alike(a, b)), None)
    begin = min(len(before), len(now)) if same is None else same
    end = 0
    while end < min(len(before), len(now)) - begin and _alike(before[-1 - end], now[-1 - end]):
        end += 1
    return [begin, len(before) - begin - end, [_piece(piece) for piece in now[begin : len(now) - end]]]


def _alike(a: Piece, b: Piece) -> bool:
    return _piece(a) == _piece(b)  # nan differs from itself


def _piece(piece: Piece) -> list[Any]:
    """[text, kind, probability or null, step, writes]"""
    probability = None if math.isnan(piece.probability) else round(piece.probability, 3)
    text = "" if piece.status == FREE else piece.text
    return [text, _KINDS.get(piece.status, "final"), probability, piece.step, piece.writes]
