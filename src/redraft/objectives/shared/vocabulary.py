"""Logits and losses in parts, so that logits [N, V] of a large vocabulary never exist as a whole.

A network's hidden states [N, D] are a small fraction of its logits [N, V]. Where the loss is a sum over target
positions (``Objective.additive``), each part of them is projected onto the vocabulary, compared with its targets,
differentiated and freed before the next (as in Liger, Hsu et al. 2024, arXiv:2410.10989; Wijmans et al. 2024,
arXiv:2411.09009, goes further and needs its own kernels). The value is that of the whole batch, up to the order of
sums.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from redraft.models.parts.backbone import Backbone
from redraft.objectives.base import Objective
from redraft.runtime import upload
from redraft.types import Forward, LossTerms, Network, Prepared

WHOLE = 1 << 26  # up to so many logits are computed at once: parts of a small vocabulary would only cost time
PART = 1 << 25  # logits of one part otherwise
SCORED, SCORED_ROWS = 1 << 22, 512  # logits of a part that is only scored, or so many rows: enough to be fast


def part_rows(targets: int, width: int, scored: bool = False) -> int:
    """How many of the target positions of a batch are projected at once, onto ``width`` logits each.

    Args:
        scored: without a gradient. Small parts then cost nothing, and their memory can be used again and again, while
            the number of targets, and with it the size of all logits, differs from batch to batch.
    """
    if scored:
        return max(1, min(max(SCORED // width, SCORED_ROWS), PART // width))
    return max(1, targets if targets * width <= WHOLE else PART // width)


def parts(network: Network, request: Forward, scored: bool = False) -> list[slice]:
    """Ranges of the target positions of a request whose logits are computed together; one range is all of them.

    ``scored``: see ``part_rows``.
    """
    count = sum(int((targets >= 0).sum()) for targets in request.target_lists)
    if not isinstance(network, Backbone) or not network.projects(request):
        return [slice(0, count)]
    size = part_rows(count, network.logit_width, scored)
    return [slice(begin, min(begin + size, count)) for begin in range(0, max(count, 1), size)]


def answer(network: Network, request: Forward, reduce: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """The logits [N, V] of a request, or what ``reduce``, a function of each row, makes of them."""
    if reduce is None:
        return network(request)
    ranges = parts(network, request)
    if len(ranges) == 1 or not isinstance(network, Backbone):
        return reduce(network(request))
    states = network.states(request)
    return torch.cat([reduce(network.project(states[part], request, part)) for part in ranges])


def evaluate(network: Network, objective: Objective[Any], prepared: Prepared, bfloat16: bool = False) -> LossTerms:
    """The loss of a batch and its parts. ``bfloat16``: autocast. Losses are computed without it."""
    device = prepared.target.device
    ranges = parts(network, prepared.request, scored=True) if objective.additive else []
    if len(ranges) <= 1 or not isinstance(network, Backbone):
        with _autocast(device, bfloat16):
            logits = network(prepared.request)
        return objective.loss(logits, prepared)
    loss, nats = list[Tensor](), list[Tensor]()
    with _autocast(device, bfloat16):  # one context for all parts, so that a weight is cast once
        states = network.states(prepared.request)
        for part in ranges:
            logits = network.project(states[part], prepared.request, part)
            with torch.autocast(device.type, enabled=False):
                terms = objective.loss(logits, prepared.part(part.start, part.stop))
            loss.append(terms.loss)
            nats.append(terms.nats)
            del logits  # before the next part
    return LossTerms(torch.stack(loss).sum(), torch.stack(nats).sum(0), terms.tokens, terms.is_bound)


def backward(
    network: Network, objective: Objective[Any], prepared: Prepared, share: float, bfloat16: bool = False
) -> Tensor:
    """Add ``share`` of a batch's gradient to the parameters; return that share of its loss, a scalar [].

    ``bfloat16``: autocast. Losses are computed without it.
    """
    device = prepared.target.device
    ranges = parts(network, prepared.request) if objective.additive else []
    if len(ranges) <= 1 or not isinstance(network, Backbone):
        with _autocast(device, bfloat16):
            logits = network(prepared.request)
        loss = objective.loss(logits, prepared).loss * share
        loss.backward()
        return loss.detach()
    total, gradients = torch.zeros((), device=device), list[Tensor]()
    with _autocast(device, bfloat16):  # one context for all parts, so that a weight is cast once
        states = network.states(prepared.request)
        for part in ranges:
            piece = states[part].detach().requires_grad_(states.requires_grad)
            logits = network.project(piece, prepared.request, part)
            with torch.autocast(device.type, enabled=False):
                loss = objective.loss(logits, prepared.part(part.start, part.stop)).loss * share
                loss.backward()
            total += loss.detach()
            if piece.grad is not None:
                gradients.append(piece.grad)
            del logits, loss  # before the next part
    if gradients:
        states.backward(torch.cat(gradients))
    return total


def _autocast(device: torch.device, bfloat16: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()


def likeliest(logits: Tensor, forbidden: Tensor) -> Tensor:
    """The likeliest token of each row of logits [N, V] without the ``forbidden`` [F] ids -> [N]."""
    return logits.index_fill(1, upload(forbidden, logits.device), -torch.inf).argmax(-1)
