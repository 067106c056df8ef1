"""How likely a text is under a model: exact for autoregressive models, an upper bound with its error for diffusion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from redraft.canvas import make_canvas
from redraft.decode import Loop, Method
from redraft.errors import UserError
from redraft.length import length_request
from redraft.types import Batch, Canvas, Forward, LossTerms, Network, Objective, Output, Prepared, Sampler, Spec, Step


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
    batch = one_row(prompt, continuation, size)
    length = len(prompt) + len(continuation)
    whole = bound(network, [batch], objective, spec, 2, seed, device)
    if not whole.is_bound:
        return whole
    copies = max(1, min(samples // _REPEATS, _SCORE_TOKENS // length))
    repeats = max(2, math.ceil(samples / copies))
    whole = bound(network, [_repeat(batch, copies)], objective, spec, repeats, seed, device)
    nats, drawn = whole.nats / copies, copies * repeats
    return Bound(nats, whole.stderr / copies, len(continuation), size, True, (nats,), drawn)


def one_row(prompt: Sequence[int], continuation: Sequence[int], size: int = 0) -> Batch:
    """A batch of one prompt and what follows it; ``size``: UTF-8 bytes of the latter.

    Raises:
        UserError: nothing follows.
    """
    if not continuation:
        raise UserError("the continuation to score is empty.", "Give at least one token.")
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
    device: torch.device | str = "cpu",
    size: int = 0,
) -> Bound:
    """-log p of a text longer than the network's context: windows of ``stride`` tokens, each given what precedes it.

    Every token but the first is counted once, under at most ``window`` - ``stride`` tokens before its window. A shorter
    stride takes more passes and gives every token more to go by.

    Args:
        ids: the document; the first id (beginning of text) is given.
        window: the network's context. stride: tokens counted in a window; 0 is half a window.
        size: UTF-8 bytes of the document, for bits per byte.
    Raises:
        UserError: nothing to score, or a stride that leaves no room for what precedes.
    """
    stride = stride or max(1, window // 2)
    if not 0 < stride < window:
        raise UserError(f"stride = {stride} must lie between 1 and {window - 1}.", "A window holds what precedes, too.")
    if len(ids) < 2:
        raise UserError("the text to score is empty.", "Give at least one token.")
    pieces = [(max(0, at + stride - window), at, min(at + stride, len(ids))) for at in range(1, len(ids), stride)]
    together = max(1, _ROLLING_TOKENS // window)
    batches = []
    for begin in range(0, len(pieces), together):
        part = pieces[begin : begin + together]
        width = max(end - first for first, _, end in part)
        columns, length = torch.arange(width), torch.tensor([end - first for first, _, end in part])
        known = torch.tensor([at - first for first, at, _ in part])
        rows = [[*ids[first:end], *[spec.pad_id] * (width - end + first)] for first, _, end in part]
        valid = columns < length[:, None]
        target = valid & (columns >= known[:, None])
        batches.append(Batch(torch.tensor(rows), target, valid, None, torch.zeros(len(part), dtype=torch.int64)))
    return replace(bound(network, batches, objective, spec, samples, seed, device), bytes=size)


@dataclass(frozen=True)
class Orders(Bound):
    """A likelihood by the chain rule in the orders that a sampler writes in."""

    mixture: tuple[float, ...]  # nats of each row, of the mean probability over the orders drawn: at most ``rows``


def under(
    network: Network, batches: Iterable[Batch], sampler: Sampler, spec: Spec, orders: int = 16, seed: int = 0
) -> Orders:
    """-log p of every row under the sampler itself: what it would write at temperature 1.

    The sampler runs as it would, and at the positions that it picks it is given the true tokens, whose
    log-probabilities are summed. Positions written in one pass are independent of each other, and count as such.

    - If positions follow from predictions alone, not from drawn tokens (``positions`` = distribution), that is the
      exact log-likelihood (DUEL, Turok et al. 2026, arXiv:2603.01367).
    - If they are noise (``positions`` = noise: any-order models, Uria et al. 2014, arXiv:1310.1757), p is the mean over
      orders. Each order drawn bounds it, E_order[-log p_order(x)] >= -log E_order[p_order(x)], and ``mixture`` is the
      latter with the orders drawn in place of the expectation: a tighter bound, in expectation.

    A predicted length counts; given the length, a closing end-of-text is certain.

    Raises:
        UserError: a sampler that decides by drawn tokens, or takes back what it wrote.
    """
    decides = getattr(sampler, "positions", "draw")
    if decides == "draw" or sampler.retracts or sampler.width > 1:
        raise UserError(
            "the likelihood of this sampler can't be told: it decides by the tokens that it has drawn.",
            "Take confidence with order margin, entropy, peak, left or random; entropy_bound; or first_hitting.",
        )
    draws = orders if decides == "noise" else 1
    rows: list[float] = []
    mixture: list[float] = []
    variance, tokens, size = 0.0, 0, 0
    with _evaluating(network):
        for batch in batches:
            length = _length_nats(network, batch, spec)
            first = seed + len(rows)
            found = torch.stack(  # [draws, rows]
                [length - _forced(network, batch, sampler, spec, first, draw) for draw in range(draws)]
            )
            rows += found.mean(0).tolist()
            mixture += (math.log(draws) - (-found).logsumexp(0)).tolist()
            variance += float(found.sum(1).var()) / draws if draws > 1 else 0.0
            tokens, size = tokens + int(batch.target.sum()), size + int(batch.bytes.sum())
    is_bound = decides == "noise"
    stderr = math.sqrt(variance) if draws > 1 else math.nan if is_bound else 0.0
    return Orders(math.fsum(rows), stderr, tokens, size, is_bound, tuple(rows), draws, tuple(mixture))


def _forced(network: Network, batch: Batch, sampler: Sampler, spec: Spec, seed: int, draw: int) -> Tensor:
    """[B] log p of the hidden tokens of each row, in the order that this seed gives."""
    hidden = batch.target.clone()
    if spec.length_head and batch.prompt is not None:  # the closing end-of-text is given away by the length
        seen = batch.target.cumsum(1)
        hidden &= ~((seen == seen[:, -1:]) & (batch.ids == spec.eos_id))
    length = batch.valid.sum(1).tolist()
    rows = [
        [None if free else token for token, free in zip(ids[:n], mask[:n], strict=True)]
        for ids, mask, n in zip(batch.ids.tolist(), hidden.tolist(), length, strict=True)
    ]
    prompts = [0] * len(rows) if batch.prompt is None else batch.prompt.tolist()
    seeds = [seed + row + _ORDER_SEEDS * draw for row in range(len(rows))]
    canvas = make_canvas(rows, prompts, spec, seeds=seeds)
    # An end-of-text within the text ends nothing here: every token counts.
    endless = spec if spec.length_head and batch.prompt is not None else replace(spec, eos_id=-1)
    forced = _Forced(sampler, batch.ids.cpu(), endless)
    for _ in Loop({"main": network}, Method(forced), replace(spec, eos_id=-1)).run(canvas):
        pass
    return canvas.score


@dataclass(frozen=True)
class _Forced:
    """A sampler that is told what to write."""

    sampler: Sampler
    truth: Tensor  # [B, L]
    spec: Spec

    exact = False
    retracts = False
    width = 1

    def start(self, canvas: Canvas, spec: Spec) -> Any:
        return self.sampler.start(canvas, self.spec)

    def plan(self, canvas: Canvas, state: Any, spec: Spec) -> list[Forward]:
        return self.sampler.plan(canvas, state, self.spec)

    def apply(
        self, canvas: Canvas, state: Any, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[Any, Step]:
        told = [self._tell(ask, out) for ask, out in zip(asks, outs, strict=True)]
        return self.sampler.apply(canvas, state, self.spec, asks, told)

    def _tell(self, ask: Forward, out: Output) -> Output:
        assert ask.rows is not None
        real = ask.want >= 0
        token, conf = out.token.clone(), out.conf.clone()
        token[real] = self.truth[ask.rows].gather(1, ask.want.clamp(min=0))[real]
        conf[real] = out.log_p.gather(1, token[real][:, None].to(out.log_p.device))[:, 0].to(conf)
        return Output(out.log_p, token, conf)


def _length_nats(network: Network, batch: Batch, spec: Spec) -> Tensor:
    """[B] -log p of each row's length by the length head; 0 where there is none."""
    if not spec.length_head or batch.prompt is None:
        return torch.zeros(len(batch.ids), dtype=torch.float64)
    ask = length_request(batch.ids, batch.prompt, spec, rows=torch.arange(len(batch.ids)))
    log_p = network(ask).float().log_softmax(-1).double().cpu()
    count = batch.target.sum(1).clamp(max=spec.vocab_size - 1).cpu()
    return -log_p.gather(1, count[:, None])[:, 0]


