"""THE denoise loop: methods ask, the loop answers, and every change is a ``Step``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.length import best_lengths, length_request
from redraft.models.parts.store import KeyValueStore
from redraft.runtime import inverse_cdf, keyed_uniform
from redraft.types import DRAFT, FREE, GIVEN, PAD, SEALED, Canvas, Forward, Network, Output, Sampler, Spec, Step


class CachePolicy(Protocol):
    """Decides which positions of a request really run."""

    exact: bool  # what it reuses is what would have been computed

    def narrow(self, ask: Forward, cells: np.ndarray, shift: int) -> Forward: ...


@dataclass(frozen=True)
class Method:
    """How a canvas is filled: a sampler, and what may be reused between its passes (None: nothing)."""

    sampler: Sampler
    cache: CachePolicy | None = None


@dataclass
class Counter:
    """Work done, summed over rows: what ``metrics.flops`` turns into arithmetic."""

    passes: int = 0  # calls of a network
    queries: int = 0  # positions run
    pairs: int = 0  # (query, key) products computed, those that a mask then hides included
    wanted: int = 0  # positions projected onto the vocabulary
    drafted: int = 0  # tokens written that were not final
    accepted: int = 0  # of these, those that were sealed as they stood


@dataclass(frozen=True)
class Call:
    """A request as it will run: narrowed, with the store that it reads from and writes to (None: nothing is kept)."""

    ask: Forward
    store: KeyValueStore | None


T = TypeVar("T")
# What asks a driver to run calls, is sent the flat logits [N, V] of each, and yields a Step now and then.
Turns = Generator["Call | Step", Tensor, T]


@dataclass
class Loop:
    """Answers requests for one canvas: narrows them, has them run, removes forbidden tokens, draws.

    ``run`` is all that most callers need. Who runs networks for many canvases at once (a server) drives ``turns``.
    """

    networks: Mapping[str, Network]
    method: Method
    spec: Spec
    counter: Counter = field(default_factory=Counter)
    others: dict[str, Counter] = field(default_factory=dict)  # the work of networks other than ``main``, by name
    stores: dict[str, KeyValueStore] = field(default_factory=dict)  # by network; one that is missing is made
    room: tuple[int, int] | None = None  # seats and cells of a store; None: those of the canvas
    watch: Callable[[Forward, Output], None] | None = None  # told of every answer, before it is applied
    _forbidden: Tensor | None = None

    def run(self, canvas: Canvas) -> Iterator[Step]:
        """Fill every free position of the canvas, one ``Step`` at a time."""
        return self._drive(self.turns(canvas))

    def turns(self, canvas: Canvas) -> Turns[None]:
        """The loop itself. Whoever drives it must be in inference mode while it runs."""
        sampler = self.method.sampler
        state = sampler.start(canvas, self.spec)
        ending = _Ending(canvas, self.spec.eos_id)
        while True:
            asks = sampler.plan(canvas, state, self.spec)
            if not asks:
                return
            outs = []
            for ask in asks:
                outs.append((yield from self.answer(canvas, ask)))
            state, step = sampler.apply(canvas, state, self.spec, asks, outs)
            for ask in asks:
                _bump(canvas.step, ask.rows)
            self._commit(canvas, step)
            ending.close(canvas, step)
            yield step

    def _drive(self, turns: Turns[None]) -> Iterator[Step]:
        """Run every call at once."""
        sent: Tensor | None = None
        while True:
            # Not around the yield: the mode would leak into the caller.
            with torch.inference_mode():
                try:
                    found = turns.send(sent)  # type: ignore[arg-type] # a generator starts with None
                except StopIteration:
                    return
                if isinstance(found, Call):
                    sent = self.networks[found.ask.net](found.ask, found.store)
                    continue
            sent = None
            yield found

    def answer(self, canvas: Canvas, ask: Forward) -> Turns[Output]:
        """Have one request run: predictions and drawn tokens at the wanted positions."""
        logits = yield from self._forward(canvas, ask)
        if self.spec.forbidden and not ask.number:
            if self._forbidden is None:
                self._forbidden = torch.tensor(self.spec.forbidden, device=logits.device)
            logits.index_fill_(1, self._forbidden, -torch.inf)
        log_z = logits.float().logsumexp(-1) if self.spec.score else None
        out = draw(canvas, ask, logits.float().log_softmax(-1))
        out.log_z = log_z
        if self.watch is not None:
            self.watch(ask, out)
        return out

    def _forward(self, canvas: Canvas, ask: Forward) -> Turns[Tensor]:
        assert ask.rows is not None
        narrow, store = ask, None
        if ask.stamp is None:
            ask.stamp = canvas.step[ask.rows]
        if self.method.cache is not None and ask.mask is None:
            store = self._store(ask.net, canvas)
            ask.slot = canvas.slot[ask.rows]
            shift = self.spec.shift if ask.shift is None else ask.shift
            narrow = self.method.cache.narrow(ask, store.tokens[ask.slot.numpy()], shift)
        logits = yield Call(narrow, store)
        if store is not None:
            store.record(narrow)
        _bump(canvas.nfe, ask.rows)
        self._count(narrow)
        return logits

    def choose_lengths(self, canvas: Canvas) -> None:
        """Where the model has a length head: give each row of a request one of its likeliest lengths.

        One pass over the prompts; the last position becomes a given end-of-text and what lies beyond is padding.
        """
        for _ in self._drive(self.lengths(canvas)):
            pass

    def lengths(self, canvas: Canvas) -> Turns[None]:
        """``choose_lengths`` for a driver of its own."""
        first = torch.cat([torch.tensor([True]), canvas.request[1:] != canvas.request[:-1]]).nonzero()[:, 0]
        ask = length_request(canvas.ids[first], canvas.prompt[first], self.spec, rows=first)
        most = int(((canvas.status == FREE).sum(1)).max())
        owner = torch.searchsorted(first, torch.arange(len(canvas.ids)), right=True) - 1
        rank = torch.arange(len(canvas.ids)) - first[owner]
        logits = yield from self._forward(canvas, ask)
        log_p, likeliest = best_lengths(logits, most, int(rank.max()) + 1)
        canvas.nfe = canvas.nfe[first][owner]
        choice = owner, rank.clamp(max=likeliest.shape[1] - 1)
        length = likeliest.cpu()[choice]
        canvas.score += log_p.cpu()[choice]
        columns, end = torch.arange(canvas.ids.shape[1]), (canvas.prompt + length)[:, None]
        canvas.status[columns >= end] = PAD
        canvas.status[columns == end - 1] = GIVEN
        canvas.ids[columns == end - 1] = self.spec.eos_id
        others = (rank > 0).nonzero()[:, 0]
        for store in self.stores.values():
            if len(others):
                store.copy(canvas.slot[first[owner[others]]], canvas.slot[others])

    def _store(self, net: str, canvas: Canvas) -> KeyValueStore:
        if net not in self.stores:
            self.stores[net] = self.networks[net].store(*(self.room or canvas.ids.shape))  # type: ignore[attr-defined]
        return self.stores[net]

    def _count(self, ask: Forward) -> None:
        queries = np.count_nonzero(ask.pos.numpy() >= 0, axis=1)
        seen = queries if ask.read is None else queries + ask.read.numpy()
        counter = self.counter if ask.net == "main" else self.others.setdefault(ask.net, Counter())
        counter.passes += 1
        counter.queries += int(queries.sum())
        counter.pairs += int(queries @ seen)
        counter.wanted += int(np.count_nonzero(ask.want.numpy() >= 0))

    def _commit(self, canvas: Canvas, step: Step) -> None:
        if step.parents is not None:
            self._reorder(canvas, step.parents)
        # numpy's views of the same memory: a small change costs a quarter of what it does through torch
        row, pos, status = step.row.numpy(), step.pos.numpy(), step.status.numpy()
        if self.method.sampler.retracts:
            drafts = (canvas.status.numpy()[row, pos] == DRAFT) & (canvas.ids.numpy()[row, pos] == step.token.numpy())
            self.counter.accepted += int(np.count_nonzero(drafts & (status == SEALED)))
            self.counter.drafted += int(np.count_nonzero(status == DRAFT))
        canvas.ids.numpy()[row, pos] = step.token.numpy()
        canvas.status.numpy()[row, pos] = status
        final = status == SEALED  # a draft may yet be taken back
        np.add.at(canvas.score.numpy(), row[final], step.conf.numpy()[final].astype(np.float64))

    def _reorder(self, canvas: Canvas, parents: Tensor) -> None:
        """Rows become copies of their parents; a seat of the store follows its first child, others are copied."""
        for name in ("ids", "status", "step", "nfe", "score"):
            setattr(canvas, name, getattr(canvas, name)[parents])
        old, seats = canvas.slot, torch.empty_like(canvas.slot)
        heirs: dict[int, int] = {}
        for row, parent in enumerate(parents.tolist()):
            heirs.setdefault(parent, row)
        spare = iter([int(old[row]) for row in range(len(parents)) if row not in heirs])
        source, target = [], []
        for row, parent in enumerate(parents.tolist()):
            if heirs[parent] == row:
                seats[row] = old[parent]
            else:
                seats[row] = next(spare)
                source.append(int(old[parent]))
                target.append(int(seats[row]))
        canvas.slot = seats
        if source:
            for store in self.stores.values():
                store.copy(torch.tensor(source), torch.tensor(target))


def _bump(counts: Tensor, rows: Tensor | None) -> None:
    """Add one to the counts of these rows."""
    assert rows is not None
    counts.numpy()[rows.numpy()] += 1


class _Ending:
    """End-of-text: once it stands and everything before it is written, the rest of the row is padding.

    An end-of-text before a later given token ends nothing.
    """

    def __init__(self, canvas: Canvas, eos_id: int) -> None:
        self.eos_id = eos_id
        columns = torch.arange(canvas.ids.shape[1])
        given = torch.where((canvas.status == GIVEN) & (canvas.ids != eos_id), columns, -1)
        self.floor = given.amax(1)  # the last given token of each row
        self._pending = False  # an end stands in some row, but not all before it

    def close(self, canvas: Canvas, step: Step) -> None:
        if step.parents is None and not bool((step.token == self.eos_id).any()) and not self._pending:
            return
        columns = torch.arange(canvas.ids.shape[1])
        written = (canvas.ids == self.eos_id) & (canvas.status == SEALED) & (columns > self.floor[:, None])
        end = torch.where(written, columns, len(columns)).amin(1)
        free = canvas.open
        before = (free & (columns < end[:, None])).any(1)
        over = free & (columns > end[:, None]) & ~before[:, None]
        canvas.status[over] = PAD
        self._pending = bool((before & (end < len(columns))).any())


def draw(canvas: Canvas, ask: Forward, log_p: Tensor) -> Output:
    """Draw a token at each wanted position by inverse CDF from one uniform keyed by (seed, stamp, position).

    Temperature 0 is argmax. ``conf`` is the log-probability at temperature 1, before top-k and top-p.

    Raises:
        UserError: the network's answer is not a number.
    """
    assert ask.rows is not None
    real = ask.want >= 0
    conf, token = log_p.max(-1)
    warm = canvas.draw.temperature[ask.rows] > 0
    if bool(warm.any()):
        row = real.nonzero()[:, 0]
        flat = warm[row].nonzero()[:, 0]
        uniform = keyed_uniform(
            canvas.seed[ask.rows], canvas.step[ask.rows] if ask.stamp is None else ask.stamp, ask.want.clamp(min=0)
        )[real][flat]
        rows = ask.rows[row[flat]]
        here = flat.to(log_p.device)
        drawn = inverse_cdf(
            log_p[here],
            uniform.to(log_p.device),
            canvas.draw.temperature[rows].to(log_p.device),
            canvas.draw.top_k[rows].to(log_p.device),
            canvas.draw.top_p[rows].to(log_p.device),
        )
        token[here] = drawn
        conf[here] = log_p[here, drawn]
    token, conf = token.cpu(), conf.cpu()
    if np.isnan(conf.numpy()).any():  # samplers that go by confidence would wait for ever
        raise UserError(
            "the network's predictions are not numbers.", "Its training diverged, or its weights are damaged."
        )
    if ask.want.shape[1] == 1 and real.all():
        return Output(log_p, token[:, None], conf[:, None])
    tokens = torch.full(ask.want.shape, -1, dtype=torch.int64)
    confs = torch.full(ask.want.shape, -torch.inf)
    tokens[real], confs[real] = token, conf
    return Output(log_p, tokens, confs)
