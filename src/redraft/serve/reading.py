"""Reading a canvas in the making: the text that can't change any more, and pictures of the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from redraft import canvas as canvases
from redraft.drafting import Drafting
from redraft.infilling import Plan
from redraft.types import DRAFT, FREE, GIVEN, PAD, SEALED, Forward, Output, Step

_NAMES = {GIVEN: "given", FREE: "free", DRAFT: "draft", SEALED: "sealed"}
_BROKEN = "\ufffd"  # what the bytes of half a character decode to


@dataclass(frozen=True)
class Span:
    """Which positions of a row are the answer: from ``begin`` up to, not including, ``end``."""

    begin: int
    end: int
    filled: bool = False  # a gap between given texts: it is complete when nothing in it is free
    plan: Plan | None = None  # of a text with holes: how its tokens are read


@dataclass(frozen=True)
class Token:
    """A written token and how likely it was."""

    text: str
    log_p: float | None  # None for a token that was given
    top: tuple[tuple[str, float], ...] = ()  # the likeliest tokens at that place, when this one was written


@dataclass
class Text:
    """A finished answer."""

    text: str
    ids: list[int]
    finish: str  # stop, length
    nfe: int
    score: float
    written: int  # of the ids: others were given
    tokens: list[Token] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # what was written into each hole, of a text with holes


class Reader:
    """Follows one drafting.

    Only sealed text is handed out, from the left up to the first open position, so that nothing is ever taken back.
    Where several rows compete (lengths, beams), it is known at the end who won: all text comes then.

    Args:
        stop: texts that end the answer; they are not part of it. top: how many alternatives to keep of each token.
        guesses: keep what the model would write at open positions, for ``frame``.
    """

    def __init__(
        self, drafting: Drafting, span: Span, stop: tuple[str, ...] = (), top: int = 0, guesses: bool = False
    ) -> None:
        board = drafting.canvas
        self.drafting, self.stop, self.top = drafting, stop, top
        self.span = replace(span, end=min(span.end, board.ids.shape[1]))  # a searched length may be shorter
        shape = board.ids.shape
        self.eos_id = drafting.loop.spec.eos_id
        self.text = ""  # handed out so far
        self.stopped = False  # a stop text was met
        self.passes = 0
        self._conf = torch.full(shape, math.nan)
        self._guess = (torch.full(shape, -1), torch.full(shape, math.nan)) if guesses else None
        self._likely: dict[tuple[int, int], tuple[list[float], list[int]]] = {}
        self._restart()
        floor = (board.status[0] == GIVEN) & (board.ids[0] != self.eos_id)
        self._floor = int(floor.nonzero()[-1]) if bool(floor.any()) else -1
        if guesses or top:
            drafting.loop.watch = self._watch

    def _restart(self) -> None:
        self._at, self._ended = self.span.begin, False
        self._ids: list[int] = []
        self._places: list[int] = []  # of the ids

    def _spell(self, count: int | None = None) -> str:
        """The text of the first ``count`` ids; of all that is final."""
        ids = self._ids[:count]
        if self.span.plan is None:
            return self.drafting.tokenizer.decode(ids)
        until = self._at if count is None or count >= len(self._ids) else self._places[count]
        return self.span.plan.read(self.drafting.canvas, dict(zip(self._places, ids, strict=False)), until)

    # ---- while it is written

    def _watch(self, ask: Forward, out: Output) -> None:
        assert ask.rows is not None
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        own = (ask.want[row, column] < self._conf.shape[1]).nonzero()[:, 0]  # without shadows (types.Forward.cell)
        row, column = row[own], column[own]
        place = ask.rows[row], ask.want[row, column]
        if self._guess is not None:
            self._guess[0][place] = out.token[row, column]
            self._guess[1][place] = out.conf[row, column].float()
        if self.top:
            log_p = out.log_p[own.to(out.log_p.device)]
            value, index = log_p.topk(min(self.top, log_p.shape[1]), -1)
            for spot, values, tokens in zip(
                zip(*(part.tolist() for part in place), strict=True), value.tolist(), index.tolist(), strict=True
            ):
                self._likely[spot] = values, tokens

    def take(self, step: Step) -> str:
        """Note a step; the text that it made final."""
        self.passes += 1
        if step.parents is not None:
            self._conf = self._conf[step.parents]
        if step.source is not None:
            self._move(step.source)
        self._conf[step.row, step.pos] = step.conf.float()  # beams reckon in float64
        if len(self._conf) > 1 or self.stopped:
            return ""
        before = len(self._ids)
        self._walk(0)
        if len(self._ids) == before:
            return ""
        return self._hand_out(self._spell(), final=False)

    def _move(self, source: torch.Tensor) -> None:
        """Cells have moved: what is kept of them moves along. An answer up to the end of the row stays one."""
        width, begin = self._conf.shape[1], self.span.begin
        self._conf = canvases.moved(self._conf, source, math.nan)
        if self._guess is not None:
            self._guess = canvases.moved(self._guess[0], source, -1), canvases.moved(self._guess[1], source, math.nan)
        places = {(row, old): new for row, olds in enumerate(source.tolist()) for new, old in enumerate(olds)}
        self._likely = {(at[0], places[at]): top for at, top in self._likely.items() if at in places}
        end = self.span.end
        follows = [new for new, old in enumerate(source[0].tolist()) if old >= end]
        end = source.shape[1] if end == width or not follows else follows[0]
        self.span = replace(self.span, begin=begin, end=end)

    def _walk(self, row: int, final: bool = False) -> None:
        """Move on over everything that is final: up to where the text may still grow, until it is finished."""
        board = self.drafting.canvas
        ids, status = board.ids[row].tolist(), board.status[row].tolist()
        grows = [False] * len(ids) if final or board.room == len(ids) else board.gap[row].tolist()
        while not self._ended and self._at < self.span.end and status[self._at] in (SEALED, GIVEN):
            if status[self._at] == GIVEN and grows[self._at]:
                break
            token = ids[self._at]
            if token != self.eos_id:
                self._ids.append(token)
                self._places.append(self._at)
            elif self._at > self._floor:
                self._ended = True
            self._at += 1

    def _hand_out(self, whole: str, final: bool) -> str:
        """New text up to a stop text, holding back what may yet become one, or half a character."""
        found = min((at for at in (whole.find(text, self._from) for text in self.stop) if at >= 0), default=-1)
        if found >= 0:
            whole, self.stopped = whole[:found], True
        elif not final:
            whole = whole.rstrip(_BROKEN)
            whole = whole[: len(whole) - max((_overlap(whole, text) for text in self.stop), default=0)]
        new = whole[len(self.text) :] if whole.startswith(self.text) else ""
        self.text += new
        return new

    @property
    def _from(self) -> int:
        """A stop text can't begin before this."""
        return max(0, len(self.text) - max((len(text) for text in self.stop), default=0))

    # ---- pictures

    def frame(self) -> dict[str, Any]:
        """The whole canvas: every position with its text, state and confidence, in pieces that are whole characters.

        Where several rows compete, the one that is ahead. A free position shows what the model would write there, if it
        has been asked; padding is left out.
        """
        board, row = self.drafting.canvas, self._ahead()
        ids, status = board.ids[row].tolist(), board.status[row].tolist()
        sure = self._conf[row].tolist()
        if self._guess is not None:
            guess, surmise = (part[row].tolist() for part in self._guess)
        else:
            guess, surmise = [-1] * len(ids), [math.nan] * len(ids)
        pieces: list[dict[str, Any]] = []
        waiting: list[int] = []
        for at in range(int(board.prompt[row]), len(ids)):
            if status[at] == PAD:
                continue
            free = status[at] == FREE
            token, conf = (guess[at], surmise[at]) if free else (ids[at], sure[at])
            goes_on = pieces and waiting and pieces[-1]["status"] == _NAMES[status[at]]
            if not goes_on:
                waiting = []
                pieces.append({"position": at, "tokens": 0, "text": "", "status": _NAMES[status[at]]})
                pieces[-1]["confidence"] = None
            piece = pieces[-1]
            piece["tokens"] += 1
            if token >= 0 and token != self.eos_id:
                waiting.append(token)
                piece["text"] = self.drafting.tokenizer.decode(waiting)
            if token == self.eos_id:
                piece["end"] = True
            if not math.isnan(conf):
                known = piece["confidence"]
                piece["confidence"] = round(min(math.exp(conf), 1.0 if known is None else known), 4)
            if not piece["text"].endswith(_BROKEN) or len(waiting) >= 4:
                waiting = []
        return {
            "step": self.passes,
            "nfe": int(board.nfe.max()),
            "rows": len(board.ids),
            "row": row,
            "canvas": pieces,
        }

    def _ahead(self) -> int:
        board = self.drafting.canvas
        return canvases.winners(board, self.drafting.by_score)[0] if len(board.ids) > 1 else 0

    # ---- the end

    def finish(self) -> Text:
        """The answer, as it stands."""
        board, row = self.drafting.canvas, self._ahead()
        if len(board.ids) > 1:
            self._restart()
        self._walk(row, final=True)
        self._hand_out(self._spell(), final=True)
        ids = self._cut() if self.stopped else self._ids
        whole = self._ended or self.stopped or (self.span.filled and self._at == self.span.end)
        return Text(
            text=self.text,
            ids=ids,
            finish="stop" if whole else "length",
            nfe=int(board.nfe.max()),
            score=float(board.score[row]),
            written=int((board.status[row, self._places[: len(ids)]] != GIVEN).sum()),
            tokens=self._tokens(row, len(ids)),
            parts=self._holes(),
        )

    def _cut(self) -> list[int]:
        """The shortest beginning of the ids that holds the text before a stop text."""
        low, high = 0, len(self._ids)
        while low < high:
            middle = (low + high) // 2
            if len(self._spell(middle).rstrip(_BROKEN)) >= len(self.text):
                high = middle
            else:
                low = middle + 1
        return self._ids[:low]

    def _tokens(self, row: int, count: int) -> list[Token]:
        board, decode = self.drafting.canvas, self.drafting.tokenizer.decode
        found: list[Token] = []
        for at in range(self.span.begin, self._at):
            token = int(board.ids[row, at])
            if token == self.eos_id or len(found) == count:
                continue
            conf = float(self._conf[row, at])
            likely = self._likely.get((row, at), ([], []))
            top = tuple((decode([other]), value) for value, other in zip(*likely, strict=True))
            found.append(Token(decode([token]), None if math.isnan(conf) else conf, top))
        return found

    def _holes(self) -> list[str]:
        """What was written into each hole."""
        if self.span.plan is None:
            return []
        written = dict(zip(self._places, self._ids, strict=True))
        return self.span.plan.fillings(self.drafting.canvas, written, self._at)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
