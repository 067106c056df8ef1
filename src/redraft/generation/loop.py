"""The decoding loop: samplers request forward passes, the loop runs them, and every change is a ``Step``."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from redraft.caches.base import CachePolicy
from redraft.canvas import joined, resize
from redraft.generation.sampling import Draw, arrange, draw, log_probabilities, remove_disallowed
from redraft.generation.self_conditioning import Memory, memory
from redraft.guidance.base import Guidance
from redraft.models.parts.store import KeyValueStore, KeyValueView
from redraft.runtime import download, upload
from redraft.samplers.base import Sampler
from redraft.types import (
    DRAFT,
    FREE,
    GIVEN,
    PAD,
    SEALED,
    Canvas,
    Constraint,
    Forward,
    Network,
    Output,
    Request,
    Spec,
    Step,
    VectorQuery,
)


@dataclass(frozen=True)
class Method:
    """How a canvas is filled: a sampler, and optionally a cache policy, guidance and a constraint."""

    sampler: Sampler
    cache: CachePolicy | None = None
    guidance: Guidance | None = None
    constraint: Constraint | None = None


@dataclass
class WorkCounter:
    """Work done, summed over rows: ``models.flops`` turns it into arithmetic operations."""

    passes: int = 0  # forward passes
    queries: int = 0  # positions run
    pairs: int = 0  # (query, key) products computed, including masked ones
    targets: int = 0  # positions projected onto the vocabulary
    encoded: int = 0  # queries in an isolated prompt before its last token, which an encoder runs
    encoded_pairs: int = 0  # pairs of these queries
    drafted: int = 0  # tokens written as drafts
    accepted: int = 0  # drafts that were sealed unchanged


@dataclass(frozen=True)
class Call:
    """A forward pass to run: the narrowed request, and the key-value store that it reads and writes (None: none)."""

    request: Forward
    store: KeyValueView | None


T = TypeVar("T")
# Yields calls, which a driver runs, and receives the flat logits [N, V] of each; draws that are on another device, and
# receives their token and conf on the host; and every Step.
Steps = Generator["Call | Draw | Step", "Tensor | tuple[Tensor, ...] | None", T]


@dataclass
class Loop:
    """Answers requests for one canvas: narrows them, runs them, removes forbidden tokens, samples.

    Most callers need only ``run``. A server, which runs networks for many canvases at once, drives ``steps``.
    """

    networks: Mapping[str, Network]
    method: Method
    spec: Spec
    counter: WorkCounter = field(default_factory=WorkCounter)
    others: dict[str, WorkCounter] = field(default_factory=dict)  # work of networks other than ``main``, by name
    stores: dict[tuple[str, int], KeyValueStore] = field(default_factory=dict)  # by network and cache branch
    capacity: tuple[int, int] | None = None  # slots and positions of a new store; None: those of the canvas
    on_answer: Callable[[Request, Output], None] | None = None  # called with every answer, before it is applied
    _forbidden: Tensor | None = None  # ids, on the device
    _ends: Tensor | None = None  # ids of end-of-text tokens, on the device
    _memory: Memory | None = None  # for self-conditioned models

    def run(self, canvas: Canvas) -> Iterator[Step]:
        """Fill every free position of the canvas, one ``Step`` at a time."""
        return self.drive(self.steps(canvas))

    def steps(self, canvas: Canvas) -> Steps[None]:
        """The loop as a generator. Its driver must run it in inference mode."""
        sampler = self.method.sampler
        state = sampler.start(canvas, self.spec)
        self._memory = memory(canvas, self.spec)
        ending = _Ending(canvas, self.spec.tokens.eos_id)
        if self.method.constraint is not None:
            self.method.constraint.start(canvas)
        while True:
            # 1. The sampler plans forward passes; they run, and tokens are sampled from their answers.
            requests = sampler.plan(canvas, state, self.spec)
            if not requests:
                return
            outputs = []
            for request in requests:
                outputs.append((yield from self.answer(canvas, request)))
            # 2. The sampler decides what changes.
            state, step = sampler.apply(canvas, state, self.spec, requests, outputs)
            for request in requests:
                _increment(canvas.step, request.rows)
            # 3. The loop applies it: rows are reordered, infeasible changes dropped, positions moved and written.
            if step.parents is not None:
                self._reorder(canvas, step.parents)
            if self.method.constraint is not None:
                step = _admit(self.method.constraint, canvas, requests, outputs, step, sampler.exact)
            if step.kind is not None:
                step = self._resize(canvas, step)
                ending = _Ending(canvas, self.spec.tokens.eos_id, pending=True)
            self._commit(canvas, step)
            ending.close(canvas, step)
            yield step

    def drive(self, steps: Steps[None]) -> Iterator[Step]:
        """Run every call immediately."""
        sent: Tensor | tuple[Tensor, ...] | None = None
        while True:
            # The yield is outside, so that the mode does not leak into the caller.
            with torch.inference_mode():
                try:
                    found = steps.send(sent)
                except StopIteration:
                    return
                if isinstance(found, Call):
                    sent = self.networks[found.request.network](found.request, found.store)
                    continue
                if isinstance(found, Draw):
                    sent = download(found.token, found.conf)
                    continue
            sent = None
            yield found

    def answer(self, canvas: Canvas, request: Request) -> Steps[Output]:
        """Run one request: predictions and sampled tokens at the target positions."""
        spec, is_length = self.spec, request.predicts_length
        own = not is_length and request.network == spec.network.name
        if self._memory is not None and own:
            request = request.with_extra(*self._memory.of(canvas, request.rows))
        logits = yield from self._guided(canvas, request)
        query = request.find(VectorQuery)
        predicts = query is not None and query.kind == "predict"
        if predicts and spec.family.continuous is not None and not spec.family.continuous.tokens:
            no_token = torch.full(request.targets.shape, -1, dtype=torch.int64)  # without a distribution
            return Output(logits, no_token, torch.full(request.targets.shape, -torch.inf), vector=logits)
        if not is_length:
            self._remove_forbidden(logits)
        remove_disallowed(request, logits)
        log_z = logits.float().logsumexp(-1) if spec.scores else None
        if self.method.constraint is not None and not is_length:
            logits = self.method.constraint.mask(canvas, request, logits)
        log_p = log_probabilities(logits)
        drawn = draw(canvas, request, log_p)
        found: tuple[Tensor, ...] = drawn.token, drawn.conf
        if log_p.device.type != "cpu":  # a server waits once for the draws of all texts
            received = yield drawn
            assert isinstance(received, tuple)
            found = received
        output = arrange(request, log_p, *found)
        output.log_z = log_z
        if predicts:
            output.vector = self.networks[request.network].expected(output.log_p)  # type: ignore[attr-defined]
        if self._memory is not None and own:
            self._memory.keep(canvas, request, output, self.networks[request.network])
        if self.on_answer is not None:
            self.on_answer(request, output)
        return output

    def _remove_forbidden(self, logits: Tensor) -> None:
        """Set forbidden tokens to -inf, and merge several end-of-text tokens into one. Changes [N, V] in place."""
        ids = self.spec.tokens
        if ids.forbidden:
            if self._forbidden is None:
                self._forbidden = upload(torch.tensor(ids.forbidden), logits.device)
            logits.index_fill_(1, self._forbidden, -torch.inf)
        if ids.stop_ids and ids.eos_id >= 0:
            if self._ends is None:
                self._ends = upload(torch.tensor([ids.eos_id, *ids.stop_ids]), logits.device)
            logits[:, ids.eos_id] = logits[:, self._ends].logsumexp(1)
            logits.index_fill_(1, self._ends[1:], -torch.inf)

    def _guided(self, canvas: Canvas, request: Request) -> Steps[Tensor]:
        guidance, query = self.method.guidance, request.find(VectorQuery)
        if guidance is None or request.predicts_length or (query is not None and query.kind != "predict"):
            return (yield from self.forward(canvas, request))
        found = []
        for each in guidance.expand(canvas, request, self.spec):
            found.append((yield from self.forward(canvas, each)))
        return guidance.combine(canvas, request, found)

    def forward(self, canvas: Canvas, request: Request) -> Steps[Tensor]:
        """Flat logits [N, V] of one forward pass, through the cache."""
        rows, store, view = request.rows, None, None
        if request.drawing.noise_step is None:
            request.drawing.noise_step = canvas.step[rows]
        query = request.find(VectorQuery)
        decodes = query is not None and query.kind == "decode"  # runs no position of the sequence
        narrow = request
        if self.method.cache is not None and not request.uncached and not decodes:
            store = self._store(request.network, request.cache.branch, canvas)
            slots = canvas.kv_slot[rows]
            narrow = self._narrowed(self.method.cache, request.with_cache(kv_slot=slots), store)
            below = narrow.cache.visible_below
            assert below is not None
            view = KeyValueView(store, slots, below)
        logits = yield Call(narrow, view)
        assert isinstance(logits, Tensor)
        if store is not None:
            store.record(narrow)
        _increment(canvas.nfe, rows)
        self.count(narrow, narrow.cache.visible_below)
        return logits

    def _narrowed(self, policy: CachePolicy, request: Request, store: KeyValueStore) -> Request:
        assert request.cache.kv_slot is not None
        slots, shift = request.cache.kv_slot.numpy(), request.shift(self.spec.network.shift)
        if policy.watched_layer is None:
            return policy.narrow(request, store.tokens[slots], shift)
        store.watch(policy.watched_layer)
        return policy.narrow(request, store.tokens[slots], shift, store.moved[slots])

    def _store(self, network: str, branch: int, canvas: Canvas) -> KeyValueStore:
        if (network, branch) not in self.stores:
            size = self.capacity or (len(canvas.ids), canvas.capacity)
            self.stores[network, branch] = self.networks[network].store(*size)  # type: ignore[attr-defined]
        return self.stores[network, branch]

    def count(self, request: Forward, visible_below: Tensor | None = None) -> None:
        """Add the work of a forward pass. ``visible_below`` [R]: number of stored positions that it reads."""
        queries = np.count_nonzero(request.positions.numpy() >= 0, axis=1)
        keys = queries if visible_below is None else queries + visible_below.numpy()
        main = request.network == "main"
        counter = self.counter if main else self.others.setdefault(request.network, WorkCounter())
        counter.passes += 1
        counter.queries += int(queries.sum())
        counter.pairs += int(queries @ keys)
        if request.prompt is not None:
            positions, last = request.positions.numpy(), request.prompt.numpy()[:, None] - 1
            encoded = np.count_nonzero((positions >= 0) & (positions < last), axis=1)
            counter.encoded += int(encoded.sum())
            counter.encoded_pairs += int(encoded @ keys)
        continuous, query = self.spec.family.continuous, request.find(VectorQuery)
        # Predictions of v are not projected onto tokens.
        if continuous is None or continuous.tokens or query is None or query.kind != "predict":
            counter.targets += int(np.count_nonzero(request.targets.numpy() >= 0))

    def _resize(self, canvas: Canvas, step: Step) -> Step:
        """Move positions, and invalidate the stored keys and values from the first moved position on."""
        step = resize(canvas, step)
        assert step.source is not None
        source = step.source.numpy()
        unmoved = source == np.arange(source.shape[1])
        first = np.where(unmoved.all(1), source.shape[1], unmoved.argmin(1))
        for store in self.stores.values():
            for slot, begin in zip(canvas.kv_slot.tolist(), first.tolist(), strict=True):
                store.tokens[slot, begin:] = -1
        return step

    def _commit(self, canvas: Canvas, step: Step) -> None:
        # Through numpy views of the same memory, a small change takes a quarter of the time that torch needs.
        row, pos, status = step.row.numpy(), step.pos.numpy(), step.status.numpy()
        if self.method.sampler.retracts:
            drafts = (canvas.status.numpy()[row, pos] == DRAFT) & (canvas.ids.numpy()[row, pos] == step.token.numpy())
            self.counter.accepted += int(np.count_nonzero(drafts & (status == SEALED)))
            self.counter.drafted += int(np.count_nonzero(status == DRAFT))
        canvas.ids.numpy()[row, pos] = step.token.numpy()
        canvas.status.numpy()[row, pos] = status
        final = status == SEALED
        np.add.at(canvas.score.numpy(), row[final], step.conf.numpy()[final].astype(np.float64))

    def _reorder(self, canvas: Canvas, parents: Tensor) -> None:
        """Copy rows from their parents [B]. The first child keeps its parent's slot, the others get copies."""
        for name in ("ids", "status", "step", "nfe", "score", "limit", "gap"):
            setattr(canvas, name, getattr(canvas, name)[parents])
        if self._memory is not None:
            self._memory.reorder(parents)
        old, slots = canvas.kv_slot, torch.empty_like(canvas.kv_slot)
        first_child: dict[int, int] = {}
        for row, parent in enumerate(parents.tolist()):
            first_child.setdefault(parent, row)
        unused = iter([int(old[row]) for row in range(len(parents)) if row not in first_child])
        source, target = [], []
        for row, parent in enumerate(parents.tolist()):
            if first_child[parent] == row:
                slots[row] = old[parent]
            else:
                slots[row] = next(unused)
                source.append(int(old[parent]))
                target.append(int(slots[row]))
        canvas.kv_slot = slots
        if source:
            for store in self.stores.values():
                store.copy(torch.tensor(source), torch.tensor(target))


