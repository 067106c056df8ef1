"""The output length: predicted by a length head, or searched before generation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from redraft.canvas import make_canvas
from redraft.generation.answer_lengths import AnswerLengths
from redraft.generation.loop import Call, Loop, Steps
from redraft.runtime import download, upload
from redraft.samplers.shared import common, ranking
from redraft.types import FREE, GIVEN, PAD, Canvas, Network, Output, Request, Spec

Row = Sequence[int | None]  # ids, None where free
T = TypeVar("T")
Passes = Generator[Request, Tensor, T]  # yields forward passes and receives their flat logits [N, V]


def best_lengths(logits: Tensor, most: int, count: int, feasible: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``count`` likeliest lengths in 1..most, in order: logits [R, V] -> log-probabilities and lengths [R, count].

    A length counts the tokens of the answer including end-of-text (Mask-Predict's length beam, arXiv:1904.09324).

    Args:
        feasible: [most] bool, which lengths may be chosen. There are fewer columns if fewer than ``count`` may.
    """
    scores, columns = logits[:, 1 : most + 1].float(), min(count, most, logits.shape[1] - 1)
    if feasible is not None:
        allowed = feasible[: scores.shape[1]]
        columns = min(columns, int(allowed.sum()))
        hidden = upload(~allowed, scores.device)
        scores = scores.clamp(min=-1e30).masked_fill(hidden, -torch.inf)  # an allowed length, however unlikely
    log_p, index = scores.log_softmax(-1).topk(columns, -1)
    return log_p, index + 1


def longer_than(logits: Tensor, most: int) -> Tensor:
    """Is the answer more likely longer than ``most`` tokens than not? Logits [R, V] of lengths -> [R] bool."""
    lengths = logits.float()[:, 1:]
    return lengths[:, :most].logsumexp(-1) < lengths[:, most:].logsumexp(-1)


@dataclass(frozen=True)
class FirstPass:
    """The predictions at the free positions of a row before generation."""

    confidence: float  # mean probability of the likeliest token
    entropy: float  # mean, in nats
    truth: float  # sum of log p of the tokens whose log-probability was requested


def first_pass(
    network: Network,
    rows: Sequence[Row],
    prompts: Sequence[int],
    spec: Spec,
    truths: Sequence[Row] | None = None,
    checkpoint: Callable[[], None] | None = None,
) -> list[FirstPass]:
    """One forward pass over each row.

    Args:
        truths: tokens at free positions whose log-probability is requested. These positions count only in ``truth``.
        checkpoint: called before every pass; it may raise an exception.
    """
    return run_passes(first_passes(rows, prompts, spec, truths), network, checkpoint)


def run_passes(passes: Passes[T], network: Network, checkpoint: Callable[[], None] | None = None) -> T:
    """Run the forward passes of a generator with a network, and return its result.

    Args:
        checkpoint: called before every pass; it may raise an exception.
    """
    logits: Tensor | None = None
    with torch.inference_mode():
        while True:
            try:
                request = passes.send(logits)  # type: ignore[arg-type] # a generator starts with None
            except StopIteration as end:
                found: T = end.value
                return found
            if checkpoint is not None:
                checkpoint()
            logits = network(request)


def first_passes(
    rows: Sequence[Row], prompts: Sequence[int], spec: Spec, truths: Sequence[Row] | None = None
) -> Passes[list[FirstPass]]:
    """``first_pass`` as a generator, for a caller that runs the network."""
    found: list[FirstPass] = []
    for part in parts(rows):
        request, log_p = yield from predictions([rows[i] for i in part], [prompts[i] for i in part], spec)
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        at, owner = request.targets[row, column].tolist(), row.tolist()
        tokens = [None if truths is None else truths[part[r]][i] for r, i in zip(owner, at, strict=True)]
        wanted = upload(torch.tensor([0 if token is None else token for token in tokens]), log_p.device)
        entropy = ranking.entropy(Output(log_p, request.targets, request.targets))
        true = log_p.gather(1, wanted[:, None])[:, 0]
        peak, entropy, true = download(log_p.amax(-1).exp(), entropy, true)
        for number in range(len(part)):
            own = (row == number).nonzero()[:, 0].tolist()
            free = [i for i in own if tokens[i] is None]
            requested = [float(true[i]) for i in own if tokens[i] is not None]
            mean = [float(value[free].double().mean()) if free else math.nan for value in (peak, entropy)]
            found.append(FirstPass(mean[0], mean[1], math.fsum(requested)))
    return found


def predictions(rows: Sequence[Row], prompts: Sequence[int], spec: Spec) -> Passes[tuple[Request, Tensor]]:
    """One forward pass over rows: the request, and log-probabilities [N, V] at its targets, the free positions."""
    canvas = make_canvas(rows, prompts, spec, seeds=[0] * len(rows))
    (request,) = common.requests_for(canvas, spec, canvas.status == FREE)
    logits = yield request
    logits.index_fill_(1, upload(torch.tensor(spec.tokens.forbidden, dtype=torch.int64), logits.device), -torch.inf)
    return request, logits.float().log_softmax(-1)


_PASS_TOKENS = 4096  # positions in one pass of ``first_pass``


