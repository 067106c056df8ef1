"""THE denoise loop: methods ask, the loop answers, and every change is a ``Step``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from redraft.canvas import joined, resize
from redraft.errors import UserError
from redraft.guesses import Memory
from redraft.length import AnswerLength, Asking, best_lengths, length_request
from redraft.models.parts.store import KeyValueStore
from redraft.runtime import inverse_cdf, keyed_uniform
from redraft.types import DRAFT, FREE, GIVEN, PAD, SEALED, Canvas, Forward, Network, Output, Sampler, Spec, Step


class CachePolicy(Protocol):
    """Decides which positions of a request really run.

    One that names a layer in ``watches`` is also told how far values of that layer have moved, as
    ``narrow(ask, cells, shift, moved)`` with ``moved`` [R] (see ``KeyValueStore``).
    """

    exact: bool  # what it reuses is what would have been computed

    def narrow(self, ask: Forward, cells: np.ndarray, shift: int) -> Forward: ...


class Guidance(Protocol):
    """Turns one request into several, and their answers into one."""

    def expand(self, canvas: Canvas, ask: Forward, spec: Spec) -> list[Forward]: ...
    def combine(self, canvas: Canvas, ask: Forward, logits: list[Tensor]) -> Tensor: ...  # [N, V] each -> [N, V]


class Constraint(Protocol):
    """Keeps a canvas within a language: before drawing, and once more when several tokens are written together."""

    def start(self, canvas: Canvas) -> None: ...  # UserError where a row can't be completed
    def possible(self, canvas: Canvas) -> Tensor: ...  # [B] bool: which rows can be
    def lengths(self, most: int) -> Tensor: ...  # [most] bool: which lengths 1, 2 ... are feasible, end-of-text counted
    def mask(self, canvas: Canvas, ask: Forward, logits: Tensor) -> Tensor: ...
    def admit(self, canvas: Canvas, step: Step) -> Step: ...  # drops ops that are not jointly feasible


@dataclass(frozen=True)
class Method:
    """How a canvas is filled: a sampler, what may be reused between its passes, and what steers it (None: nothing)."""

    sampler: Sampler
    cache: CachePolicy | None = None
    guidance: Guidance | None = None
    constraint: Constraint | None = None


@dataclass
class Counter:
    """Work done, summed over rows: what ``metrics.flops`` turns into arithmetic."""

    passes: int = 0  # calls of a network
    queries: int = 0  # positions run
    pairs: int = 0  # (query, key) products computed, those that a mask then hides included
    wanted: int = 0  # positions projected onto the vocabulary
    encoded: int = 0  # of the queries, those in an isolated prompt before its last token: what an encoder reads
    encoded_pairs: int = 0  # of the pairs, those of these queries
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
    # by network and branch (see ``Forward``); one that is missing is made
    stores: dict[tuple[str, int], KeyValueStore] = field(default_factory=dict)
    room: tuple[int, int] | None = None  # seats and cells of a store; None: those of the canvas
    watch: Callable[[Forward, Output], None] | None = None  # told of every answer, before it is applied
    _forbidden: Tensor | None = None
    _memory: Memory | None = None  # of models that are told what they predicted before

    def run(self, canvas: Canvas) -> Iterator[Step]:
        """Fill every free position of the canvas, one ``Step`` at a time."""
        return self._drive(self.turns(canvas))

    def turns(self, canvas: Canvas) -> Turns[None]:
        """The loop itself. Whoever drives it must be in inference mode while it runs."""
        sampler = self.method.sampler
        state = sampler.start(canvas, self.spec)
        self._memory = Memory(canvas, self.spec.guesses) if self.spec.guesses else None
        ending = _Ending(canvas, self.spec.eos_id)
        if self.method.constraint is not None:
            self.method.constraint.start(canvas)
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
            if step.parents is not None:
                self._reorder(canvas, step.parents)
            if self.method.constraint is not None:
                step = _admit(self.method.constraint, canvas, asks, outs, step)
            if step.kind is not None:
                step = self._resize(canvas, step)
                ending = _Ending(canvas, self.spec.eos_id, pending=True)
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
        memory = None if ask.number or ask.net != self.spec.net else self._memory
        if memory is not None:
            assert ask.rows is not None
            ask.guess = memory.of(canvas, ask.rows)
        logits = yield from self._guided(canvas, ask)
        predicts = ask.vectors is not None and ask.vectors.kind == "predict"
        if predicts and self.spec.continuous is not None and not self.spec.continuous.tokens:
            nothing = torch.full(ask.want.shape, -1, dtype=torch.int64)  # numbers, no distribution: nothing to draw
            return Output(logits, nothing, torch.full(ask.want.shape, -torch.inf), vector=logits)
        if self.spec.forbidden and not ask.number:
            if self._forbidden is None:
                self._forbidden = torch.tensor(self.spec.forbidden, device=logits.device)
            logits.index_fill_(1, self._forbidden, -torch.inf)
        if self.spec.ends and self.spec.eos_id >= 0 and not ask.number:
            _one_end(logits, self.spec)
        if ask.without is not None:
            barred = ask.without[(ask.want >= 0).nonzero()[:, 0]].to(logits.device)
            logits[(barred >= 0).nonzero()[:, 0], barred[barred >= 0]] = -torch.inf
        log_z = logits.float().logsumexp(-1) if self.spec.score else None
        if self.method.constraint is not None and not ask.number:
            logits = self.method.constraint.mask(canvas, ask, logits)
        out = draw(canvas, ask, logits.float().log_softmax(-1))
        out.log_z = log_z
        if predicts:
            out.vector = self.networks[ask.net].expected(out.log_p)  # type: ignore[attr-defined]
        if memory is not None:
            memory.keep(ask, out)
        if self.watch is not None:
            self.watch(ask, out)
        return out

    def _guided(self, canvas: Canvas, ask: Forward) -> Turns[Tensor]:
        guidance = self.method.guidance
        if guidance is None or ask.number or (ask.vectors is not None and ask.vectors.kind != "predict"):
            return (yield from self._forward(canvas, ask))
        found = []
        for each in guidance.expand(canvas, ask, self.spec):
            found.append((yield from self._forward(canvas, each)))
        return guidance.combine(canvas, ask, found)

    def _forward(self, canvas: Canvas, ask: Forward) -> Turns[Tensor]:
        assert ask.rows is not None
        narrow, store = ask, None
        if ask.stamp is None:
            ask.stamp = canvas.step[ask.rows]
        decodes = ask.vectors is not None and ask.vectors.kind == "decode"  # which runs no position of the text
        if self.method.cache is not None and ask.mask is None and not decodes:
            store = self._store(ask.net, ask.branch, canvas)
            ask.slot = canvas.slot[ask.rows]
            shift = self.spec.shift if ask.shift is None else ask.shift
            narrow = self._narrowed(self.method.cache, ask, store, shift)
        logits = yield Call(narrow, store)
        if store is not None:
            store.record(narrow)
        _bump(canvas.nfe, ask.rows)
        self._count(narrow)
        return logits

    @staticmethod
    def _narrowed(policy: CachePolicy, ask: Forward, store: KeyValueStore, shift: int) -> Forward:
        assert ask.slot is not None
        slot = ask.slot.numpy()
        layer = getattr(policy, "watches", None)
        if layer is None:
            return policy.narrow(ask, store.tokens[slot], shift)
        store.watch(layer)
        watching: Any = policy
        narrow: Forward = watching.narrow(ask, store.tokens[slot], shift, store.moved[slot])
        return narrow

    def choose_lengths(self, canvas: Canvas, looked_for: AnswerLength | None = None) -> None:
        """Give each row of a request one of its likeliest lengths: those of the model's length head, or those that are
        ``looked_for``.

        What lies beyond becomes padding; the last position a given end-of-text, where an answer closes with one.
        """
        for _ in self._drive(self.lengths(canvas, looked_for)):
            pass

    def lengths(self, canvas: Canvas, looked_for: AnswerLength | None = None) -> Turns[None]:
        """``choose_lengths`` for a driver of its own."""
        first = torch.cat([torch.tensor([True]), canvas.request[1:] != canvas.request[:-1]]).nonzero()[:, 0]
        owner = torch.searchsorted(first, torch.arange(len(canvas.ids)), right=True) - 1
        rank = torch.arange(len(canvas.ids)) - first[owner]
        most, count = int(((canvas.status == FREE).sum(1)).max()), int(rank.max()) + 1
        feasible = None if self.method.constraint is None else self.method.constraint.lengths(most)
        if looked_for is None:
            ask = length_request(canvas.ids[first], canvas.prompt[first], self.spec, rows=first)
            logits = yield from self._forward(canvas, ask)
            log_p, likeliest = best_lengths(logits, most, count, feasible)
            canvas.nfe = canvas.nfe[first][owner]
            choice = owner, rank.clamp(max=likeliest.shape[1] - 1)
            length, gain = likeliest.cpu()[choice], log_p.cpu()[choice]
        else:
            length, gain = yield from self._look(canvas, looked_for, first, owner, rank, feasible)
        canvas.score += gain
        columns, end = torch.arange(canvas.ids.shape[1]), (canvas.prompt + length)[:, None]
        canvas.status[columns >= end] = PAD
        if looked_for is None or looked_for.closing:
            last = columns == end - 1
            if looked_for is not None:  # which never says that an answer is empty
                last &= (length > 1)[:, None]
            canvas.status[last] = GIVEN
            canvas.ids[last] = self.spec.eos_id
        others = (rank > 0).nonzero()[:, 0]
        for store in self.stores.values():
            if len(others):
                store.copy(canvas.slot[first[owner[others]]], canvas.slot[others])

    def _look(
        self,
        canvas: Canvas,
        looked_for: AnswerLength,
        first: Tensor,
        owner: Tensor,
        rank: Tensor,
        feasible: Tensor | None,
    ) -> Turns[tuple[Tensor, Tensor]]:
        """Lengths of all rows that ``looked_for`` finds, and the logarithms of their shares."""
        lengths, gains = [], []
        for request, row in enumerate(first.tolist()):
            prompt = canvas.ids[row, : int(canvas.prompt[row])].tolist()
            free, count = int((canvas.status[row] == FREE).sum()), int((owner == request).sum())
            search = looked_for.search(prompt, free, count, None if feasible is None else feasible[:free])
            found = yield from self._asked(search)
            place = rank[owner == request].clamp(max=len(found[0]) - 1).tolist()
            lengths += [found[0][at] for at in place]
            gains += [found[1][at] for at in place]
        canvas.nfe += 2  # a search looks twice
        return torch.tensor(lengths), torch.tensor(gains, dtype=torch.float64)

    def _asked(self, asking: Asking[T]) -> Turns[T]:
        """Have what somebody asks for run, without a cache."""
        logits: Tensor | None = None
        while True:
            try:
                ask = asking.send(logits)  # type: ignore[arg-type] # a generator starts with None
            except StopIteration as end:
                found: T = end.value
                return found
            self._count(ask)
            logits = yield Call(ask, None)

    def _store(self, net: str, branch: int, canvas: Canvas) -> KeyValueStore:
        if (net, branch) not in self.stores:
            made = self.networks[net].store(*(self.room or (len(canvas.ids), canvas.room)))  # type: ignore[attr-defined]
            self.stores[net, branch] = made
        return self.stores[net, branch]

    def _count(self, ask: Forward) -> None:
        queries = np.count_nonzero(ask.pos.numpy() >= 0, axis=1)
        seen = queries if ask.read is None else queries + ask.read.numpy()
        counter = self.counter if ask.net == "main" else self.others.setdefault(ask.net, Counter())
        counter.passes += 1
        counter.queries += int(queries.sum())
        counter.pairs += int(queries @ seen)
        if ask.prompt is not None:
            pos, last = ask.pos.numpy(), ask.prompt.numpy()[:, None] - 1
            encoded = np.count_nonzero((pos >= 0) & (pos < last), axis=1)
            counter.encoded += int(encoded.sum())
            counter.encoded_pairs += int(encoded @ seen)
        what = self.spec.continuous
        if what is None or what.tokens or ask.vectors is None or ask.vectors.kind != "predict":  # not for v: no tokens
            counter.wanted += int(np.count_nonzero(ask.want.numpy() >= 0))

    def _resize(self, canvas: Canvas, step: Step) -> Step:
        """Move the cells; what the stores know of those that moved, and of those that saw them, is void."""
        step = resize(canvas, step)
        assert step.source is not None
        source = step.source.numpy()
        stays = source == np.arange(source.shape[1])
        first = np.where(stays.all(1), source.shape[1], stays.argmin(1))
        for store in self.stores.values():
            for seat, begin in zip(canvas.slot.tolist(), first.tolist(), strict=True):
                store.tokens[seat, begin:] = -1
        return step

    def _commit(self, canvas: Canvas, step: Step) -> None:
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
        for name in ("ids", "status", "step", "nfe", "score", "limit", "gap"):
            setattr(canvas, name, getattr(canvas, name)[parents])
        if self._memory is not None:
            self._memory.reorder(parents)
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


def _one_end(logits: Tensor, spec: Spec) -> None:
    """Several ends of text are one event: its probability is the sum of theirs. ``logits`` [N, V], changed in place."""
    logits[:, spec.eos_id] = logits[:, [spec.eos_id, *spec.ends]].logsumexp(1)
    logits[:, list(spec.ends)] = -torch.inf


def _admit(constraint: Constraint, canvas: Canvas, asks: list[Forward], outs: list[Output], step: Step) -> Step:
    """What of a step may land. A row that would write nothing of what it meant to writes its surest prediction."""
    kept = constraint.admit(canvas, step)
    if kept is step:
        return step
    idle = np.setdiff1d(step.row.numpy(), kept.row.numpy())
    idle = idle[(canvas.status.numpy()[idle] == FREE).any(1)]
    if not len(idle):
        return kept
    spare: list[Step] = []
    for ask, out in zip(asks, outs, strict=True):
        if ask.number:
            continue
        assert ask.rows is not None
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        at = ask.rows[row], ask.about[row, column]
        useful = torch.from_numpy(np.isin(at[0].numpy(), idle)) & (canvas.status[at] == FREE)
        row, column = row[useful], column[useful]
        sealed = torch.full_like(row, SEALED)
        spare.append(Step(at[0][useful], at[1][useful], out.token[row, column], sealed, out.conf[row, column]))
    whole = joined(spare)
    order = whole.conf.sort(descending=True, stable=True).indices
    first = np.unique(whole.row[order].numpy(), return_index=True)[1]
    # Its surest prediction was drawn where only it is written, so it is feasible alone, unless its context was not.
    surest = constraint.admit(canvas, _part(whole, order[torch.from_numpy(first)]))
    if len(surest.row) < len(idle):
        raise RuntimeError("a sampler proposes nothing that the constraint allows")
    return joined([kept, surest])


def _part(step: Step, index: Tensor) -> Step:
    """Some of a step's changes."""
    return Step(step.row[index], step.pos[index], step.token[index], step.status[index], step.conf[index])


def _bump(counts: Tensor, rows: Tensor | None) -> None:
    """Add one to the counts of these rows."""
    assert rows is not None
    counts.numpy()[rows.numpy()] += 1


class _Ending:
    """End-of-text: once it stands and everything before it is written, the rest of the row is padding.

    An end-of-text before a later given token ends nothing.
    """

    def __init__(self, canvas: Canvas, eos_id: int, pending: bool = False) -> None:
        self.eos_id = eos_id
        columns = torch.arange(canvas.ids.shape[1])
        given = torch.where((canvas.status == GIVEN) & (canvas.ids != eos_id), columns, -1)
        self.floor = given.amax(1)  # the last given token of each row
        self._pending = pending  # an end stands in some row, but not all before it

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
