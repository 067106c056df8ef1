"""The text of a generation under way: what is final so far, and pictures of the whole canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from redraft import canvas as canvases
from redraft.generation.infill import InfillPlan
from redraft.generation.run import GenerationRun
from redraft.runtime import download, upload
from redraft.types import DRAFT, FREE, GIVEN, PAD, SEALED, Output, Request, Step

_STATUS = {GIVEN: "given", FREE: "free", DRAFT: "draft", SEALED: "sealed"}
_REPLACEMENT = "\ufffd"  # what an incomplete character decodes to
_MAX_CHARACTER = 4  # bytes of a character in UTF-8, and so the most tokens that it can have


@dataclass(frozen=True)
class Span:
    """The positions of the answer in a row: from ``begin`` up to, not including, ``end``."""

    begin: int
    end: int
    filled: bool = False  # a gap between given texts: complete when no position in it is free
    plan: InfillPlan | None = None  # set for a text with holes: reads its tokens


@dataclass(frozen=True)
class Token:
    """A token with its log-probability at the time when it was generated."""

    data: bytes  # what it adds to the text; it may be a part of a character
    log_p: float | None  # None for a token that was given
    alternatives: tuple[Token, ...] = ()  # the most probable tokens at that position

    @property
    def text(self) -> str:
        """Its text; bytes that are not whole characters as OpenAI writes them, such as ``bytes:\\xf0\\x9f``."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.data)


@dataclass
class GeneratedText:
    """A finished answer."""

    text: str
    ids: list[int]
    finish: str  # stop, length
    nfe: int
    score: float
    new_tokens: int  # number of ids that were generated; the others were given
    tokens: list[Token] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)  # the text of each hole, for a text with holes