def parts(rows: Sequence[Row]) -> Iterator[range]:
    """Consecutive rows that together have about ``_PASS_TOKENS`` positions, padding included."""
    begin, widest = 0, 0
    for index, row in enumerate(rows):
        widest = max(widest, len(row))
        if index > begin and (index + 1 - begin) * widest > _PASS_TOKENS:
            yield range(begin, index)
            begin, widest = index, len(row)
    if rows:
        yield range(begin, len(rows))


@dataclass(frozen=True)
class LengthChoice(ABC):
    """A way to choose the output length of a network without a length head."""

    answer_suffix: Sequence[int]  # tokens that end an answer: end-of-text, or none

    passes: ClassVar[int] = 0  # forward passes that it takes

    @abstractmethod
    def choose(
        self, prompt: Sequence[int], most: int, count: int, feasible: Tensor | None = None
    ) -> Passes[tuple[list[int], list[float]]]:
        """The ``count`` best lengths, suffix included, best first, and their log-probabilities.

        A length above ``most`` means that the answer does not fit.

        Args:
            feasible: [most] bool, which lengths may be chosen: then all are at most ``most``. The result is shorter if
                fewer than ``count`` may.
        """


@dataclass(frozen=True)
class LengthSearch(LengthChoice):
    """Answer length for a network without a length head, from the confidence that the prompt adds.

    CAL (Liu et al. 2026, arXiv:2602.00476) found that the mean first-step confidence c(L) over L masks, divided by its
    bias towards short sequences, peaks near the true length. CAL fits the bias on other data. Here the bias is the
    network's confidence c_0(L) without the prompt:

        score(L) = log c(L | prompt) - log c_0(L)

    It scores a grid of lengths that grow by a quarter each, then all lengths between the neighbours of the best one.
    """

    spec: Spec
    empty_prompt: Sequence[int]

    passes = 2

    def choose(
        self, prompt: Sequence[int], most: int, count: int, feasible: Tensor | None = None
    ) -> Passes[tuple[list[int], list[float]]]:
        """The lengths of highest score, in 1..most, that are ``feasible`` [most]. Their probability is the softmax over
        all that were scored.
        """
        end = len(self.answer_suffix)
        largest = max(1, most - end)
        grid = [1]
        while grid[-1] < largest:
            grid.append(min(largest, max(grid[-1] + 1, math.ceil(grid[-1] * 1.25))))
        known = dict(zip(grid, (yield from self.scores(prompt, grid)), strict=True))
        best = grid.index(max(grid, key=lambda length: known[length]))
        below, above = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
        between = [length for length in range(below, above) if length not in known]
        if between:
            known |= dict(zip(between, (yield from self.scores(prompt, between)), strict=True))
        if feasible is not None:
            known = _completable(known, feasible, end)
        total = float(torch.tensor(list(known.values())).logsumexp(0))
        chosen = sorted(known, key=lambda length: -known[length])[:count]
        return [min(length + end, most) for length in chosen], [known[length] - total for length in chosen]

    def scores(self, prompt: Sequence[int], lengths: Sequence[int]) -> Passes[list[float]]:
        """The score of each length, suffix excluded."""
        rows: list[Row] = []
        for head in (prompt, self.empty_prompt):
            rows += [[*head, *[None] * length, *self.answer_suffix] for length in lengths]
        prompts = [len(prompt)] * len(lengths) + [len(self.empty_prompt)] * len(lengths)
        log_c = [math.log(each.confidence) for each in (yield from first_passes(rows, prompts, self.spec))]
        return [with_prompt - bias for with_prompt, bias in zip(log_c, log_c[len(lengths) :], strict=False)]


@dataclass(frozen=True)
class TypicalLength(LengthChoice):
    """Answer length as in training: the median over answers to prompts of about this length.

    Several lengths are the quantiles (k + 1/2) / count, the most central ones first.
    """

    seen: AnswerLengths

    def choose(
        self, prompt: Sequence[int], most: int, count: int, feasible: Tensor | None = None
    ) -> Passes[tuple[list[int], list[float]]]:
        """See the base class, also for ``feasible`` [most]. No forward pass runs."""
        end = len(self.answer_suffix)
        known = {max(length - end, 1): math.log(p) for length, p in self.seen.given(len(prompt)).items()}
        if feasible is not None:
            known = _completable(known, feasible, end)
        total = float(torch.tensor(list(known.values())).logsumexp(0))
        chosen = evenly_spaced(known, count)
        return [length + end for length in chosen], [known[length] - total for length in chosen]
        yield  # a generator, as the other ways


def evenly_spaced(log_p: Mapping[int, float], count: int) -> list[int]:
    """The lengths at the quantiles (k + 1/2) / count of a distribution, most central first, without repetitions."""
    lengths = sorted(log_p)
    mass = torch.tensor([log_p[length] for length in lengths], dtype=torch.float64).softmax(0).cumsum(0)
    levels = sorted(((k + 0.5) / count for k in range(count)), key=lambda level: abs(level - 0.5))
    index = torch.searchsorted(mass, torch.tensor(levels, dtype=torch.float64)).clamp(max=len(lengths) - 1)
    return list(dict.fromkeys(lengths[i] for i in index.tolist()))