def _admit(
    constraint: Constraint, canvas: Canvas, requests: list[Request], outputs: list[Output], step: Step, exact: bool
) -> Step:
    """The feasible part of a step. A row without feasible changes writes its most confident prediction instead.

    An ``exact`` sampler verifies its drafts: a row that only drafts writes none of them.
    """
    kept = constraint.admit(canvas, step)
    if kept is step:
        return step
    asked = step.row[step.status == SEALED] if exact else step.row
    stuck = np.setdiff1d(asked.numpy(), kept.row.numpy())
    stuck = stuck[(canvas.status.numpy()[stuck] == FREE).any(1)]
    if not len(stuck):
        return kept
    predictions: list[Step] = []
    for request, output in zip(requests, outputs, strict=True):
        if request.predicts_length:
            continue
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        at = request.rows[row], request.target_positions[row, column]
        chosen = torch.from_numpy(np.isin(at[0].numpy(), stuck)) & (canvas.status[at] == FREE)
        row, column = row[chosen], column[chosen]
        sealed, conf = torch.full_like(row, SEALED), output.conf[row, column]
        predictions.append(Step(at[0][chosen], at[1][chosen], output.token[row, column], sealed, conf))
    candidates = joined(predictions)
    order = candidates.conf.sort(descending=True, stable=True).indices
    first = np.unique(candidates.row[order].numpy(), return_index=True)[1]
    # The constraint masked each prediction as if it were the only change, so it is feasible alone, unless its context
    # was infeasible.
    best = constraint.admit(canvas, _part(candidates, order[torch.from_numpy(first)]))
    if len(best.row) < len(stuck):
        raise RuntimeError("the sampler proposes no change that the constraint allows")
    return joined([kept, best])


