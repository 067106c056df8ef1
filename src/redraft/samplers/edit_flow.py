"""Edit flow: insertions, deletions and substitutions by their rates, until none is expected any more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from redraft.canvas import extent
from redraft.errors import UserError
from redraft.runtime import inverse_cdf, keyed_uniform
from redraft.samplers import _open
from redraft.types import DELETE, DRAFT, INSERT, PAD, SEALED, SET, Canvas, Forward, Output, Spec, Step

# Streams of noise: where edits fall, of which kind, and which tokens they bring.
_FALLS, _KIND, _TOKENS = _open.ORDER_STREAM, 3 << 40, 5 << 40
_LEAST = math.log(0.05)  # least share of edits to be made that a leap leaves; the last one would leave none


@dataclass(frozen=True)
class EditFlow:
    """Sampling of Edit Flows (Havasi et al. 2025, arXiv:2506.09018). The rates lambda of the network are expected
    numbers of edits still to be made (``objectives.edit``).

    ``order``:

    - surest: of ``steps`` turns each makes its share of the edits expected, ceil(sum of lambda / turns left), those
      with the highest rates first, at most one insertion and one other edit a cell. A text is finished when less than
      ``stop`` edits are expected, or after twice ``steps`` turns. A rule of ours, for quality and not for samples.
    - leap: the paper's tau-leap from t to s: a kind of edit of a cell with rate lambda happens with probability
      1 - ((1 - alpha(s)) / (1 - alpha(t)))^lambda, an insertion and another edit independently of each other.

    What is written is a draft until the text is finished: any token may yet be replaced or go.
    """

    steps: int = 16
    order: Literal["surest", "leap"] = "surest"
    stop: float = 0.5

    exact = False
    retracts = True
    width = 1

    def start(self, canvas: Canvas, spec: Spec) -> Tensor:
        """[B] bool: finished rows."""
        if not spec.edits:
            raise UserError(
                "this sampler makes edits: it needs a diffusion model of family 'edit', which predicts their rates.",
                "Leave the sampler to the model.",
            )
        if self.steps < 1:
            raise UserError(f"steps = {self.steps} must be at least 1.")
        if self.stop < 0:
            raise UserError(f"stop = {self.stop} must be at least 0.")
        return torch.zeros_like(canvas.step, dtype=torch.bool)

    def plan(self, canvas: Canvas, state: Tensor, spec: Spec) -> list[Forward]:
        wanted = (canvas.open | canvas.gap) & (canvas.status != PAD)
        rows = (wanted.any(1) & ~state).nonzero()[:, 0]
        if not len(rows):
            return []
        t = self._time(canvas.step[rows]).float() if spec.timed else None
        return [_open.ask(canvas, spec, rows, wanted[rows], t)]

    def _time(self, turn: Tensor) -> Tensor:
        return (1 - turn.double() / self.steps).clamp(min=0)

    def apply(
        self, canvas: Canvas, state: Tensor, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[Tensor, Step]:
        ask = asks[0]
        assert ask.rows is not None
        rows, turn = ask.rows, canvas.step[ask.rows]
        edits = _Edits.read(canvas, ask, outs[0], spec)
        expected = edits.expected
        if self.order == "leap":
            insert, change = edits.leap(canvas, ask, self._left(turn, spec))
            done = turn + 1 >= self.steps
        else:
            share = (self.steps - turn).clamp(min=1)
            count = (expected / share).ceil().long().masked_fill(expected < self.stop, 0)
            best = _open.best(torch.cat([edits.insert_conf, edits.change_conf], 1), count)
            insert, change = best.chunk(2, 1)
            done = (expected < self.stop) | (turn + 1 >= 2 * self.steps)
        finished = state.clone()
        finished[rows] = done
        return finished, edits.step(canvas, ask, insert, change, done)

    def _left(self, turn: Tensor, spec: Spec) -> Tensor:
        """[R, 1] log of the share of the edits to be made that the turn leaves."""
        assert spec.schedule is not None
        now, then = (1 - spec.schedule.alpha(self._time(turn + more)) for more in (0, 1))
        return (then / now).log().clamp(min=_LEAST)[:, None]


@dataclass(frozen=True)
class _Edits:
    """What each wanted cell expects, [R, W] float64 each; edits that can't be made have rate 0."""

    insert: Tensor  # expected insertions before it
    substitute: Tensor
    delete: Tensor
    insert_token: Tensor  # the token drawn
    insert_conf: Tensor  # log-rate of inserting it
    token: Tensor  # what else may become of it: another token, or -1 where a deletion is the likelier
    change_conf: Tensor
    own: Tensor  # what stands there
    open: Tensor  # may it change?
    other: Tensor  # the token drawn to replace it

    @classmethod
    def read(cls, canvas: Canvas, ask: Forward, out: Output, spec: Spec) -> _Edits:
        assert ask.rows is not None and out.log_z is not None
        v, where = spec.vocab_size, out.log_p.device
        real, at = ask.want >= 0, ask.want.clamp(min=0)
        own = canvas.ids[ask.rows].gather(1, at)
        is_open, gap = (part[ask.rows].gather(1, at) for part in (canvas.open, canvas.gap))
        room = (canvas.limit > extent(canvas))[ask.rows, None]
        rates = out.log_p + out.log_z[:, None]
        barred = torch.tensor(sorted({*spec.forbidden, spec.mask_id, spec.eos_id}), device=where)

        def part(log_rates: Tensor, may: Tensor) -> Tensor:
            return log_rates.index_fill(1, barred, -torch.inf).masked_fill(~may[real].to(where)[:, None], -torch.inf)

        insert = part(rates[:, :v], gap & room)
        substitute = part(rates[:, v : 2 * v], is_open).scatter(1, own[real].to(where)[:, None], -torch.inf)
        delete = rates[:, 2 * v].masked_fill(~(is_open & gap)[real].to(where), -torch.inf)

        def fill(values: Tensor, empty: float) -> Tensor:
            return _open.rectangle(values.double() if values.is_floating_point() else values, ask, empty)

        first, first_conf = _drawn(canvas, ask, insert, 0)
        second, second_conf = _drawn(canvas, ask, substitute, 1)
        goes = delete > second_conf
        other = fill(second, -1)
        return cls(
            insert=fill(insert.logsumexp(1).exp(), 0.0),
            substitute=fill(substitute.logsumexp(1).exp(), 0.0),
            delete=fill(delete.exp(), 0.0),
            insert_token=fill(first, -1),
            insert_conf=fill(first_conf, -torch.inf),
            token=torch.where(fill(goes, 0) > 0, -1, other),
            change_conf=fill(torch.maximum(delete, second_conf), -torch.inf),
            own=own,
            open=is_open & real,
            other=other,
        )

    @property
    def expected(self) -> Tensor:
        """[R] edits still to be made."""
        return (self.insert + self.substitute + self.delete).sum(1)

    def leap(self, canvas: Canvas, ask: Forward, left: Tensor) -> tuple[Tensor, Tensor]:
        """[R, W] bool: where something is inserted, and where a cell is replaced or goes; ``left`` [R, 1] is the log of
        the share of edits that are not made yet."""
        assert ask.rows is not None
        seed, stamp, at = canvas.seed[ask.rows], canvas.step[ask.rows], ask.want.clamp(min=0)
        insert = keyed_uniform(seed, stamp + _FALLS, at) < -torch.expm1(self.insert * left)
        change = self.substitute + self.delete
        drawn = keyed_uniform(seed, stamp + _KIND, at)
        chance = -torch.expm1(change * left)
        falls = drawn < chance
        goes = drawn * change < chance * self.delete
        self.token.copy_(torch.where(goes, -1, self.other))
        return insert, falls

    def step(self, canvas: Canvas, ask: Forward, insert: Tensor, change: Tensor, done: Tensor) -> Step:
        """The step that makes these edits, and seals what stands in rows that are ``done`` [R]."""
        assert ask.rows is not None
        status = torch.where(done, SEALED, DRAFT)
        token = torch.where(change, self.token, self.own)
        stays = -(self.substitute + self.delete)  # log-probability of staying as it is, for a unit of log time
        conf = torch.where(change, self.change_conf.clamp(max=0), stays)
        row, column = ((change | done[:, None]) & self.open).nonzero(as_tuple=True)
        kind = torch.where(token[row, column] < 0, DELETE, SET)
        new, place = insert.nonzero(as_tuple=True)
        wide = bool((kind == DELETE).any()) or len(new) > 0
        return Step(
            row=ask.rows[torch.cat([row, new])],
            pos=torch.cat([ask.want[row, column], ask.want[new, place]]),
            token=torch.cat([token[row, column].clamp(min=0), self.insert_token[new, place]]),
            status=status[torch.cat([row, new])],
            conf=torch.cat([conf[row, column], self.insert_conf[new, place].clamp(max=0)]).float(),
            kind=torch.cat([kind, torch.full_like(new, INSERT)]) if wide else None,
        )


def _drawn(canvas: Canvas, ask: Forward, log_rates: Tensor, stream: int) -> tuple[Tensor, Tensor]:
    """A token for each cell in proportion to its rate, by the row's way of drawing, and its log-rate, [N] each."""
    assert ask.rows is not None
    conf, token = log_rates.max(1)
    row, column = (ask.want >= 0).nonzero(as_tuple=True)
    warm = (canvas.draw.temperature[ask.rows[row]] > 0) & conf.isfinite().cpu()
    flat = warm.nonzero()[:, 0]
    if not len(flat):
        return token, conf
    rows = ask.rows[row[flat]]
    uniform = keyed_uniform(
        canvas.seed[ask.rows], canvas.step[ask.rows] + _TOKENS + (stream << 43), ask.want.clamp(min=0)
    )[row[flat], column[flat]]
    here, where = flat.to(conf.device), conf.device
    how = (canvas.draw.temperature, canvas.draw.top_k, canvas.draw.top_p)
    drawn = inverse_cdf(log_rates[here], uniform.to(where), *(part[rows].to(where) for part in how))
    token[here], conf[here] = drawn, log_rates[here, drawn]
    return token, conf