def _completable(scores: dict[int, float], feasible: Tensor, suffix: int) -> dict[int, float]:
    """The lengths, without their ``suffix`` tokens, that a constraint allows; the nearest one if it allows none.

    Args:
        feasible: see ``Constraint.lengths``; longer ones are not allowed. Without a suffix, a sequence may be shorter
            than its row.
    """
    fits = feasible if suffix else feasible.cumsum(0) > 0
    within = {length: score for length, score in scores.items() if length + suffix <= len(fits)}
    kept = {length: score for length, score in within.items() if fits[length + suffix - 1]}
    if kept:
        return kept
    allowed = (fits.nonzero()[:, 0] + 1 - suffix).clamp(min=1).tolist()
    best = max(scores, key=lambda length: scores[length])
    return {min(allowed, key=lambda length: abs(length - best)): 0.0}


def choose_lengths(loop: Loop, canvas: Canvas, choice: LengthChoice | None = None) -> None:
    """Give each row of a prompt one of the likeliest lengths, from the length head or by ``choice``.

    Positions after that length become padding. If answers end with end-of-text, it becomes the given last token. Where
    the answer is likely longer than the positions there are, all of them are generated and no end-of-text is given:
    the text is cut off, as with an autoregressive model. (Under a constraint the text has to be complete.)
    """
    for _ in loop.drive(length_steps(loop, canvas, choice)):
        pass


def length_steps(loop: Loop, canvas: Canvas, choice: LengthChoice | None = None) -> Steps[None]:
    """``choose_lengths`` as a generator, for a caller that runs the network."""
    first = torch.cat([torch.tensor([True]), canvas.owner[1:] != canvas.owner[:-1]]).nonzero()[:, 0]
    owner = torch.searchsorted(first, torch.arange(len(canvas.ids)), right=True) - 1
    rank = torch.arange(len(canvas.ids)) - first[owner]
    most, count = int(((canvas.status == FREE).sum(1)).max()), int(rank.max()) + 1
    constraint, spec = loop.method.constraint, loop.spec
    feasible = None if constraint is None else constraint.lengths(most)
    if choice is None:
        request = common.length_request(canvas.ids[first], canvas.prompt[first], spec, first)
        logits = yield from loop.forward(canvas, request)
        log_p, likeliest = best_lengths(logits, most, count, feasible)
        canvas.nfe = canvas.nfe[first][owner]
        column = owner, rank.clamp(max=likeliest.shape[1] - 1)
        log_p, likeliest, longer = download(log_p, likeliest, longer_than(logits, most))
        length, gain = likeliest[column], log_p[column]
        length[longer[owner] & (feasible is None)] = most + 1
    else:
        length, gain = yield from _chosen(loop, canvas, choice, first, owner, rank, feasible)
    canvas.score += gain
    cut, length = length > most, length.clamp(max=most)
    columns, end = torch.arange(canvas.ids.shape[1]), (canvas.prompt + length)[:, None]
    canvas.status[columns >= end] = PAD
    if choice is None or choice.answer_suffix:
        last = (columns == end - 1) & ~cut[:, None]
        if choice is not None:  # it has no empty answers
            last &= (length > 1)[:, None]
        canvas.status[last] = GIVEN
        canvas.ids[last] = spec.tokens.eos_id
    others = (rank > 0).nonzero()[:, 0]
    for store in loop.stores.values():
        if len(others):
            store.copy(canvas.kv_slot[first[owner[others]]], canvas.kv_slot[others])


def _chosen(
    loop: Loop,
    canvas: Canvas,
    choice: LengthChoice,
    first: Tensor,
    owner: Tensor,
    rank: Tensor,
    feasible: Tensor | None,
) -> Steps[tuple[Tensor, Tensor]]:
    """Lengths of all rows [B] by ``choice``, and their log-probabilities [B]."""
    lengths, gains = [], []
    for number, row in enumerate(first.tolist()):
        prompt = canvas.ids[row, : int(canvas.prompt[row])].tolist()
        free, count = int((canvas.status[row] == FREE).sum()), int((owner == number).sum())
        passes = choice.choose(prompt, free, count, None if feasible is None else feasible[:free])
        found = yield from _uncached(loop, passes)
        ranks = rank[owner == number].clamp(max=len(found[0]) - 1).tolist()
        lengths += [
            found[0][i] if found[0][i] <= free else canvas.ids.shape[1] for i in ranks
        ]  # the whole row: cut off
        gains += [found[1][i] for i in ranks]
    canvas.nfe += choice.passes
    return torch.tensor(lengths), torch.tensor(gains, dtype=torch.float64)


def _uncached(loop: Loop, passes: Passes[T]) -> Steps[T]:
    """Run forward passes without a cache."""
    logits: Tensor | None = None
    while True:
        try:
            request = passes.send(logits)  # type: ignore[arg-type] # a generator starts with None
        except StopIteration as end:
            found: T = end.value
            return found
        loop.count(request)
        received = yield Call(request, None)
        assert isinstance(received, Tensor)
        logits = received
