"""Sequences to generate, and the events that the engine reports about them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from redraft.generation.loop import Call, Steps
from redraft.generation.run import GenerationRun
from redraft.generation.sampling import Draw
from redraft.serve.draft_lengths import DraftRecord
from redraft.serve.incremental_text import GeneratedText, IncrementalDecoder, Span

_ids = itertools.count()


class RequestOutcome(StrEnum):
    """Why the engine did not finish a sequence."""

    INVALID_REQUEST = "invalid_request"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    INTERNAL_ERROR = "internal_error"


class Rejected(Exception):
    """The engine does not accept a request now. ``retry_after``: seconds after which the client may try again."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.message, self.retry_after = message, retry_after


@dataclass(frozen=True)
class Progress:
    """More of a sequence is final (``text``), or there is a new picture of its canvas (``frame``)."""

    job: Job
    text: str
    frame: dict[str, object] | None


@dataclass(frozen=True)
class Finished:
    """A sequence is complete."""

    job: Job
    text: str  # the part that no Progress event carried
    result: GeneratedText
    frame: dict[str, object] | None


@dataclass(frozen=True)
class Failed:
    """A sequence was not completed."""

    job: Job
    outcome: RequestOutcome
    message: str


Event = Progress | Finished | Failed


@dataclass(eq=False)
class Job:
    """One sequence to generate.

    Args:
        span: the positions of the answer.
        on_event: called from the engine's thread; it must return at once.
        stop_texts: texts that end the answer.
        top_logprobs: number of alternatives to record for each token.
        streams: whether to report ``Progress``.
        wants_frame: asked before each picture of the canvas, so that a slow client gets fewer; None: no pictures.
        deadline: as ``time.monotonic()`` counts.
    """

    run: GenerationRun
    span: Span
    on_event: Callable[[Event], None]
    stop_texts: tuple[str, ...] = ()
    top_logprobs: int = 0
    streams: bool = True
    wants_frame: Callable[[], bool] | None = None
    deadline: float = float("inf")
    id: int = field(default_factory=lambda: next(_ids))
    cancelled: bool = False
    queued_at: float = 0.0  # time.monotonic() of each milestone; 0: not reached
    started_at: float = 0.0
    first_text_at: float = 0.0
    ended_at: float = 0.0
    rests_until: float = 0.0  # it lets the others run until then
    frame_seconds: float = 0.0  # spent on pictures of the canvas, not on generation
    # Set by the engine.
    decoder: IncrementalDecoder | None = None
    generator: Steps[None] | None = None
    call: Call | None = None  # waits for a forward pass
    draw: Draw | None = None  # waits for drawn tokens to arrive on the host
    slots: list[int] = field(default_factory=list)
    drafting: DraftRecord = field(default_factory=DraftRecord)

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more: it was cancelled, or is past its deadline."""
        return self.cancelled or self.deadline < time.monotonic()

    @property
    def rows(self) -> int:
        """Number of canvas rows: more than one with several candidate lengths or beams."""
        return len(self.run.canvas.ids)

    @property
    def prompt(self) -> list[int]:
        """Token ids of the prompt."""
        canvas = self.run.canvas
        return [int(token) for token in canvas.ids[0, : int(canvas.prompt[0])]]

    @property
    def generation_seconds(self) -> float:
        """Seconds from the start to the end of the generation, without the time spent on pictures."""
        return self.ended_at - self.started_at - self.frame_seconds
