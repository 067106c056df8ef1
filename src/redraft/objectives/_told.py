"""Self-conditioning: a masked model learns to use what it predicted before."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft import guesses
from redraft.objectives.masked import Masked
from redraft.types import Batch, Forward, Guess, LossTerms, Prepared, Spec


@dataclass(frozen=True)
class Told:
    """``inner``, with the network told its own first prediction (Chen et al. 2022, arXiv:2208.04202).

    In training a ``share`` of the rows gets a pass ahead, without gradient or dropout; what it predicts at the hidden
    positions goes with the request that is learnt from. The other rows are told nothing, as at the first step of
    sampling. The bound is that of two passes for every row, x_t -> guess -> p(x | x_t, guess): the guess follows from
    x_t, so that it is a bound like that of one.
    """

    inner: Masked
    share: float
    count: int  # likeliest tokens of a guess

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """The noisy batch; nothing is told yet."""
        return self.inner.prepare(batch, spec, generator)

    def scoring(self) -> Told:
        """Every row is told."""
        return replace(self, share=1.0)

    def ahead(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Generator[Forward, Tensor, Prepared]:
        """What is asked before, and what it is told (see ``types.Objective``)."""
        prepared = self.prepare(batch, spec, generator)
        rows = torch.arange(len(prepared.ask.x), device=prepared.ask.x.device)
        if self.share < 1:
            rows = rows[
                torch.rand(len(rows), generator=generator, device=generator.device).to(rows.device) < self.share
            ]
        if not len(rows):
            return prepared
        ask = _part(_tokens(prepared), rows)
        guess = self._guess((yield ask), prepared, ask, rows)
        return replace(prepared, ask=replace(prepared.ask, guess=guess))

    def _guess(self, answer: Tensor, prepared: Prepared, ask: Forward, rows: Tensor) -> Guess:
        """What a batch is told after the ``answer`` [N, V] to a request for its ``rows`` [R]; the others, nothing."""
        forbidden = prepared.extra["forbidden"].to(answer.device)
        log_p = answer.detach().float().index_fill(1, forbidden, -torch.inf).log_softmax(-1)
        token, weight = guesses.likeliest(log_p, self.count)
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        guess = guesses.blank(prepared.ask.x, token.shape[1])
        at = rows[row], ask.want[row, column]
        guess.token[at], guess.weight[at] = token.to(guess.token), weight.to(guess.weight)
        return guess

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """The loss to minimise, and the bound of each row in nats. The logits [N, V] are consumed."""
        return self.inner.loss(logits, prepared)


def _tokens(prepared: Prepared) -> Forward:
    """The request for the hidden tokens alone, and not for a length."""
    ask, is_length = prepared.ask, prepared.extra.get("is_length")
    if is_length is None:
        return ask
    token = ask.want >= 0
    token[token.clone()] = ~is_length.to(token.device)
    return replace(ask, want=torch.where(token, ask.want, -1))


def _part(ask: Forward, rows: Tensor) -> Forward:
    """Some rows of a request."""
    prompt, t = (None if part is None else part[rows] for part in (ask.prompt, ask.t))
    return replace(ask, x=ask.x[rows], pos=ask.pos[rows], want=ask.want[rows], prompt=prompt, t=t)
