"""How many tokens sequences draft at once: chosen from the drafts that were accepted and the time that passes took.

With g drafts, and a_k the probability that draft k is accepted if those before it were, a cycle of drafting and
verifying generates E(g) = 1 + a_1 + a_1 a_2 + ... + a_1 ... a_g tokens (for a constant a, (1 - a^(g+1)) / (1 - a)). R
sequences take T_draft(R (g + 1)) + T_verify(R (g + 1)) seconds for it, where a pass over n positions takes
T(n) = c_0 + c_1 n. With few sequences c_0 dominates, and long drafts pay; with many, c_1, and they don't.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from redraft.generation.run import GenerationRun
from redraft.types import DraftQuery, Forward

LENGTHS = (0, 1, 2, 3, 4, 5, 7, 9, 11, 15, 23, 31)  # numbers of drafts that are considered
_ACCEPTANCE, _CERTAINTY = 0.7, 4.0  # before anything was observed, and as how many observations this counts
_MEMORY = 0.99  # weight that an observation keeps at the next one
_PROBE = 64  # how often a draft is made all the same where none pays, to see whether one would


@dataclass
class Acceptance:
    """How often a draft is accepted if those before it were."""

    tried: list[float] = field(default_factory=lambda: [0.0] * LENGTHS[-1])
    kept: list[float] = field(default_factory=lambda: [0.0] * LENGTHS[-1])

    def observe(self, drafted: int, accepted: int) -> None:
        """Count a verification of ``drafted`` tokens of which the first ``accepted`` were kept."""
        for k in range(min(drafted, accepted + 1, len(self.tried))):
            self.tried[k] = _MEMORY * self.tried[k] + 1
            self.kept[k] = _MEMORY * self.kept[k] + (k < accepted)

    def tokens(self, drafts: int) -> float:
        """The expected number of tokens of a cycle with so many drafts."""
        total, tried = sum(self.kept) + _CERTAINTY * _ACCEPTANCE, sum(self.tried) + _CERTAINTY
        found = chance = 1.0
        for k in range(drafts):
            chance *= (self.kept[k] + _CERTAINTY * total / tried) / (self.tried[k] + _CERTAINTY)
            found += chance
        return found


@dataclass
class PassTime:
    """T(n) = c_0 + c_1 n, by least squares over the passes so far, of which the recent ones count most."""

    count: float = 0.0
    sums: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # of n, n n, t, n t

    def observe(self, positions: int, seconds: float) -> None:
        """Count a pass over so many positions."""
        new = (positions, positions**2, seconds, positions * seconds)
        self.count = _MEMORY * self.count + 1
        self.sums = tuple(_MEMORY * old + each for old, each in zip(self.sums, new, strict=True))  # type: ignore[assignment]

    def seconds(self, positions: float) -> float:
        """The expected time of a pass. Where all passes were as wide, half of the time is taken to be fixed."""
        n, nn, t, nt = (value / max(self.count, 1e-9) for value in self.sums)
        spread = nn - n * n
        slope = (nt - n * t) / spread if spread > 0.01 * n * n else 0.5 * t / max(n, 1.0)
        slope = min(max(slope, 0.0), t / max(n, 1.0))
        return max(t + slope * (positions - n), 1e-9)


@dataclass
class DraftRecord:
    """What was seen of one sequence."""

    drafted: int = 0
    accepted: int = 0
    unverified: int = 0  # drafts whose verification has not been seen
    turn: int = -1  # steps of the sequence when it was seen last


class DraftLengths:
    """Estimates for one model, and the choice that follows from them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.acceptance = Acceptance()
        self.times = {"draft": PassTime(), "text": PassTime()}
        self._events: list[tuple[str, int, torch.cuda.Event, torch.cuda.Event]] = []
        self._choices = 0

    def set(self, run: GenerationRun, record: DraftRecord, rows: int) -> None:
        """Look at a sequence between two passes, and set how many tokens it drafts among ``rows`` active ones."""
        counter, turn = run.loop.counter, int(run.canvas.step[0])
        if run.loop.spec.family.drafter is None or len(run.canvas.ids) > 1 or turn == record.turn:
            return
        record.turn = turn
        if record.unverified:
            self.acceptance.observe(record.unverified, counter.accepted - record.accepted)
        record.unverified = counter.drafted - record.drafted
        record.drafted, record.accepted = counter.drafted, counter.accepted
        run.canvas.draft_length.fill_(self.best(rows))

    def best(self, rows: int) -> int:
        """The number of drafts with the most tokens a second for ``rows`` sequences; -1 before passes were timed."""
        draft, text = self.times["draft"], self.times["text"]
        if not draft.count or not text.count:
            return -1
        found = max(LENGTHS, key=lambda g: self.rate(g, rows))
        self._choices += 1
        return found if found or self._choices % _PROBE else LENGTHS[2]

    def rate(self, drafts: int, rows: int) -> float:
        """Expected tokens a second of each of ``rows`` sequences."""
        positions = rows * (drafts + 1)
        drafting = self.times["draft"].seconds(positions) if drafts else 0.0
        return self.acceptance.tokens(drafts) / (drafting + self.times["text"].seconds(positions))

    @contextmanager
    def timed(self, request: Forward) -> Iterator[None]:
        """Measure the forward pass of a request; on CUDA without waiting for it (see ``collect``)."""
        kind, positions = "text" if request.find(DraftQuery) is None else "draft", int((request.positions >= 0).sum())
        if self.device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((kind, positions, begin, end))
            return
        began = time.perf_counter()
        yield
        self.times[kind].observe(positions, time.perf_counter() - began)

    def collect(self) -> None:
        """Count the passes that have ended on a CUDA device."""
        while self._events and self._events[0][3].query():
            kind, positions, begin, end = self._events.pop(0)
            self.times[kind].observe(positions, begin.elapsed_time(end) / 1000)
