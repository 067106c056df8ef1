"""The likelihood of texts: exact for autoregressive models; for diffusion, an upper bound on -log p with its error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from redraft.canvas import make_canvas
from redraft.errors import UserError
from redraft.generation.loop import Loop, Method
from redraft.models.parts.backbone import Backbone
from redraft.objectives.base import Objective
from redraft.objectives.shared import vocabulary
from redraft.rollouts import evaluating, prepare_batch
from redraft.runtime import upload
from redraft.samplers.base import Sampler
from redraft.samplers.shared.common import length_request
from redraft.types import Batch, Canvas, LossTerms, Network, Output, Request, Spec, Step


@dataclass(frozen=True)
class Bound:
    """Negative log-likelihood of some rows: the exact value, or an estimate of an upper bound on it."""

    nats: float  # sum over all rows
    stderr: float  # Monte-Carlo standard error of ``nats``; it does not include the choice of rows
    tokens: int
    bytes: int
    is_bound: bool  # False: exact, and stderr is 0
    rows: tuple[float, ...]  # nats of each row, in order
    samples: int  # noise samples per row

    @property
    def nats_per_token(self) -> float:
        return _ratio(self.nats, self.tokens)

    @property
    def nats_per_token_stderr(self) -> float:
        return _ratio(self.stderr, self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte; comparable between tokenizers."""
        return _ratio(self.nats, self.bytes * math.log(2))

    @property
    def bits_per_byte_stderr(self) -> float:
        return _ratio(self.stderr, self.bytes * math.log(2))


@dataclass(frozen=True)
class Scored:
    """The negative log-likelihood of the rows of one batch, or its bound."""

    nats: tuple[float, ...]  # of each row, in order
    variance: float  # of their sum over the noise, of the mean over samples; 0 if exact
    tokens: int
    bytes: int
    is_bound: bool

    def numbers(self) -> list[float]:
        """Plain numbers, of which ``of_numbers`` makes it again."""
        return [*self.nats, self.variance, float(self.tokens), float(self.bytes), float(self.is_bound)]

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> Self:
        """What ``numbers`` returned."""
        *nats, variance, tokens, size, is_bound = numbers
        return cls(tuple(nats), variance, int(tokens), int(size), is_bound > 0)


def bound(
    network: Network,
    batches: Iterable[Batch],
    objective: Objective,
    spec: Spec,
    samples: int = 4,
    seed: int = 0,
    bfloat16: bool = False,
) -> Bound:
    """Estimate the objective's bound on -log p of every row. Exact objectives compute the value in one pass.

    Each batch is noised ``samples`` times. Noise levels are stratified over the rows of a batch (one level in each
    stratum), so the error is far below that of independent samples. The error is measured: samples of a batch are
    independent of each other and of other batches, so Var = sum over batches of s^2 / samples, where s^2 is the
    variance of the batch's total over its samples. This has batches x (samples - 1) degrees of freedom.

    Args:
        seed: seed of the noise. Equal seeds and batches give equal noise, so compare checkpoints with one seed.
        bfloat16: compute in bfloat16 (autocast). The batches are on the host.
    Raises:
        UserError: fewer than two samples of a random bound, which have no error estimate.
    """
    with evaluating(network):
        parts = [
            scored(network, batch, objective, spec, samples, (seed, number), bfloat16)
            for number, batch in enumerate(batches)
        ]
    return joined(parts, samples)


def scored(
    network: Network,
    batch: Batch,
    objective: Objective,
    spec: Spec,
    samples: int,
    key: tuple[int, int],
    bfloat16: bool = False,
) -> Scored:
    """One batch of ``bound``, in ``rollouts.evaluating``. Its noise depends on ``key``: a seed, and the batch's number.

    Raises:
        UserError: as for ``bound``.
    """
    objective = objective.scoring()
    state = np.random.SeedSequence(key).generate_state(1, np.uint64) >> np.uint64(1)
    generator = torch.Generator().manual_seed(int(state[0]))
    first = _once(network, objective, batch, spec, generator, bfloat16)
    found = [first.nats]
    if first.is_bound:
        if samples < 2:
            raise UserError(f"A bound from {samples} sample has no error estimate.", "Use 2 samples or more.")
        found += [_once(network, objective, batch, spec, generator, bfloat16).nats for _ in range(samples - 1)]
    nats = torch.stack(found).cpu().double()  # the host waits once per batch
    variance = float(nats.sum(1).var()) / samples if first.is_bound else 0.0
    return Scored(tuple(nats.mean(0).tolist()), variance, first.tokens, int(batch.bytes.sum()), first.is_bound)


