"""The nouns of the house. Every other module speaks in these.

Dimension legend, used in every shape comment of the package:

    B  rows of a batch or canvas        L  length in positions
    R  rows of one request              Q  positions a request runs through the network
    W  positions whose prediction a request wants
    N  wanted positions of a request that are real (``want >= 0``), flattened row by row
    V  vocabulary   D  width   H  heads   C  cells of the key-value store
    Z  width of the vectors that continuous diffusion works on
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

# Status of a canvas position. Order matters: everything >= SEALED is final, FREE and DRAFT are open.
PAD, GIVEN, FREE, DRAFT, SEALED = 0, 1, 2, 3, 4

# What an op of a ``Step`` does: write a cell, put a new cell before one, or take one away.
SET, INSERT, DELETE = 0, 1, 2


@dataclass(frozen=True)
class Attend:
    """Which positions see which: position i sees j iff ``stage(j) <= stage(i)``.

    ``full``: one stage. ``causal``: a stage per position. ``block``: a stage per ``block`` positions. Where a request
    names its prompt lengths, the prompt is one stage of its own before all others, and blocks are counted from its
    end: it sees itself whole and never the answer (as in an encoder-decoder), so its keys and values are exact for
    every later pass.

    This is what a request allows. Layers of a network may see less of it: windows (``models.parts.attention.see``).
    """

    kind: str = "full"  # full | causal | block
    block: int = 0

    def stage(self, pos: Tensor, prompt: Tensor | None) -> Tensor:
        """Stage of each position. ``pos`` [R, Q], ``prompt`` [R] or None -> [R, Q]."""
        after = pos if prompt is None else pos - prompt[:, None]
        if self.kind == "full":
            number = torch.zeros_like(pos)
        elif self.kind == "causal":
            number = after
        else:
            number = after.div(self.block, rounding_mode="floor")
        return number if prompt is None else torch.where(after >= 0, number + 1, 0)


@dataclass
class Batch:
    """Clean training rows, right-padded."""

    ids: Tensor  # [B, L] int64
    target: Tensor  # [B, L] bool: what the loss counts and noise may touch; prompt and padding are False
    valid: Tensor  # [B, L] bool: False is padding
    prompt: Tensor | None  # [B] length of the leading prompt; None for plain text
    bytes: Tensor  # [B] UTF-8 bytes of the target text, the unit of bits per byte


@dataclass
class Clean:
    """The clean text beside a noisy one: a second stream of the same pass (BD3-LM, arXiv:2503.09573).

    With the stages of the request, a noisy position sees the noisy ones of its own stage and the clean ones of earlier
    stages; a clean one sees the clean ones that ``attend`` shows it, and no noise. An isolated prompt is clean anyway:
    it stands in the noisy stream alone, and both see it.
    """

    x: Tensor  # [R, C] token ids
    pos: Tensor  # [R, C] positions, those of the noisy stream once more; -1 is padding
    attend: Attend  # within this stream
    want: Tensor | None = None  # [R, U] TARGET positions wanted of this stream, too; answered after those of the noisy


@dataclass(frozen=True)
class Vectors:
    """What a request of continuous diffusion runs on, besides tokens. Where a position is ``noisy``, its token counts
    for nothing and vector z for everything. Three kinds of request:

    - ``predict``: from noisy vectors what ``Continuous.tokens`` says, [N, V] logits or [N, Z] numbers.
    - ``encode``: the clean vectors [N, Z] of the wanted positions. No vectors come with it.
    - ``decode``: the logits [N, V] of the wanted text positions, from vectors (without their noise, as far as one can).

    In predictions and decoding, position p + k of a row with prompt length p holds its k-th vector.
    """

    kind: Literal["predict", "encode", "decode"]
    z: Tensor | None = None  # [R, Q, Z]
    noisy: Tensor | None = None  # [R, Q] bool
    guess: Tensor | None = None  # [R, Q, Z] what was predicted before: self-conditioning (arXiv:2208.04202)


@dataclass(frozen=True)
class Guess:
    """What was predicted before at each position of a text: self-conditioning (arXiv:2208.04202) of token networks.

    P: positions of the text, of which a request may run some; K: the likeliest tokens.
    """

    token: Tensor  # [R, P, K]
    weight: Tensor  # [R, P, K] their probabilities; 0 where nothing was predicted


@dataclass
class Forward:
    """A request for one pass of a network. Methods ask, the loop answers."""

    x: Tensor  # [R, Q] token ids
    pos: Tensor  # [R, Q] positions; -1 is padding
    want: Tensor  # [R, W] TARGET positions whose distribution is wanted; -1 is none
    attend: Attend
    prompt: Tensor | None = None  # [R] prompt lengths, for a prompt that must not see the answer
    t: Tensor | None = None  # [R] noise time, for networks conditioned on it
    net: str = "main"  # which network of the loop
    branch: int = 0  # which cache of the row: guidance asks about the same row twice
    rows: Tensor | None = None  # [R] canvas rows; None outside a loop (training, scoring)
    stamp: Tensor | None = None  # [R] which keyed noise draws the tokens; None: the row's step, set by the loop
    cell: Tensor | None = None  # [R, Q] what ``want`` calls each query, where a position runs twice; None: ``pos``
    mask: Tensor | None = None  # [R, Q, Q] bool: who sees whom, in place of ``attend``; runs without a cache
    slot: Tensor | None = None  # [R] seat in the key-value store; set by the loop
    read: Tensor | None = None  # [R] cells below are visible without being asked; set by the cache policy
    active: Tensor | None = (
        None  # [R, 2] the region that the sampler is at work on: first position, and one past the last
    )
    shift: int | None = None  # the logits of position p stand at p - shift; None: the network's own
    whole: Tensor | None = None  # [R] positions from here on are one stage: what is being drafted behind causal text
    number: bool = False  # a number is wanted, such as a length, and not a token: no id is forbidden
    clean: Clean | None = None  # a second stream
    without: Tensor | None = None  # [R, K] ids that may not be drawn in a row, besides the forbidden ones; -1 is none
    vectors: Vectors | None = None  # continuous diffusion: what stands at some positions in place of their tokens
    guess: Guess | None = None  # of networks that are told what they predicted before (``Spec.guesses``)
    learns: bool = False  # a pass ahead (``Objective``) through which the gradient flows

    def stage(self, pos: Tensor) -> Tensor:
        """Stage of positions ``pos`` [R, K] -> [R, K]; see ``Attend``."""
        if self.whole is not None:
            pos = torch.minimum(pos, self.whole[:, None])
        return self.attend.stage(pos, self.prompt)

    @property
    def about(self) -> Tensor:
        """[R, W] the text positions that ``want`` is about: the same, but for a query that goes by another ``cell``."""
        if self.cell is None:
            return self.want
        shift = self.shift or 0
        same = self.cell[:, None, :] == (self.want - shift)[:, :, None]
        pos = self.pos.gather(1, same.to(torch.int8).argmax(2)) + shift
        return torch.where(same.any(2) & (self.want >= 0), pos, self.want)

    @property
    def streams(self) -> tuple[Tensor, Tensor]:
        """Tokens and positions of all that runs, the noisy stream and then the clean one, [R, Q + C] each."""
        if self.clean is None:
            return self.x, self.pos
        return torch.cat([self.x, self.clean.x], 1), torch.cat([self.pos, self.clean.pos], 1)


@dataclass
class Output:
    """The answer to a ``Forward``: predictions at the wanted positions."""

    log_p: Tensor  # [N, V] log-probabilities without the forbidden tokens; row by row over want >= 0
    token: Tensor  # [R, W] the drawn token, -1 where nothing was wanted
    conf: Tensor  # [R, W] log-probability of the drawn token at temperature 1, -inf where nothing was wanted
    log_z: Tensor | None = None  # [N] log sum of exp(logits) over what may be drawn; of models with ``Spec.score``
    vector: Tensor | None = None  # [N, Z] the predicted clean vectors, or v; of models with ``Spec.continuous``


@dataclass
class Step:
    """What one turn of the loop changed. Everything that watches generation consumes these.

    A sampler whose texts change their length gives each op a ``kind``. Its positions then mean the canvas as it was
    before the step; INSERT puts a cell before the one at ``pos`` (several there keep their order), and DELETE ignores
    token and status. The loop moves the cells and says by ``source`` where each came from; in the step that it yields,
    positions mean the canvas as it is now, and deleted cells are gone. So a watcher copies ``parents``, moves what it
    keeps by ``source`` (``canvas.moved``), and then writes the ops.
    """

    row: Tensor  # [N]
    pos: Tensor  # [N]
    token: Tensor  # [N]
    status: Tensor  # [N] resulting status
    conf: Tensor  # [N] log-probability when written
    parents: Tensor | None = None  # [B] rows copied from these rows first (beams)
    kind: Tensor | None = None  # [N] SET INSERT DELETE; None: all are set
    source: Tensor | None = None  # [B, L] position that each cell had before the step, -1 for a new one; None: its own


@dataclass
class Draw:
    """How tokens are drawn, per row, so that mixed requests share a batch."""

    temperature: Tensor  # [B]; 0 is argmax
    top_k: Tensor  # [B] int; 0 is off
    top_p: Tensor  # [B]; 1 is off


@dataclass
class Canvas:
    """A batch of texts in the making. Lives on the host; the loop alone writes to it."""

    ids: Tensor  # [B, L]
    status: Tensor  # [B, L] int8: PAD GIVEN FREE DRAFT SEALED
    prompt: Tensor  # [B] length of the leading prompt
    seed: Tensor  # [B] noise key of the row
    step: Tensor  # [B] turns this row has taken
    slot: Tensor  # [B] seat in the key-value store
    request: Tensor  # [B] owner; candidates and beams of one request share it
    nfe: Tensor  # [B] network passes this row took part in
    score: Tensor  # [B] float64 sum of log-probabilities as sealed, that of a chosen length included
    draw: Draw
    limit: Tensor  # [B] cells that a row may have at most
    gap: Tensor  # [B, L] bool: a cell may be inserted before this one; nowhere where the length stands

    @property
    def room(self) -> int:
        """Cells of the widest row, now or ever."""
        return max(self.ids.shape[1], int(self.limit.max()))

    @property
    def open(self) -> Tensor:
        """[B, L] bool: positions that may still change."""
        return (self.status == FREE) | (self.status == DRAFT)


class Schedule(Protocol):
    """alpha(t), the probability that a token is still itself: alpha(0)=1 is clean, alpha(1)=0 is noise."""

    @property
    def epsilon(self) -> float: ...  # how far alpha may be from 1 at t=0 and from 0 at t=1
    def alpha(self, t: Tensor) -> Tensor: ...
    def dalpha(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Continuous:
    """Diffusion of vectors (``noise.gaussian``): one of width Z for every ``ratio`` tokens of the answer.

    Noise is told by its log-SNR, log(alpha^2 / sigma^2), between two ends; to the network, as the share of the way from
    ``cleanest`` to ``noisiest`` (``Forward.t``), whatever the schedule.
    """

    width: int  # Z
    ratio: int  # tokens a vector
    tokens: bool  # the network predicts tokens, whose mean vector is the clean one; else v = alpha noise - sigma clean
    cleanest: float  # log-SNR at t = 0
    noisiest: float  # log-SNR at t = 1
    scale: float = 1.0  # of the signal: 2 log(scale) is added to the log-SNR (arXiv:2301.10972)


@dataclass(frozen=True)
class Spec:
    """What a sampler or an objective may know of the model it works for."""

    vocab_size: int
    pad_id: int
    eos_id: int
    mask_id: int
    attend: Attend
    isolate_prompt: bool  # the prompt is a stage of its own (see Attend)
    length_head: bool  # logits at the last prompt position, over ids 0..max, are a distribution of output length
    shift: int  # the logits of position p stand at p - shift (autoregressive 1, masked 0)
    timed: bool  # the network wants Forward.t
    schedule: Schedule | None  # None for autoregressive models
    forbidden: tuple[int, ...] = ()  # ids never drawn (mask, padding, markers)
    ends: tuple[int, ...] = ()  # further ids that end a text; the loop takes them all for ``eos_id``
    process: str = "absorbing"  # the file of ``noise/`` whose noise it undoes
    score: bool = False  # logits are log scores, whose sum means something: see ``objectives.score``
    net: str = "main"  # which network of the loop is meant
    borders: tuple[int, ...] = ()  # tokens that end a thought, for models that write one after the other
    continuous: Continuous | None = None  # what is diffused are vectors
    drafter: Spec | None = None  # who drafts for it: another network, or the same one asked in another way
    expand_id: int = -1  # predicted where two masks should stand for one, -1 where the model knows no such token
    delete_id: int = -1  # predicted where a mask stands for nothing
    guesses: int = 0  # likeliest tokens of its last prediction that the network is told (``Guess``); 0: it isn't

    @property
    def grows(self) -> bool:
        """Does it change the length of a text while it writes?"""
        return self.expand_id >= 0 or self.edits

    @property
    def edits(self) -> bool:
        """Predicts log-rates of edits (``families.edit``), and not tokens."""
        return self.process == "edit"

    @property
    def outputs(self) -> int:
        """Numbers that the network gives for each wanted position."""
        return 2 * self.vocab_size + 1 if self.edits else self.vocab_size


class Network(Protocol):
    """Maps a request to flat logits [N, V] in the order of ``want >= 0``; those of a second stream come last.

    One for continuous diffusion also answers the requests of ``Vectors`` (a wanted length comes in the first columns),
    and if it predicts tokens it has ``expected(log_p [N, V]) -> [N, Z]``, their mean vector.
    """

    def __call__(self, ask: Forward, store: Any | None = None) -> Tensor: ...


@dataclass
class Prepared:
    """A corrupted batch: what to ask the network and what to compare its answer with."""

    ask: Forward
    target: Tensor  # [N] clean ids at the wanted positions
    weight: Tensor  # [N] weight of each wanted position in the loss
    row: Tensor  # [N] batch row of each wanted position
    rows: int  # B
    tokens: int  # target tokens of the batch, the denominator
    extra: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class LossTerms:
    """A loss and what it is made of."""

    loss: Tensor  # scalar to minimise, per target token
    nats: Tensor  # [B] weighted negative log-likelihood (or bound) of each row's target, without auxiliary terms
    tokens: int  # target tokens of the batch
    is_bound: bool  # True: nats upper-bounds the exact value; False: it is the exact value


class Objective(Protocol):
    """batch -> loss, through one request.

    One whose training draws noise or adds terms that are not those of its likelihood also has ``scoring() ->
    Objective``, the one to score with; one that can lower its variance has ``candidates() -> Sequence[Objective]``, of
    which training takes the least varying on the validation rows (see ``likelihood``).

    One that must see what a network makes of a batch has ``ahead(batch, spec, generator) -> Generator[Forward, Tensor,
    Prepared]``, which is taken in place of ``prepare`` wherever there is one (``likelihood.corrupt``). It yields
    requests, is sent their answers, and returns what is then learnt from or scored. Answers are as when the network
    writes, without gradient or dropout, but for requests that say ``learns``. Their ``net`` is ``main``, the network
    in training, or, where the objective's ``teacher`` is true, ``teacher``: a frozen copy of the checkpoint that
    training began with.
    """

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared: ...
    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms: ...


@dataclass(frozen=True)
class Stage:
    """A part of a training that has several: a family's ``stages()``."""

    share: float  # of the budget; those of all stages add up to 1
    objective: Objective
    learns: tuple[str, ...]  # how the names of the parameters begin that it teaches; all others stand still


class Sampler(Protocol):
    """One rule for changing the canvas. It reads its state off the canvas and never calls a network."""

    @property
    def exact(self) -> bool: ...  # draws exactly from the model's joint distribution at temperature 1
    @property
    def retracts(self) -> bool: ...  # may change what it wrote
    @property
    def width(self) -> int: ...  # rows per request (beams)

    def start(self, canvas: Canvas, spec: Spec) -> Any: ...
    def plan(self, canvas: Canvas, state: Any, spec: Spec) -> list[Forward]: ...
    def apply(
        self, canvas: Canvas, state: Any, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[Any, Step]: ...


@dataclass
class Generation:
    """One finished text."""

    text: str
    ids: list[int]  # completion tokens, without end-of-text
    nfe: int
    score: float  # sum of log-probabilities as sealed, that of a chosen length included
    finish: str  # stop: end of text was written; length: the canvas was full
    trace: list[Step] = field(default_factory=list)  # of the whole batch that it was written in