_ORDER_SEEDS = 0x0DDE5  # between the noise of one order and the next
_ROLLING_TOKENS = 8192  # positions in one pass of ``rolling``
_SCORE_TOKENS = 4096  # positions in one pass of ``score``
_REPEATS = 16  # passes of ``score``, so that its error is itself known to a fifth


def _once(network: Network, objective: Objective, batch: Batch, spec: Spec, generator: torch.Generator) -> LossTerms:
    prepared, _ = corrupt(objective, batch, spec, generator, {"main": network})
    return objective.loss(network(prepared.ask), prepared)


def corrupt(
    objective: Objective,
    batch: Batch,
    spec: Spec,
    generator: torch.Generator,
    networks: Mapping[str, Network],
    low: bool = False,
) -> tuple[Prepared, list[Forward]]:
    """What is learnt from a batch or scored, and the passes made on the way to it by objectives that look ``ahead``.

    ``low``: these run in bfloat16.
    """
    if not hasattr(objective, "ahead"):
        return objective.prepare(batch, spec, generator), []
    turns, looked = objective.ahead(batch, spec, generator), list[Forward]()
    answer: Tensor | None = None
    while True:
        try:
            ask = turns.send(answer)
        except StopIteration as finished:
            return finished.value, looked
        looked.append(ask)
        network = networks[ask.net]
        where = getattr(network, "device", ask.x.device).type
        with (
            nullcontext() if ask.learns else _evaluating(network, torch.no_grad()),
            torch.autocast(where, torch.bfloat16) if low else nullcontext(),
        ):
            answer = network(ask)


def _to(batch: Batch, device: torch.device | str) -> Batch:
    prompt = None if batch.prompt is None else batch.prompt.to(device)
    return Batch(batch.ids.to(device), batch.target.to(device), batch.valid.to(device), prompt, batch.bytes.to(device))


def _repeat(batch: Batch, copies: int) -> Batch:
    """A batch of one row, ``copies`` times over."""
    prompt = None if batch.prompt is None else batch.prompt.expand(copies)
    ids, target, valid = (part.expand(copies, -1) for part in (batch.ids, batch.target, batch.valid))
    return Batch(ids, target, valid, prompt, batch.bytes.expand(copies))


@contextmanager
def _evaluating(network: Network, gradless: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    """No gradient and no dropout inside; the network's mode afterwards is what it was."""
    training = isinstance(network, nn.Module) and network.training
    if isinstance(network, nn.Module):
        network.eval()
    try:
        with gradless or torch.inference_mode():
            yield
    finally:
        if isinstance(network, nn.Module):
            network.train(training)


def _ratio(value: float, unit: float) -> float:
    """``value / unit``; not a number where there is no unit, such as bytes that nobody counted."""
    return value / unit if unit else math.nan