def _part(step: Step, index: Tensor) -> Step:
    """The changes of a step at ``index``."""
    return Step(step.row[index], step.pos[index], step.token[index], step.status[index], step.conf[index])


def _increment(counts: Tensor, rows: Tensor) -> None:
    """Add one to the counts of these rows."""
    counts.numpy()[rows.numpy()] += 1


class _Ending:
    """Pads the rest of a row once an end-of-text token is sealed and everything before it is written.

    An end-of-text token before a later given token does not end the row.
    """

    def __init__(self, canvas: Canvas, eos_id: int, pending: bool = False) -> None:
        self.eos_id = eos_id
        columns = torch.arange(canvas.ids.shape[1])
        given = torch.where((canvas.status == GIVEN) & (canvas.ids != eos_id), columns, -1)
        self.floor = given.amax(1)  # the last given token of each row
        self._pending = pending  # some row has an end-of-text token, and free positions before it

    def close(self, canvas: Canvas, step: Step) -> None:
        """Pad the positions after the end of each row."""
        if step.parents is None and not bool((step.token == self.eos_id).any()) and not self._pending:
            return
        columns = torch.arange(canvas.ids.shape[1])
        ends = (canvas.ids == self.eos_id) & (canvas.status == SEALED) & (columns > self.floor[:, None])
        end = torch.where(ends, columns, len(columns)).amin(1)
        free = canvas.open
        before = (free & (columns < end[:, None])).any(1)
        after = free & (columns > end[:, None]) & ~before[:, None]
        canvas.status[after] = PAD
        self._pending = bool((before & (end < len(columns))).any())
