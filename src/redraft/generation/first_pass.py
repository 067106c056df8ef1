"""The predictions at the free positions of rows before generation: how sure the network is of an answer of a size."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from redraft.canvas import make_canvas
from redraft.runtime import download, upload
from redraft.samplers.shared import common, ranking
from redraft.types import FREE, Network, Output, Request, Spec

Row = Sequence[int | None]  # ids, None where free
T = TypeVar("T")
Passes = Generator[Request, Tensor, T]  # yields forward passes and receives their flat logits [N, V]


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


def parts(rows: Sequence[Row], owner: Sequence[int] | None = None) -> Iterator[range]:
    """Consecutive rows that together have about ``_PASS_TOKENS`` positions, padding included.

    Args:
        owner: of each row; the rows of one owner are kept together, if they have no more positions than that.
    """
    begin, first, widest = 0, 0, 0
    for index, row in enumerate(rows):
        if owner is None or (index and owner[index] != owner[index - 1]):
            first = index  # the first row that a cut here would leave to the next part
        widest = max(widest, len(row))
        if index > begin and (index + 1 - begin) * widest > _PASS_TOKENS:
            cut = first if first > begin else index
            yield range(begin, cut)
            begin, widest = cut, max(map(len, rows[cut : index + 1]))
    if rows:
        yield range(begin, len(rows))
