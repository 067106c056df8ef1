"""How long a text will be: read off a length head where there is one, else looked for before anything is written."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from redraft.canvas import make_canvas
from redraft.samplers import _open, _scores
from redraft.types import FREE, Forward, Network, Output, Spec

Row = Sequence[int | None]  # ids, None where free
T = TypeVar("T")
Asking = Generator[Forward, Tensor, T]  # asks for passes, is sent their flat logits [N, V]


def length_request(ids: Tensor, prompt: Tensor, spec: Spec, rows: Tensor | None = None) -> Forward:
    """Ask for the distribution of output length, read at the last prompt position over ids 0, 1, 2 ...

    Args:
        ids: [R, L] rows that begin with their prompts. prompt: [R] prompt lengths.
    """
    width = int(prompt.max())
    positions = torch.arange(width)
    return Forward(
        x=ids[:, :width],
        pos=torch.where(positions < prompt[:, None], positions, -1),
        want=prompt[:, None] - 1,
        attend=spec.attend,
        prompt=prompt,
        t=torch.zeros(len(prompt)) if spec.timed else None,
        rows=rows,
    )


def best_lengths(logits: Tensor, most: int, count: int, feasible: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``count`` likeliest lengths in 1..most, likeliest first: [R, V] -> log-probabilities and lengths [R, count].

    A length counts the tokens of the answer including end-of-text (Mask-Predict's length beam, arXiv:1904.09324).

    Args:
        feasible: [most] bool, which lengths may be chosen; fewer than ``count`` give fewer columns.
    """
    scores, fewest = logits[:, 1 : most + 1].float(), min(count, most, logits.shape[1] - 1)
    if feasible is not None:
        allowed = feasible[: scores.shape[1]].to(scores.device)
        scores = scores.clamp(min=-1e30).masked_fill(~allowed, -torch.inf)  # one of these, however unlikely
        fewest = min(fewest, int(allowed.sum()))
    log_p, index = scores.log_softmax(-1).topk(fewest, -1)
    return log_p, index + 1


@dataclass(frozen=True)
class Look:
    """What a network makes of the free positions of a row before anything is written."""

    confidence: float  # mean probability of the likeliest token
    entropy: float  # mean, in nats
    truth: float  # sum of log p of the tokens that were asked for by name


def first_look(
    network: Network, rows: Sequence[Row], prompts: Sequence[int], spec: Spec, truths: Sequence[Row] | None = None
) -> list[Look]:
    """One pass over each row.

    Args:
        truths: tokens at free positions whose log-probability is asked for; those count in ``truth`` alone.
    """
    asking, logits = looks(rows, prompts, spec, truths), None
    with torch.inference_mode():
        while True:
            try:
                ask = asking.send(logits)  # type: ignore[arg-type] # a generator starts with None
            except StopIteration as end:
                found: list[Look] = end.value
                return found
            logits = network(ask)


def looks(
    rows: Sequence[Row], prompts: Sequence[int], spec: Spec, truths: Sequence[Row] | None = None
) -> Asking[list[Look]]:
    """``first_look`` for whoever runs the network."""
    found: list[Look] = []
    for part in _parts(rows):
        canvas = make_canvas([rows[i] for i in part], [prompts[i] for i in part], spec, seeds=[0] * len(part))
        (ask,) = _open.ask_for(canvas, spec, canvas.status == FREE)
        logits = yield ask
        logits[:, list(spec.forbidden)] = -torch.inf
        log_p = logits.float().log_softmax(-1)
        peak, entropy = log_p.amax(-1).exp().cpu(), _scores.entropy(Output(log_p, ask.want, ask.want)).cpu()
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        at, owner = ask.want[row, column], row.numpy()
        for number, index in enumerate(part):
            mine = (owner == number).nonzero()[0]
            tokens = [None if truths is None else truths[index][int(at[i])] for i in mine]
            free = [int(i) for i, token in zip(mine, tokens, strict=True) if token is None]
            named = [float(log_p[int(i), token]) for i, token in zip(mine, tokens, strict=True) if token is not None]
            mean = [float(value[free].double().mean()) if free else math.nan for value in (peak, entropy)]
            found.append(Look(mean[0], mean[1], math.fsum(named)))
    return found


