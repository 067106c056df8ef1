"""Sequences being generated: the canvas, the steps that change it, and the finished text."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum

import torch
from torch import Tensor

from redraft.runtime import upload

# Status of a canvas position. The order matters: everything >= SEALED is final, FREE and DRAFT are open.
PAD, GIVEN, FREE, DRAFT, SEALED = 0, 1, 2, 3, 4

# Kind of a change in a ``Step``: write a position, insert a position before one, or delete one.
SET, INSERT, DELETE = 0, 1, 2


class NoiseStream(IntEnum):
    """Offsets that are added to the noise step of ``runtime.keyed_uniform``.

    Random numbers are keyed by (seed, noise step, position). Two uses of the same key would be correlated, so every
    use other than sampling tokens adds its own offset.
    """

    TOKENS = 0  # sampling the tokens of a request
    ORDER = 1 << 40  # choosing positions
    KIND = 3 << 40  # choosing among kinds of change; uniform noise: tokens that jump
    CHOICE = 5 << 40  # choosing tokens outside of a request; uniform noise: order of jumps
    LATER_VECTORS = 7 << 40  # noise added to vectors during sampling
    INITIAL_TOKENS = 1 << 42  # tokens of pure noise on the initial canvas
    INITIAL_VECTORS = 1 << 43  # vectors of pure noise


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled, per row, so that requests with different settings share a batch.

    Each field is filled from the field of ``Settings`` with the same name. Its metadata has the value that leaves the
    model's distribution unchanged.
    """

    temperature: Tensor = field(metadata={"neutral": 1.0})  # [B]; 0 is argmax
    top_k: Tensor = field(metadata={"neutral": 0})  # [B]; 0 is off
    top_p: Tensor = field(metadata={"neutral": 1.0})  # [B]; 1 is off

    @classmethod
    def of(cls, rows: int, **values: float) -> Sampling:
        """The same ``values`` for ``rows`` rows. Those that are not given are neutral."""
        given = {name: torch.full((rows,), type(_NEUTRAL[name])(value)) for name, value in (_NEUTRAL | values).items()}
        return cls(**given)

    @staticmethod
    def values(settings: object) -> dict[str, float]:
        """The attributes of ``settings`` with the names of the fields."""
        return {name: getattr(settings, name) for name in _NEUTRAL}

    def at(self, rows: Tensor | slice) -> Sampling:
        """The values of the rows, [N] numbers or a slice."""
        return Sampling(**{name: getattr(self, name)[rows] for name in _NEUTRAL})

    def truncate(self, logits: Tensor) -> Tensor:
        """``logits`` [N, V] with -inf for the tokens that top-k and top-p of the N rows exclude -> [N, V].

        The values are on the host, where it is decided without waiting whether any row truncates.
        """
        if not bool((self.top_k > 0).any() | (self.top_p < 1).any()):
            return logits
        top_k, top_p = upload(self.top_k, logits.device)[:, None], upload(self.top_p, logits.device)[:, None]
        value, order = logits.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(logits.shape[1], device=logits.device)
        p = value.softmax(-1)
        # A token is kept if the mass before it is below top_p. The first token is always kept.
        drop = (p.cumsum(-1) - p >= top_p) & (rank > 0)
        drop |= (top_k > 0) & (rank >= top_k)
        return logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)

    def where(self, condition: Tensor) -> Sampling:
        """These values where ``condition`` [B] is true, and neutral ones elsewhere."""
        return Sampling(**{n: torch.where(condition, getattr(self, n), value) for n, value in _NEUTRAL.items()})


_NEUTRAL = {each.name: each.metadata["neutral"] for each in fields(Sampling)}


@dataclass
class Canvas:
    """A batch of sequences being generated. It lives on the host, and only the decoding loop writes to it."""

    ids: Tensor  # [B, L]
    status: Tensor  # [B, L] int8: PAD GIVEN FREE DRAFT SEALED
    prompt: Tensor  # [B] length of the leading prompt
    seed: Tensor  # [B] seed of the row's random numbers
    step: Tensor  # [B] steps taken by the row
    kv_slot: Tensor  # [B] slot of the row in the key-value store
    owner: Tensor  # [B] index of the prompt; candidates and beams of one prompt share it
    nfe: Tensor  # [B] forward passes that the row took part in (number of function evaluations)
    score: Tensor  # [B] float64 sum of log-probabilities of sealed tokens, plus that of a predicted length
    sampling: Sampling
    limit: Tensor  # [B] maximum number of positions of a row
    gap: Tensor  # [B, L] bool: a position may be inserted before this one; all False for a fixed length
    draft_length: Tensor  # [B] most tokens to draft at once, set by a server before each step; -1: any number

    @property
    def capacity(self) -> int:
        """Positions of the longest row, now or after it has grown to its limit."""
        return max(self.ids.shape[1], int(self.limit.max()))

    @property
    def open(self) -> Tensor:
        """[B, L] bool: positions that may still change."""
        return (self.status == FREE) | (self.status == DRAFT)


@dataclass
class Step:
    """What one iteration of the decoding loop changed. Every observer of a generation reads these.

    A sampler for sequences of variable length gives each change a ``kind``. Its positions then refer to the canvas
    before the step: INSERT puts a position before the one at ``pos`` (several inserts there keep their order), and
    DELETE ignores token and status. The loop moves the positions and records in ``source`` where each one came from. In
    the step that it yields, positions refer to the canvas after the step, and deleted positions are gone. An observer
    first copies rows by ``parents``, then moves its values by ``source`` (``canvas.moved``), then applies the changes.
    """

    row: Tensor  # [N]
    pos: Tensor  # [N]
    token: Tensor  # [N]
    status: Tensor  # [N] resulting status
    conf: Tensor  # [N] log-probability when written
    parents: Tensor | None = None  # [B] rows that the rows are copied from first (beams)
    kind: Tensor | None = None  # [N] SET INSERT DELETE; None: all are SET
    source: Tensor | None = None  # [B, L] previous position of each position, -1 for a new one; None: nothing moved


@dataclass
class Generation:
    """One finished sequence."""

    text: str
    ids: list[int]  # generated tokens, without the end-of-text token
    nfe: int  # forward passes
    score: float  # sum of log-probabilities of sealed tokens, plus that of a predicted length
    finish: str  # stop: an end-of-text token was generated; length: the canvas was full
    trace: list[Step] = field(default_factory=list)  # all steps of the batch in which it was generated