class IncrementalDecoder:
    """Follows one generation and decodes its final tokens to text.

    It returns sealed tokens only, from the left up to the first position that can still change, so that no text is
    ever withdrawn. With several competing rows (candidate lengths, beams) the winner is known at the end only, and all
    text is returned then.

    Args:
        stop_texts: texts that end the answer; the answer does not include them.
        alternatives: how many alternatives to record for each token.
        predictions: whether to record the model's predictions at free positions, for ``frame``.
    """

    def __init__(
        self,
        run: GenerationRun,
        span: Span,
        stop_texts: tuple[str, ...] = (),
        alternatives: int = 0,
        predictions: bool = False,
    ) -> None:
        canvas = run.canvas
        self.run, self.stop_texts, self.alternatives = run, stop_texts, alternatives
        self.span = replace(span, end=min(span.end, canvas.ids.shape[1]))  # a searched length may be shorter
        shape = canvas.ids.shape
        self.eos_id = run.loop.spec.tokens.eos_id
        self.text = ""  # returned so far
        self.stopped = False  # whether a stop text was found
        self.steps = 0
        self._log_p = torch.full(shape, math.nan)
        self._predicted = (torch.full(shape, -1), torch.full(shape, math.nan)) if predictions else None
        self._top: dict[tuple[int, int], tuple[list[float], list[int]]] = {}
        self._restart()
        given = (canvas.status[0] == GIVEN) & (canvas.ids[0] != self.eos_id)
        self._last_given = int(given.nonzero()[-1]) if bool(given.any()) else -1
        if predictions or alternatives:
            run.loop.on_answer = self._on_answer

    def _restart(self) -> None:
        self._at, self._ended = self.span.begin, False
        self._ids: list[int] = []
        self._positions: list[int] = []  # of the ids

    def _decode(self, count: int | None = None) -> str:
        """The text of the first ``count`` ids (None: of all final ids)."""
        ids = self._ids[:count]
        if self.span.plan is None:
            return self.run.text(0, ids)
        until = self._at if count is None or count >= len(self._ids) else self._positions[count]
        return self.span.plan.text_before(self.run.canvas, dict(zip(self._positions, ids, strict=False)), until)

    # ---- during the generation

    def _on_answer(self, request: Request, out: Output) -> None:
        """Record predictions and alternatives from the answer to a request."""
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        own = (request.targets[row, column] < self._log_p.shape[1]).nonzero()[:, 0]  # without shadows (types.QueryMask)
        row, column = row[own], column[own]
        place = request.rows[row], request.targets[row, column]
        if self._predicted is not None:
            self._predicted[0][place] = out.token[row, column]
            self._predicted[1][place] = out.conf[row, column].float()
        if self.alternatives:
            log_p = out.log_p[upload(own, out.log_p.device)]
            value, index = download(*log_p.topk(min(self.alternatives, log_p.shape[1]), -1))
            for at, values, tokens in zip(
                zip(*(part.tolist() for part in place), strict=True), value.tolist(), index.tolist(), strict=True
            ):
                self._top[at] = values, tokens

    def add(self, step: Step) -> str:
        """Process a step and return the text that it made final."""
        self.steps += 1
        if step.parents is not None:
            self._log_p = self._log_p[step.parents]
        if step.source is not None:
            self._move(step.source)
        self._log_p[step.row, step.pos] = step.conf.float()  # beam search computes in float64
        if len(self._log_p) > 1 or self.stopped:
            return ""
        before = len(self._ids)
        self._advance(0)
        if len(self._ids) == before:
            return ""
        return self._new_text(self._decode(), final=False)

    def _move(self, source: torch.Tensor) -> None:
        """Move the recorded values with their positions: new position i was ``source[row, i]`` [B, L].

        A span that ended at the end of the row still does.
        """
        width, begin = self._log_p.shape[1], self.span.begin
        self._log_p = canvases.moved(self._log_p, source, math.nan)
        if self._predicted is not None:
            token, log_p = self._predicted
            self._predicted = canvases.moved(token, source, -1), canvases.moved(log_p, source, math.nan)
        places = {(row, old): new for row, olds in enumerate(source.tolist()) for new, old in enumerate(olds)}
        self._top = {(at[0], places[at]): top for at, top in self._top.items() if at in places}
        end = self.span.end
        follows = [new for new, old in enumerate(source[0].tolist()) if old >= end]
        end = source.shape[1] if end == width or not follows else follows[0]
        self.span = replace(self.span, begin=begin, end=end)

    def _advance(self, row: int, final: bool = False) -> None:
        """Collect final tokens up to the first position that can still change, or where tokens may be inserted."""
        canvas = self.run.canvas
        ids, status = canvas.ids[row].tolist(), canvas.status[row].tolist()
        grows = [False] * len(ids) if final or canvas.capacity == len(ids) else canvas.gap[row].tolist()
        while not self._ended and self._at < self.span.end and status[self._at] in (SEALED, GIVEN):
            if status[self._at] == GIVEN and grows[self._at]:
                break
            token = ids[self._at]
            if token != self.eos_id:
                self._ids.append(token)
                self._positions.append(self._at)
            elif self._at > self._last_given:
                self._ended = True
            self._at += 1

    def _new_text(self, whole: str, final: bool) -> str:
        """The new part of ``whole`` before a stop text, without an end that may become a stop text or a character."""
        places = [whole.find(text, self._search_from) for text in self.stop_texts]
        found = min((at for at in places if at >= 0), default=-1)
        if found >= 0:
            whole, self.stopped = whole[:found], True
        elif not final:
            whole = whole.rstrip(_REPLACEMENT)
            whole = whole[: len(whole) - max((_overlap(whole, text) for text in self.stop_texts), default=0)]
        new = whole[len(self.text) :] if whole.startswith(self.text) else ""
        self.text += new
        return new

    @property
    def _search_from(self) -> int:
        """The first index at which a stop text can begin."""
        return max(0, len(self.text) - max((len(text) for text in self.stop_texts), default=0))

    # ---- pictures of the canvas

    def frame(self) -> dict[str, Any]:
        """The whole canvas: text, status and confidence of every position, in pieces of complete characters.

        With several competing rows it shows the best one so far. A free position shows the model's last prediction, if
        there is one. Padding is left out.
        """
        canvas, row = self.run.canvas, self._best_row()
        ids, status = canvas.ids[row].tolist(), canvas.status[row].tolist()
        log_p = self._log_p[row].tolist()
        if self._predicted is not None:
            predicted, predicted_log_p = (part[row].tolist() for part in self._predicted)
        else:
            predicted, predicted_log_p = [-1] * len(ids), [math.nan] * len(ids)
        pieces: list[dict[str, Any]] = []
        pending: list[int] = []  # tokens of a character that is not complete
        for at in range(int(canvas.prompt[row]), len(ids)):
            if status[at] == PAD:
                continue
            free, name = status[at] == FREE, _STATUS[status[at]]
            if not pending or pieces[-1]["status"] != name:
                pending = []
                pieces.append({"position": at, "tokens": 0, "text": "", "status": name, "confidence": None})
            if free:
                self._extend(pieces[-1], pending, predicted[at], predicted_log_p[at])
            else:
                self._extend(pieces[-1], pending, ids[at], log_p[at])
        return {
            "step": self.steps,
            "nfe": int(canvas.nfe.max()),
            "rows": len(canvas.ids),
            "row": row,
            "canvas": pieces,
        }

    def _extend(self, piece: dict[str, Any], pending: list[int], token: int, log_p: float) -> None:
        """Add a token to a piece of the canvas. ``pending`` keeps the tokens of a character that is not complete."""
        piece["tokens"] += 1
        if token >= 0 and token != self.eos_id:
            pending.append(token)
            piece["text"] = self.run.tokenizer.decode(pending)
        if token == self.eos_id:
            piece["end"] = True
        if not math.isnan(log_p):
            lowest = 1.0 if piece["confidence"] is None else piece["confidence"]
            piece["confidence"] = round(min(math.exp(log_p), lowest), 4)
        if not piece["text"].endswith(_REPLACEMENT) or len(pending) >= _MAX_CHARACTER:
            pending.clear()

    def _best_row(self) -> int:
        canvas = self.run.canvas
        return canvases.best_rows(canvas, self.run.by_score)[0] if len(canvas.ids) > 1 else 0

    # ---- the end

    def finish(self) -> GeneratedText:
        """The finished answer."""
        canvas, row = self.run.canvas, self._best_row()
        if len(canvas.ids) > 1:
            self._restart()
        self._advance(row, final=True)
        self._new_text(self._decode(), final=True)
        ids = self._cut() if self.stopped else self._ids
        complete = self._ended or self.stopped or (self.span.filled and self._at == self.span.end)
        complete = complete or (self.span.plan is None and self.run.satisfies(ids))
        return GeneratedText(
            text=self.text,
            ids=ids,
            finish="stop" if complete else "length",
            nfe=int(canvas.nfe.max()),
            score=float(canvas.score[row]),
            new_tokens=int((canvas.status[row, self._positions[: len(ids)]] != GIVEN).sum()),
            tokens=self._tokens(row, len(ids)),
            holes=self._holes(),
        )

    def _cut(self) -> list[int]:
        """The shortest prefix of the ids that contains the text before the stop text."""
        low, high = 0, len(self._ids)
        while low < high:
            middle = (low + high) // 2
            if len(self._decode(middle).rstrip(_REPLACEMENT)) >= len(self.text):
                high = middle
            else:
                low = middle + 1
        return self._ids[:low]

    def _tokens(self, row: int, count: int) -> list[Token]:
        canvas = self.run.canvas
        found: list[Token] = []
        for at in range(self.span.begin, self._at):
            token = int(canvas.ids[row, at])
            if token == self.eos_id or len(found) == count:
                continue
            log_p = float(self._log_p[row, at])
            recorded = self._top.get((row, at), ([], []))
            alternatives = tuple(
                Token(self._bytes_of(other), value)
                for value, other in zip(*recorded, strict=True)
                if value > -math.inf  # a constraint excludes the others
            )
            found.append(Token(self._bytes_of(token), None if math.isnan(log_p) else log_p, alternatives))
        return found

    def _bytes_of(self, token: int) -> bytes:
        """The bytes that a token adds to the text."""
        tokenizer = self.run.tokenizer
        data = None
        if tokenizer.has_token_bytes and token < tokenizer.vocab_size:  # the network may have more columns
            data = tokenizer.token_bytes[token]
        return tokenizer.decode([token]).encode() if data is None else data

    def _holes(self) -> list[str]:
        """The text of each hole."""
        if self.span.plan is None:
            return []
        written = dict(zip(self._positions, self._ids, strict=True))
        return self.span.plan.fillings(self.run.canvas, written, self._at)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of ``text`` that is a prefix of ``stop``."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