_LOOK_TOKENS = 4096  # positions in one pass of ``first_look``


def _parts(rows: Sequence[Row]) -> Iterator[range]:
    """Neighbouring rows whose padded rectangle holds about ``_LOOK_TOKENS`` positions."""
    begin, widest = 0, 0
    for index, row in enumerate(rows):
        widest = max(widest, len(row))
        if index > begin and (index + 1 - begin) * widest > _LOOK_TOKENS:
            yield range(begin, index)
            begin, widest = index, len(row)
    if rows:
        yield range(begin, len(rows))


@dataclass(frozen=True)
class AnswerLength:
    """Length of an answer from a network without a length head, by how much the prompt adds to its certainty.

    CAL (Liu et al. 2026, arXiv:2602.00476) found that the mean first-step confidence c(L) over L masks peaks near the
    true length once its bias towards short texts is divided out, and fits the bias on other data. Here the bias is the
    network's own confidence c_0(L) without the prompt:

        score(L) = log c(L | prompt) - log c_0(L)

    Looked at are a grid of lengths whose steps grow by a quarter, then all between the best one's neighbours.
    """

    spec: Spec
    nothing: Sequence[int]  # an empty prompt
    closing: Sequence[int]  # what ends an answer: end-of-text, or nothing

    def search(
        self, prompt: Sequence[int], most: int, count: int, feasible: Tensor | None = None
    ) -> Asking[tuple[list[int], list[float]]]:
        """The ``count`` best lengths in 1..most, closing tokens counted, best first, and the logarithms of their
        shares.

        Args:
            feasible: [most] bool, which lengths may be chosen; fewer than ``count`` give fewer.
        """
        end = len(self.closing)
        largest = max(1, most - end)
        grid = [1]
        while grid[-1] < largest:
            grid.append(min(largest, max(grid[-1] + 1, math.ceil(grid[-1] * 1.25))))
        known = dict(zip(grid, (yield from self.scores(prompt, grid)), strict=True))
        best = grid.index(max(grid, key=lambda length: known[length]))
        low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
        between = [length for length in range(low, high) if length not in known]
        if between:
            known |= dict(zip(between, (yield from self.scores(prompt, between)), strict=True))
        if feasible is not None:
            known = _completable(known, feasible, end)
        total = float(torch.tensor(list(known.values())).logsumexp(0))
        chosen = sorted(known, key=lambda length: -known[length])[:count]
        return [min(length + end, most) for length in chosen], [known[length] - total for length in chosen]

    def scores(self, prompt: Sequence[int], lengths: Sequence[int]) -> Asking[list[float]]:
        """Of each length, the closing tokens not counted."""
        rows: list[Row] = []
        for head in (prompt, self.nothing):
            rows += [[*head, *[None] * length, *self.closing] for length in lengths]
        prompts = [len(prompt)] * len(lengths) + [len(self.nothing)] * len(lengths)
        found = [math.log(look.confidence) for look in (yield from looks(rows, prompts, self.spec))]
        return [here - bias for here, bias in zip(found, found[len(lengths) :], strict=False)]


def _completable(scores: dict[int, float], feasible: Tensor, closing: int) -> dict[int, float]:
    """Of lengths without their ``closing`` tokens, those that a constraint allows; the nearest one if it allows none.

    ``feasible`` is as ``Constraint.lengths`` has it. Where nothing closes a text, it may end before its row does.
    """
    fits = feasible if closing else feasible.cumsum(0) > 0
    kept = {length: score for length, score in scores.items() if fits[min(length + closing, len(fits)) - 1]}
    if kept:
        return kept
    allowed = (fits.nonzero()[:, 0] + 1 - closing).clamp(min=1).tolist()
    best = max(scores, key=lambda length: scores[length])
    return {min(allowed, key=lambda length: abs(length - best)): 0.0}
