"""How likely a text is under a model: exact for autoregressive models, an upper bound with its error for diffusion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from redraft.errors import UserError
from redraft.types import Batch, LossTerms, Network, Objective, Spec


@dataclass(frozen=True)
class Bound:
    """Negative log-likelihood of some rows: the exact value, or the estimate of an upper bound on it."""

    nats: float  # of all rows
    stderr: float  # standard error of ``nats``: that of the Monte-Carlo estimate alone, not of the choice of rows
    tokens: int
    bytes: int
    is_bound: bool  # False: exact, and stderr is 0
    rows: tuple[float, ...]  # nats of each row, in order
    samples: int  # noise draws per row

    @property
    def nats_per_token(self) -> float:
        return _ratio(self.nats, self.tokens)

    @property
    def nats_per_token_stderr(self) -> float:
        return _ratio(self.stderr, self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return _ratio(self.nats, self.bytes * math.log(2))

    @property
    def bits_per_byte_stderr(self) -> float:
        return _ratio(self.stderr, self.bytes * math.log(2))


def bound(
    network: Network,
    batches: Iterable[Batch],
    objective: Objective,
    spec: Spec,
    samples: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Bound:
    """Estimate the objective's bound on -log p of every row (exact objectives: compute it, with one pass).

    Each batch is noised ``samples`` times, and its rows share each draw of times out among themselves (one noise level
    in each stratum), so the error is far below that of independent draws. It is measured, not modelled: draws of a
    batch are independent of one another and of other batches, so Var = sum over batches of s^2 / samples, with s^2
    the variance of the batch's total among its draws: batches x (samples - 1) degrees of freedom in all.

    Args:
        seed: of the noise. Same seed and batches, same noise: compare checkpoints by the same seed.
    Raises:
        UserError: fewer than two samples of a random bound, whose error could not be told.
    """
    if callable(scoring := getattr(objective, "scoring", None)):
        objective = scoring()
    generator = torch.Generator().manual_seed(seed)
    rows: list[float] = []
    variance, tokens, size, is_bound, drawn = 0.0, 0, 0, False, 1
    with _evaluating(network):
        for batch in batches:
            batch = _to(batch, device)
            first = _once(network, objective, batch, spec, generator)
            draws = [first.nats.double().cpu()]
            if first.is_bound:
                if samples < 2:
                    raise UserError(f"a bound from {samples} sample has no error estimate.", "Use 2 samples or more.")
                is_bound, drawn = True, samples
                for _ in range(samples - 1):
                    draws.append(_once(network, objective, batch, spec, generator).nats.double().cpu())
                variance += float(torch.stack(draws).sum(1).var()) / samples
            rows += torch.stack(draws).mean(0).tolist()
            tokens += first.tokens
            size += int(batch.bytes.sum())
    return Bound(math.fsum(rows), math.sqrt(variance), tokens, size, is_bound, tuple(rows), drawn)


def spread(
    network: Network,
    batches: Iterable[Batch],
    objective: Objective,
    spec: Spec,
    samples: int = 4,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """How much the nats of these rows vary from one draw of noise to the next, as training draws it.

    The standard deviation of their sum, with each row's noise taken on its own. Clipped schedules are chosen by it
    (BD3-LM, arXiv:2503.09573, section 5).
    """
    generator = torch.Generator().manual_seed(seed)
    variance = 0.0
    with _evaluating(network):
        for batch in batches:
            batch = _to(batch, device)
            draws = [_once(network, objective, batch, spec, generator).nats.double() for _ in range(samples)]
            variance += float(torch.stack(draws).var(0).sum())
    return math.sqrt(variance)


def score(
    network: Network,
    prompt: Sequence[int],
    continuation: Sequence[int],
    objective: Objective,
    spec: Spec,
    samples: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
    size: int = 0,
) -> Bound:
    """-log p(continuation | prompt) in nats: exact, or a bound from about ``samples`` noise draws.

    Several copies of the row make a batch, so that its noise levels are stratified; batches are repeated for the error.

    Args:
        prompt: ids before the continuation, separator or beginning of text included, in the training format.
        continuation: ids to be scored; end-of-text included if ending there is to be counted, as it must be for
            a model that predicts its length.
        size: UTF-8 bytes of the continuation, for bits per byte.
    Raises:
        UserError: nothing to score.
    """
    if not continuation:
        raise UserError("the continuation to score is empty.", "Give at least one token.")
    length, given = len(prompt) + len(continuation), len(prompt)
    batch = Batch(
        ids=torch.tensor([[*prompt, *continuation]]),
        target=(torch.arange(length) >= given)[None],
        valid=torch.ones(1, length, dtype=torch.bool),
        prompt=torch.tensor([given]) if given else None,
        bytes=torch.tensor([size]),
    )
    whole = bound(network, [batch], objective, spec, 2, seed, device)
    if not whole.is_bound:
        return whole
    copies = max(1, min(samples // _REPEATS, _SCORE_TOKENS // length))
    repeats = max(2, math.ceil(samples / copies))
    whole = bound(network, [_repeat(batch, copies)], objective, spec, repeats, seed, device)
    nats, drawn = whole.nats / copies, copies * repeats
    return Bound(nats, whole.stderr / copies, len(continuation), size, True, (nats,), drawn)


_SCORE_TOKENS = 4096  # positions in one pass of ``score``
_REPEATS = 16  # passes of ``score``, so that its error is itself known to a fifth


def _once(network: Network, objective: Objective, batch: Batch, spec: Spec, generator: torch.Generator) -> LossTerms:
    prepared = objective.prepare(batch, spec, generator)
    return objective.loss(network(prepared.ask), prepared)


def _to(batch: Batch, device: torch.device | str) -> Batch:
    prompt = None if batch.prompt is None else batch.prompt.to(device)
    return Batch(batch.ids.to(device), batch.target.to(device), batch.valid.to(device), prompt, batch.bytes.to(device))


def _repeat(batch: Batch, copies: int) -> Batch:
    """A batch of one row, ``copies`` times over."""
    prompt = None if batch.prompt is None else batch.prompt.expand(copies)
    ids, target, valid = (part.expand(copies, -1) for part in (batch.ids, batch.target, batch.valid))
    return Batch(ids, target, valid, prompt, batch.bytes.expand(copies))


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    """No gradient and no dropout inside; the network's mode afterwards is what it was."""
    training = isinstance(network, nn.Module) and network.training
    if isinstance(network, nn.Module):
        network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if isinstance(network, nn.Module):
            network.train(training)


def _ratio(value: float, unit: float) -> float:
    """``value / unit``; not a number where there is no unit, such as bytes that nobody counted."""
    return value / unit if unit else math.nan
