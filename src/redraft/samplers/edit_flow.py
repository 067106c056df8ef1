"""Edit flow: insert, delete and substitute tokens by predicted rates, until no more edits are expected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from redraft.canvas import extent
from redraft.errors import UserError
from redraft.limits import MAX_SCALE, MAX_STEPS
from redraft.options import setting
from redraft.runtime import inverse_cdf, keyed_uniform, upload
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common
from redraft.types import DELETE, DRAFT, INSERT, PAD, SEALED, SET, Canvas, NoiseStream, Output, Request, Spec, Step

# Noise streams that decide where insertions happen, where other edits of which kind happen, and their tokens.
_INSERTIONS, _CHANGES, _TOKENS = NoiseStream.ORDER, NoiseStream.KIND, NoiseStream.CHOICE
_LEAST = math.log(0.05)  # smallest share of the edits that a leap leaves for later; the last leap would leave none


@dataclass(frozen=True)
class EditFlow(Sampler):
    """Sampling of Edit Flows (Havasi et al. 2025, arXiv:2506.09018). The rates lambda of the network are expected
    numbers of remaining edits (``objectives.edit``).

    ``order``:

    - surest: each of ``steps`` steps makes its share of the expected edits, ceil(sum of lambda / remaining steps),
      highest rates first, with at most one insertion and one other edit per position. A sequence is finished when less
      than ``stop`` edits are expected, or after twice ``steps`` steps. This rule is not in the paper; it aims at
      quality and does not sample from the model's distribution.
    - leap: the paper's tau-leap from t to s. A kind of edit with rate lambda happens with probability
      1 - ((1 - alpha(s)) / (1 - alpha(t)))^lambda, and an insertion happens independently of another edit.

    Tokens are drafts until the sequence is finished, because they may be replaced or deleted.
    """

    steps: int = setting(16, "Number of denoising steps.", least=1, most=MAX_STEPS)
    order: Literal["surest", "leap"] = setting("surest", "How the edits of a step are chosen.")
    stop: float = setting(0.5, "Expected number of edits below which a sequence is finished.", least=0, most=MAX_SCALE)

    retracts = True

    def start(self, canvas: Canvas, spec: Spec) -> Tensor:
        """[B] bool: finished rows."""
        if not spec.edits:
            raise UserError(
                "This sampler needs a diffusion model of family 'edit', which predicts rates of edits.",
                "Remove the sampler option to use the model's default.",
            )
        return torch.zeros_like(canvas.step, dtype=torch.bool)

    def plan(self, canvas: Canvas, state: Tensor, spec: Spec) -> list[Request]:
        targets = (canvas.open | canvas.gap) & (canvas.status != PAD)
        rows = (targets.any(1) & ~state).nonzero()[:, 0]
        if not len(rows):
            return []
        t = self._time(canvas.step[rows]).float() if spec.network.timed else None
        return [common.request(canvas, spec, rows, targets[rows], t)]

    def _time(self, step: Tensor) -> Tensor:
        return (1 - step.double() / self.steps).clamp(min=0)

    def apply(
        self, canvas: Canvas, state: Tensor, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[Tensor, Step]:
        request = requests[0]
        rows, step = request.rows, canvas.step[request.rows]
        edits = _Edits.read(canvas, request, outputs[0], spec)
        expected = edits.expected
        if self.order == "leap":
            insert, change = edits.leap(canvas, request, self._log_remaining(step, spec))
            done = step + 1 >= self.steps
        else:
            remaining = (self.steps - step).clamp(min=1)
            count = (expected / remaining).ceil().long().masked_fill(expected < self.stop, 0)
            best = common.best(torch.cat([edits.insert_conf, edits.change_conf], 1), count)
            insert, change = best.chunk(2, 1)
            done = (expected < self.stop) | (step + 1 >= 2 * self.steps)
        finished = state.clone()
        finished[rows] = done
        return finished, edits.step(canvas, request, insert, change, done)

    def _log_remaining(self, step: Tensor, spec: Spec) -> Tensor:
        """[R, 1] log of the share of the edits that remains after the step."""
        assert spec.family.schedule is not None
        noise_t, noise_s = (1 - spec.family.schedule.alpha(self._time(at)) for at in (step, step + 1))
        return (noise_s / noise_t).log().clamp(min=_LEAST)[:, None]


@dataclass(frozen=True)
class _Edits:
    """Rates of edits at the target positions, and sampled tokens, [R, W] each. Edits that can't be made have rate 0."""

    insert: Tensor  # float64, expected insertions before the position
    substitute: Tensor  # float64
    delete: Tensor  # float64
    insert_token: Tensor  # sampled token to insert
    insert_conf: Tensor  # log-rate of inserting it
    token: Tensor  # result of another edit: the token that replaces it, or -1 for a deletion
    change_conf: Tensor  # log-rate of that edit
    own: Tensor  # the current token
    open: Tensor  # bool: it may change
    other: Tensor  # sampled token that replaces it in a substitution

    @classmethod
    def read(cls, canvas: Canvas, request: Request, out: Output, spec: Spec) -> _Edits:
        assert out.log_z is not None
        v, where = spec.tokens.vocab_size, out.log_p.device
        real, at = request.targets >= 0, request.targets.clamp(min=0)
        own = canvas.ids[request.rows].gather(1, at)
        is_open, gap = (part[request.rows].gather(1, at) for part in (canvas.open, canvas.gap))
        may_grow = (canvas.limit > extent(canvas))[request.rows, None]
        rates = out.log_p + out.log_z[:, None]
        special = sorted({*spec.tokens.forbidden, spec.tokens.mask_id, spec.tokens.eos_id})
        excluded_ids = upload(torch.tensor(special), where)

        def allowed(log_rates: Tensor, where_allowed: Tensor) -> Tensor:
            excluded = upload(~where_allowed[real], where)[:, None]
            return log_rates.index_fill(1, excluded_ids, -torch.inf).masked_fill(excluded, -torch.inf)

        insert = allowed(rates[:, :v], gap & may_grow)
        substitute = allowed(rates[:, v : 2 * v], is_open).scatter(1, upload(own[real], where)[:, None], -torch.inf)
        delete = rates[:, 2 * v].masked_fill(upload(~(is_open & gap)[real], where), -torch.inf)

        insert_token, insert_conf = _sample_tokens(canvas, request, insert, 0)
        other_token, other_conf = _sample_tokens(canvas, request, substitute, 1)
        found = common.rectangles(
            request,
            (insert.logsumexp(1).exp(), 0.0),
            (substitute.logsumexp(1).exp(), 0.0),
            (delete.exp(), 0.0),
            (insert_token, -1),
            (insert_conf, -torch.inf),
            (torch.where(delete > other_conf, -1, other_token), -1),
            (torch.maximum(delete, other_conf), -torch.inf),
            (other_token, -1),
        )
        insert, substitute, delete, insert_token, insert_conf, token, change_conf, other = (
            part.double() if part.is_floating_point() else part for part in found
        )
        return cls(
            insert, substitute, delete, insert_token, insert_conf, token, change_conf, own, is_open & real, other
        )

    @property
    def expected(self) -> Tensor:
        """[R] expected number of remaining edits."""
        return (self.insert + self.substitute + self.delete).sum(1)

    def leap(self, canvas: Canvas, request: Request, log_remaining: Tensor) -> tuple[Tensor, Tensor]:
        """[R, W] bool: where a token is inserted, and where one is replaced or deleted. Sets ``token``.

        ``log_remaining`` [R, 1] is the log of the share of edits that remains after the step.
        """
        seed, noise_step, at = canvas.seed[request.rows], canvas.step[request.rows], request.targets.clamp(min=0)
        insert = keyed_uniform(seed, noise_step + _INSERTIONS, at) < -torch.expm1(self.insert * log_remaining)
        rate = self.substitute + self.delete
        uniform = keyed_uniform(seed, noise_step + _CHANGES, at)
        chance = -torch.expm1(rate * log_remaining)
        change = uniform < chance
        is_deletion = uniform * rate < chance * self.delete
        self.token.copy_(torch.where(is_deletion, -1, self.other))
        return insert, change

    def step(self, canvas: Canvas, request: Request, insert: Tensor, change: Tensor, done: Tensor) -> Step:
        """The step that makes these edits, and seals the tokens of rows that are ``done`` [R]."""
        status = torch.where(done, SEALED, DRAFT)
        token = torch.where(change, self.token, self.own)
        unchanged_conf = -(self.substitute + self.delete)  # log-probability of no change, per unit of log time
        conf = torch.where(change, self.change_conf.clamp(max=0), unchanged_conf)
        row, column = ((change | done[:, None]) & self.open).nonzero(as_tuple=True)
        kind = torch.where(token[row, column] < 0, DELETE, SET)
        new, gap = insert.nonzero(as_tuple=True)
        moves = bool((kind == DELETE).any()) or len(new) > 0
        return Step(
            row=request.rows[torch.cat([row, new])],
            pos=torch.cat([request.targets[row, column], request.targets[new, gap]]),
            token=torch.cat([token[row, column].clamp(min=0), self.insert_token[new, gap]]),
            status=status[torch.cat([row, new])],
            conf=torch.cat([conf[row, column], self.insert_conf[new, gap].clamp(max=0)]).float(),
            kind=torch.cat([kind, torch.full_like(new, INSERT)]) if moves else None,
        )


def _sample_tokens(canvas: Canvas, request: Request, log_rates: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    """A token per target position in proportion to its rate, by the row's ``Sampling``, and its log-rate, [N] each."""
    conf, token = log_rates.max(1)
    row, column = (request.targets >= 0).nonzero(as_tuple=True)
    warm = canvas.sampling.temperature[request.rows[row]] > 0
    if not bool(warm.any()):
        return token, conf
    warm &= conf.isfinite().cpu()
    flat = warm.nonzero()[:, 0]
    if not len(flat):
        return token, conf
    rows = request.rows[row[flat]]
    uniform = keyed_uniform(
        canvas.seed[request.rows], canvas.step[request.rows] + _TOKENS + (stream << 43), request.targets.clamp(min=0)
    )[row[flat], column[flat]]
    here = upload(flat, conf.device)
    sampled = inverse_cdf(log_rates[here], uniform, canvas.sampling.at(rows))
    token[here], conf[here] = sampled, log_rates[here, sampled]
    return token, conf
