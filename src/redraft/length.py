"""How long a text will be: read off a length head where there is one, else looked for before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.canvas import make_canvas
from redraft.samplers import _open, _scores
from redraft.types import FREE, Forward, Network, Output, Spec

Row = Sequence[int | None]  # ids, None where free


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
    found: list[Look] = []
    for part in _parts(rows):
        canvas = make_canvas([rows[i] for i in part], [prompts[i] for i in part], spec, seeds=[0] * len(part))
        (ask,) = _open.ask_for(canvas, spec, canvas.status == FREE)
        with torch.inference_mode():
            logits = network(ask)
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


def search(score: Callable[[Sequence[int]], list[float]], most: int) -> dict[int, float]:
    """Scores of lengths in 1..most: a grid whose steps grow by a quarter, then all between the best one's neighbours.

    Args:
        score: scores of several lengths, the higher the better. Called twice at most.
    """
    grid = [1]
    while grid[-1] < most:
        grid.append(min(most, max(grid[-1] + 1, math.ceil(grid[-1] * 1.25))))
    known = dict(zip(grid, score(grid), strict=True))
    best = grid.index(max(grid, key=lambda length: known[length]))
    low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    between = [length for length in range(low, high) if length not in known]
    if between:
        known |= dict(zip(between, score(between), strict=True))
    return known


@dataclass
class AnswerLength:
    """Length of an answer from a network without a length head, by how much the prompt adds to its certainty.

    CAL (Liu et al. 2026, arXiv:2602.00476) found that the mean first-step confidence c(L) over L masks peaks near the
    true length once its bias towards short texts is divided out, and fits the bias on other data. Here the bias is the
    network's own confidence c_0(L) without the prompt:

        score(L) = log c(L | prompt) - log c_0(L)
    """

    network: Network
    spec: Spec
    nothing: Sequence[int]  # an empty prompt
    closing: Sequence[int]  # what ends an answer: end-of-text, or nothing

    def __post_init__(self) -> None:
        self._bias: dict[int, float] = {}

    def scores(self, prompt: Sequence[int], lengths: Sequence[int]) -> list[float]:
        """Of each length, the closing tokens not counted."""
        new = [length for length in lengths if length not in self._bias]
        self._bias |= dict(zip(new, self._looks(self.nothing, new), strict=True))
        looks = self._looks(prompt, lengths)
        return [here - self._bias[length] for here, length in zip(looks, lengths, strict=True)]

    def _looks(self, prompt: Sequence[int], lengths: Sequence[int]) -> list[float]:
        rows = [[*prompt, *[None] * length, *self.closing] for length in lengths]
        looks = first_look(self.network, rows, [len(prompt)] * len(rows), self.spec)
        return [math.log(look.confidence) for look in looks]