def joined(parts: Sequence[Scored], samples: int) -> Bound:
    """The likelihood of all rows of some batches."""
    rows = tuple(nats for part in parts for nats in part.nats)
    is_bound = any(part.is_bound for part in parts)
    stderr = math.sqrt(math.fsum(part.variance for part in parts))
    tokens, size = sum(part.tokens for part in parts), sum(part.bytes for part in parts)
    return Bound(math.fsum(rows), stderr, tokens, size, is_bound, rows, samples if is_bound else 1)


def loss_std(
    network: Network,
    batches: Iterable[Batch],
    objective: Objective,
    spec: Spec,
    samples: int = 4,
    seed: int = 0,
    bfloat16: bool = False,
) -> float:
    """Standard deviation of the sum of these rows' losses over the noise of training, in nats.

    The variances of the rows are added, without covariances. Clipped schedules are selected by this value (BD3-LM,
    arXiv:2503.09573, section 5).
    """
    generator = torch.Generator().manual_seed(seed)
    variance = 0.0
    with evaluating(network):
        for batch in batches:
            found = [_once(network, objective, batch, spec, generator, bfloat16).nats for _ in range(samples)]
            variance += float(torch.stack(found).cpu().double().var(0).sum())
    return math.sqrt(variance)


def score(
    network: Network,
    prompt: Sequence[int],
    continuation: Sequence[int],
    objective: Objective,
    spec: Spec,
    samples: int = 128,
    seed: int = 0,
    size: int = 0,
) -> Bound:
    """-log p(continuation | prompt) in nats: exact, or a bound from about ``samples`` noise samples.

    A batch contains several copies of the row, so that noise levels are stratified. Several batches give the error.

    Args:
        prompt: ids before the continuation in the training format, with the separator or beginning of text.
        continuation: ids to score. It includes end-of-text if the end of the text counts, which is required for a
            model that predicts its length.
        size: UTF-8 bytes of the continuation, for bits per byte.
    Raises:
        UserError: the continuation is empty.
    """
    batch = one_row(prompt, continuation, size)
    length = len(prompt) + len(continuation)
    found = bound(network, [batch], objective, spec, 2, seed)
    if not found.is_bound:
        return found
    copies = max(1, min(samples // _REPEATS, _SCORE_TOKENS // length))
    repeats = max(2, math.ceil(samples / copies))
    found = bound(network, [_repeat(batch, copies)], objective, spec, repeats, seed)
    nats = found.nats / copies
    return Bound(nats, found.stderr / copies, len(continuation), size, True, (nats,), copies * repeats)


def one_row(prompt: Sequence[int], continuation: Sequence[int], size: int = 0) -> Batch:
    """A batch of one prompt and its continuation of ``size`` UTF-8 bytes.

    Raises:
        UserError: the continuation is empty.
    """
    if not continuation:
        raise UserError("The continuation to score is empty.", "Give at least one token.")
    length, given = len(prompt) + len(continuation), len(prompt)
    return Batch(
        ids=torch.tensor([[*prompt, *continuation]]),
        target=(torch.arange(length) >= given)[None],
        valid=torch.ones(1, length, dtype=torch.bool),
        prompt=torch.tensor([given]) if given else None,
        bytes=torch.tensor([size]),
    )


def rolling(
    network: Network,
    ids: Sequence[int],
    objective: Objective,
    spec: Spec,
    window: int,
    stride: int = 0,
    samples: int = 4,
    seed: int = 0,
    size: int = 0,
) -> Bound:
    """-log p of a text longer than the network's context, in windows of ``stride`` tokens after their left context.

    Every token but the first is counted once, given at most ``window`` - ``stride`` tokens before its window. A shorter
    stride takes more passes and gives every token more context.

    Args:
        ids: the document; the first id (beginning of text) is given.
        window: the network's context. stride: tokens counted in a window; 0 is half a window.
        size: UTF-8 bytes of the document, for bits per byte.
    Raises:
        UserError: the text is empty, or the stride leaves no room for context.
    """
    stride = stride or max(1, window // 2)
    if not 0 < stride < window:
        raise UserError(f"stride = {stride} must lie between 1 and {window - 1}.", "A window also needs context.")
    if len(ids) < 2:
        raise UserError("The text to score is empty.", "Give at least one token.")
    # First token of the context, first counted token, and one past the last.
    windows = [(max(0, at + stride - window), at, min(at + stride, len(ids))) for at in range(1, len(ids), stride)]
    batch_size = max(1, _ROLLING_TOKENS // window)
    batches = []
    for begin in range(0, len(windows), batch_size):
        part = windows[begin : begin + batch_size]
        width = max(end - first for first, _, end in part)
        columns, length = torch.arange(width), torch.tensor([end - first for first, _, end in part])
        context = torch.tensor([at - first for first, at, _ in part])
        rows = [[*ids[first:end], *[spec.tokens.pad_id] * (width - end + first)] for first, _, end in part]
        valid = columns < length[:, None]
        target = valid & (columns >= context[:, None])
        batches.append(Batch(torch.tensor(rows), target, valid, None, torch.zeros(len(part), dtype=torch.int64)))
    return replace(bound(network, batches, objective, spec, samples, seed), bytes=size)


@dataclass(frozen=True)
class SamplerBound(Bound):
    """A likelihood by the chain rule, in the orders in which a sampler generates."""

    mixture: tuple[float, ...]  # nats of each row, from its mean probability over the sampled orders; at most ``rows``


def sampler_likelihood(
    network: Network, batches: Iterable[Batch], sampler: Sampler, spec: Spec, orders: int = 16, seed: int = 0
) -> SamplerBound:
    """-log p of every row under the distribution that the sampler generates from at temperature 1.

    The sampler runs, and the true tokens are written at the positions that it selects. Their log-probabilities are
    summed. Positions written in one pass are sampled independently of each other, and count so. A predicted length is
    part of the likelihood; given the length, the final end-of-text is certain.

    - If the positions depend on predictions only and not on sampled tokens (``order_by`` is distribution), this is the
      exact log-likelihood (DUEL, Turok et al. 2026, arXiv:2603.01367).
    - If they are random (``order_by`` is noise: any-order models, Uria et al. 2014, arXiv:1310.1757), p is the mean
      over orders. Sampled orders give a bound, E_order[-log p_order(x)] >= -log E_order[p_order(x)]. ``mixture`` is the
      right-hand side with the mean over the sampled orders: a tighter bound, in expectation.

    Raises:
        UserError: the sampler selects positions by sampled tokens, or may change tokens after it wrote them.
    """
    order_by = sampler.order_by
    if order_by == "samples" or sampler.retracts or sampler.width > 1:
        raise UserError(
            "The likelihood under this sampler can't be computed, because its order depends on sampled tokens.",
            "Use confidence with order margin, entropy, peak, left or random; entropy_bound; or first_hitting.",
        )
    count = orders if order_by == "noise" else 1
    rows: list[float] = []
    mixture: list[float] = []
    variance, tokens, size = 0.0, 0, 0
    with evaluating(network):
        for batch in batches:
            length = _length_nats(network, batch, spec)
            first = seed + len(rows)
            nats = torch.stack(  # [orders, rows]
                [length - _forced(network, batch, sampler, spec, first, order) for order in range(count)]
            )
            rows += nats.mean(0).tolist()
            mixture += (math.log(count) - (-nats).logsumexp(0)).tolist()
            variance += float(nats.sum(1).var()) / count if count > 1 else 0.0
            tokens, size = tokens + int(batch.target.sum()), size + int(batch.bytes.sum())
    is_bound = order_by == "noise"
    stderr = math.sqrt(variance) if count > 1 else math.nan if is_bound else 0.0
    return SamplerBound(math.fsum(rows), stderr, tokens, size, is_bound, tuple(rows), count, tuple(mixture))


def _forced(network: Network, batch: Batch, sampler: Sampler, spec: Spec, seed: int, order: int) -> Tensor:
    """[B] log p of the hidden tokens of each row, in the order of this seed."""
    hidden = batch.target.clone()
    if spec.network.length_head and batch.prompt is not None:  # the length determines the final end-of-text
        count = batch.target.cumsum(1)
        hidden &= ~((count == count[:, -1:]) & (batch.ids == spec.tokens.eos_id))
    length = batch.valid.sum(1).tolist()
    rows = [
        [None if free else token for token, free in zip(ids[:n], mask[:n], strict=True)]
        for ids, mask, n in zip(batch.ids.tolist(), hidden.tolist(), length, strict=True)
    ]
    prompts = [0] * len(rows) if batch.prompt is None else batch.prompt.tolist()
    seeds = [seed + row + _ORDER_SEEDS * order for row in range(len(rows))]
    canvas = make_canvas(rows, prompts, spec, seeds=seeds)
    # An end-of-text token must not end a row here, because every token counts.
    sampler_spec = spec if spec.network.length_head and batch.prompt is not None else spec.with_tokens(eos_id=-1)
    forced = _TeacherForced(sampler, batch.ids.cpu(), sampler_spec)
    for _ in Loop({"main": network}, Method(forced), spec.with_tokens(eos_id=-1)).run(canvas):
        pass
    return canvas.score


@dataclass(frozen=True)
class _TeacherForced(Sampler):
    """A sampler that selects positions, with the true tokens in place of sampled ones."""

    sampler: Sampler
    truth: Tensor  # [B, L]
    spec: Spec

    def start(self, canvas: Canvas, spec: Spec) -> Any:
        return self.sampler.start(canvas, self.spec)

    def plan(self, canvas: Canvas, state: Any, spec: Spec) -> list[Request]:
        return self.sampler.plan(canvas, state, self.spec)

    def apply(
        self, canvas: Canvas, state: Any, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[Any, Step]:
        true = [self._with_truth(request, out) for request, out in zip(requests, outputs, strict=True)]
        return self.sampler.apply(canvas, state, self.spec, requests, true)

    def _with_truth(self, request: Request, out: Output) -> Output:
        """The output with the true tokens and their log-probabilities."""
        real = request.targets >= 0
        token, conf = out.token.clone(), out.conf.clone()
        token[real] = self.truth[request.rows].gather(1, request.targets.clamp(min=0))[real]
        conf[real] = out.log_p.gather(1, upload(token[real], out.log_p.device)[:, None])[:, 0].to(conf)
        return Output(out.log_p, token, conf)


def _length_nats(network: Network, batch: Batch, spec: Spec) -> Tensor:
    """[B] -log p of each row's length by the length head; 0 without one."""
    if not spec.network.length_head or batch.prompt is None:
        return torch.zeros(len(batch.ids), dtype=torch.float64)
    request = length_request(batch.ids, batch.prompt, spec, rows=torch.arange(len(batch.ids)))
    log_p = network(request).float().log_softmax(-1).cpu().double()
    count = batch.target.sum(1).clamp(max=spec.tokens.vocab_size - 1).cpu()
    return -log_p.gather(1, count[:, None])[:, 0]


_ORDER_SEEDS = 0x0DDE5  # difference between the seeds of consecutive orders
_ROLLING_TOKENS = 8192  # positions in one pass of ``rolling``
_SCORE_TOKENS = 4096  # positions in one pass of ``score``
_REPEATS = 16  # batches of ``score``; they give its standard error to about a fifth


def _once(
    network: Network, objective: Objective, batch: Batch, spec: Spec, generator: torch.Generator, bfloat16: bool
) -> LossTerms:
    prepared, _ = prepare_batch(objective, batch, spec, generator, {"main": network}, bfloat16)
    where = network.device if isinstance(network, Backbone) else batch.ids.device
    return vocabulary.evaluate(network, objective, prepared.to(where), bfloat16)


def _repeat(batch: Batch, copies: int) -> Batch:
    """A batch of ``copies`` copies of its one row."""
    prompt = None if batch.prompt is None else batch.prompt.expand(copies)
    ids, target, valid = (part.expand(copies, -1) for part in (batch.ids, batch.target, batch.valid))
    return Batch(ids, target, valid, prompt, batch.bytes.expand(copies))


def _ratio(value: float, unit: float) -> float:
    """``value / unit``, or not a number if ``unit`` is 0, such as an unknown number of bytes."""
    return value / unit if unit else math.nan
