"""Prepares a batch for training or scoring: runs what an objective needs before the pass that has its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from redraft.models.parts.backbone import Backbone
from redraft.objectives.base import Objective, RolloutPass, SamplePass, Samples, ScorePass
from redraft.objectives.shared import vocabulary
from redraft.types import Batch, Forward, Network, Spec


def prepare_batch(
    objective: Objective[Any],
    batch: Batch,
    spec: Spec,
    generator: torch.Generator,
    networks: Mapping[str, Network],
    bfloat16: bool = False,
    sample: Callable[[SamplePass], Samples] | None = None,
) -> tuple[Any, list[Forward]]:
    """The batch as ``objective`` prepares it for training or scoring, and the requests that its rollout ran.

    Args:
        bfloat16: the passes of the rollout run in that precision.
        sample: generates texts, for objectives that ask for some. Its passes are not among the requests.
    """
    passes, requests = objective.rollout(batch, spec, generator), list[Forward]()
    answer: Tensor | Samples | None = None
    while True:
        try:
            asked = passes.send(answer)
        except StopIteration as finished:
            return finished.value, requests
        if isinstance(asked, SamplePass):
            assert sample is not None, "this objective needs generated texts"
            answer = sample(asked)
        elif isinstance(asked, ScorePass):
            requests.append(asked.prepared.request)
            answer = _nats(objective, asked, networks[asked.network], bfloat16)
        else:
            requests.append(asked.request)
            answer = _logits(asked, networks[asked.request.network], bfloat16)


def _logits(asked: RolloutPass, network: Network, bfloat16: bool) -> Tensor:
    with (
        nullcontext() if asked.with_gradient else evaluating(network, torch.no_grad()),
        torch.autocast(_device(network, asked.request).type, torch.bfloat16) if bfloat16 else nullcontext(),
    ):
        reduce = asked.reduce
        if asked.expected and reduce is not None:
            reduce = _then_expected(network, reduce)
        return vocabulary.answer(network, asked.request, reduce)


def _then_expected(network: Any, reduce: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Mean vectors [n, Z] of the log-probabilities [n, V] that ``reduce`` gives."""
    return lambda logits: network.expected(reduce(logits))


def _nats(objective: Objective[Any], asked: ScorePass, network: Network, bfloat16: bool) -> Tensor:
    where = _device(network, asked.prepared.request)
    with evaluating(network, torch.no_grad()):
        return vocabulary.evaluate(network, objective, asked.prepared.to(where), bfloat16).nats.cpu().double()


def _device(network: Network, request: Forward) -> torch.device:
    return network.device if isinstance(network, Backbone) else request.tokens.device


@contextmanager
def evaluating(network: Network, gradless: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    """Context without gradient and dropout. It restores the network's mode on exit."""
    training = isinstance(network, nn.Module) and network.training
    if isinstance(network, nn.Module):
        network.eval()
    try:
        with gradless or torch.inference_mode():
            yield
    finally:
        if isinstance(network, nn.Module):
            network.train(training)
