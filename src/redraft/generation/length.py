"""The output length: predicted by a length head, or searched before generation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from redraft.generation.answer_lengths import AnswerLengths
from redraft.generation.first_pass import Passes, Row, T, first_passes
from redraft.generation.loop import Call, Loop, Steps
from redraft.runtime import download, upload
from redraft.samplers.shared import common
from redraft.types import FREE, GIVEN, PAD, Canvas, Spec


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
    count, spec = int(rank.max()) + 1, loop.spec
    suffix = [spec.tokens.eos_id] if choice is None else list(choice.answer_suffix)
    if choice is not None:
        options = yield from _by_choice(loop, canvas, choice, first, count)
    elif count == 1 and _judges(spec):
        options = yield from _by_head(loop, canvas, first, owner, _TRIED)
        options = yield from _surest(loop, canvas, first, options)
    else:
        options = yield from _by_head(loop, canvas, first, owner, count)
    picked = [options[of][min(at, len(options[of]) - 1)] for of, at in zip(owner.tolist(), rank.tolist(), strict=True)]
    canvas.score += torch.tensor([log_p for _, log_p in picked], dtype=torch.float64)
    length, most = torch.tensor([length for length, _ in picked]), int((canvas.status == FREE).sum(1).max())
    cut, length = length > most, length.clamp(max=most)
    columns, end = torch.arange(canvas.ids.shape[1]), (canvas.prompt + length)[:, None]
    canvas.status[columns >= end] = PAD
    if suffix:
        last = (columns == end - 1) & ~cut[:, None]
        if choice is not None:  # it has no empty answers
            last &= (length > 1)[:, None]
        canvas.status[last] = GIVEN
        canvas.ids[last] = spec.tokens.eos_id
    others = (rank > 0).nonzero()[:, 0]
    for store in loop.stores.values():
        if len(others):
            store.copy(canvas.kv_slot[first[owner[others]]], canvas.kv_slot[others])


Options = list[tuple[int, float]]  # lengths of an answer, suffix included, best first, and their log-probabilities


def _by_head(loop: Loop, canvas: Canvas, first: Tensor, owner: Tensor, count: int) -> Steps[list[Options]]:
    """The ``count`` likeliest lengths of each prompt; a single one, beyond its positions, where the answer is cut off.

    Args:
        first: [P] the first row of each prompt. owner: [B] the prompt of each row.
    """
    most = int(((canvas.status == FREE).sum(1)).max())
    feasible = None if loop.method.constraint is None else loop.method.constraint.lengths(most)
    request = common.length_request(canvas.ids[first], canvas.prompt[first], loop.spec, first)
    logits = yield from loop.forward(canvas, request)
    canvas.nfe = canvas.nfe[first][owner]
    log_p, likeliest = best_lengths(logits, most, count, feasible)
    log_p, likeliest, longer = download(log_p, likeliest, longer_than(logits, most))
    found: list[Options] = []
    for lengths, values, cut in zip(likeliest.tolist(), log_p.tolist(), longer.tolist(), strict=True):
        options = list(zip(lengths, values, strict=True))
        found.append([(most + 1, value) for _, value in options] if cut and feasible is None else options)
    return found


def _by_choice(loop: Loop, canvas: Canvas, choice: LengthChoice, first: Tensor, count: int) -> Steps[list[Options]]:
    """The ``count`` best lengths of each prompt by ``choice``; one that doesn't fit is the whole row, which is cut off.

    Args:
        first: [P] the first row of each prompt.
    """
    most = int(((canvas.status == FREE).sum(1)).max())
    feasible = None if loop.method.constraint is None else loop.method.constraint.lengths(most)
    found: list[Options] = []
    for row in first.tolist():
        prompt = canvas.ids[row, : int(canvas.prompt[row])].tolist()
        free = int((canvas.status[row] == FREE).sum())
        passes = choice.choose(prompt, free, count, None if feasible is None else feasible[:free])
        lengths, values = yield from _uncached(loop, passes)
        fitting = [length if length <= free else canvas.ids.shape[1] for length in lengths]
        found.append(list(zip(fitting, values, strict=True)))
    canvas.nfe += choice.passes
    return found


_TRIED = 4  # lengths that are compared by the entropy of their masks where one answer is generated
_UNLIKELY = math.log(0.25)  # those that are less likely than this, relative to the likeliest, are not
_WEIGHT = 2.0  # of the entropy against log p(L); chosen on validation rows (docs/log.md)


def _judges(spec: Spec) -> bool:
    """Can first predictions tell lengths apart? Under noise other than masks they know nothing of the answer."""
    return spec.masks and not spec.scores and spec.family.continuous is None and not spec.variable_length


def _surest(loop: Loop, canvas: Canvas, first: Tensor, options: list[Options]) -> Steps[list[Options]]:
    """The length with the highest log p(L) - 2 H(L) of each prompt, where H is the mean entropy of the predictions of
    L masks, in nats.

    The likeliest length is often not that of an answer the network can give, and a text of a wrong length has gaps or
    fillers. One pass over the likely lengths finds the one that it can fill best; several candidates fill all of them.

    Args:
        first: [P] the first row of each prompt.
    """
    rows, prompts, of = list[Row](), list[int](), list[int]()
    kept: list[Options] = []
    for number, (row, own) in enumerate(zip(first.tolist(), options, strict=True)):
        free, start = int((canvas.status[row] == FREE).sum()), int(canvas.prompt[row])
        likely = [one for one in own if one[1] >= own[0][1] + _UNLIKELY and 1 < one[0] <= free]
        kept.append(likely if len(likely) > 1 and own[0] in likely else own[:1])
        if len(kept[-1]) > 1:
            head = canvas.ids[row, :start].tolist()
            rows += [[*head, *[None] * (length - 1), loop.spec.tokens.eos_id] for length, _ in kept[-1]]
            prompts += [start] * len(kept[-1])
            of.append(number)
    if not rows:
        return kept
    found = iter((yield from _uncached(loop, first_passes(rows, prompts, loop.spec))))
    for number in of:
        scores = {one: one[1] - _WEIGHT * next(found).entropy for one in kept[number]}
        kept[number] = [max(scores, key=lambda one: scores[one])]
        canvas.nfe[first[number]] += 1
    return kept


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
