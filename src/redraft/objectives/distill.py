"""Few-step distillation: in one pass, predict what a frozen copy of the model reaches in several."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.objectives import _noise as noise
from redraft.objectives import _times as times
from redraft.objectives._cross_entropy import per_row
from redraft.objectives.masked import Masked, choose, size_of
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec


@dataclass(frozen=True)
class Distill(Masked):
    """Self-distillation through time (SDTT, Deschenaux & Gulcehre 2024, arXiv:2410.21035) of a masked model.

    The teacher, the checkpoint that training began with, fills what is hidden in several passes, each of which writes
    where it is surest. Position i is written in pass k(i), by the prediction p_i given all that passes 1 .. k(i) - 1
    have written. The student sees none of that, and learns to predict it at once:

        loss = mean over hidden i of KL(p_i(. | x_k(i)) || q_i(. | x_t))

    and the same for the length head. With one pass of the teacher, a student that is its teacher has loss 0.

    Fields:
        teacher_steps: passes in which the teacher writes a whole answer; a part of one takes as many fewer.
        text: whose answer is around the hidden part. ``teacher``: its own, written from nothing, so that student and
            teacher meet the texts that sampling meets, and one answer to each prompt instead of the many in the data
            (sequence-level distillation, Kim & Rush 2016, arXiv:1606.07947). ``data``: the true one, as in SDTT.
        order: where the teacher is surest, or anywhere (``random``, as in SDTT).

    Scored by the plain bound of the data, which is not what is learnt here: it rises.
    """

    teacher_steps: int = 8
    text: Literal["teacher", "data"] = "teacher"
    order: Literal["confidence", "random"] = "confidence"

    teacher = True  # the frozen network is wanted (see ``types.Objective``)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_steps < 1:
            raise UserError(f"objective distill: teacher_steps = {self.teacher_steps} must be at least 1.")

    def scoring(self) -> Masked:
        return self.plain()

    def ahead(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Generator[Forward, Tensor, Prepared]:
        """What training asks and learns (see ``types.Objective``)."""
        if self.steps or spec.timed or self.complementary:
            raise UserError("distillation takes none of steps, timed and complementary.", "Leave them out.")
        schedule, where = noise.stretched(spec), batch.ids.device
        can = noise.noisable(batch, spec)
        t = self.low + (self.high - self.low) * times.continuous(len(can), generator, where)
        count = can.sum(1)
        size = size_of(1 - schedule.alpha(t), count)
        hidden = choose(can, size, generator)
        weight = -schedule.dalpha(t) * count / size.clamp(min=1)
        opened = can if self.text == "teacher" else hidden
        begun = self.request(batch, spec, opened, weight, t)
        text, told = yield from self._written(begun, opened, -(-count // self.teacher_steps), generator)
        prepared = self.request(replace(batch, ids=text), spec, hidden, weight, t)
        learnt = (prepared.ask.want >= 0)[begun.ask.want >= 0]
        return replace(prepared, extra={**prepared.extra, "told": told[learnt]})

    def _written(
        self, begun: Prepared, opened: Tensor, pace: Tensor, generator: torch.Generator
    ) -> Generator[Forward, Tensor, tuple[Tensor, Tensor]]:
        """Let the teacher write at ``opened`` [B, L], ``pace`` [B] tokens a pass.

        Returns:
            [B, L] the text; [N, V] the log-probabilities that it was written by, in the order of what ``begun`` wants.
            Of a length that is wanted, too, they are those of the first pass.
        """
        ask, forbidden = replace(begun.ask, net="teacher"), begun.extra["forbidden"]
        x, left, wanted = ask.x.clone(), opened, ask.want >= 0
        place = (wanted.flatten().cumsum(0) - 1).view_as(wanted)
        told = _normal((yield ask), forbidden, opened[wanted])
        log_p = told[opened[wanted]]
        while True:
            conf, token = log_p.max(-1)
            if self.order == "random":
                conf = torch.rand(len(conf), generator=generator, device=generator.device).to(conf)
            score = torch.full(left.shape, -torch.inf, device=conf.device).masked_scatter(left, conf)
            rank = score.sort(dim=1, descending=True, stable=True).indices.argsort(1)
            now = left & (rank < pace[:, None])
            told[place[now]], x[now] = log_p[now[left]], token[now[left]]
            left = left & ~now
            if not bool(left.any()):
                return x, told
            answer = yield replace(ask, x=x.clone(), want=torch.where(left, ask.pos, -1))
            log_p = _normal(answer, forbidden)

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """The divergence from the teacher where there was one; else the bound."""
        extra = prepared.extra
        if "told" not in extra:
            return super().loss(logits, prepared)
        told, is_length = extra["told"], extra.get("is_length")
        log_q = _normal(logits, extra["forbidden"], None if is_length is None else ~is_length)
        p = told.exp()
        divergence = (p * (told - log_q).masked_fill(p == 0, 0.0)).sum(1)
        return LossTerms(
            loss=(divergence * prepared.weight).sum() / max(prepared.tokens, 1),
            nats=per_row(divergence * extra["bound"], prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=False,
        )


def _normal(logits: Tensor, forbidden: Tensor, token: Tensor | None = None) -> Tensor:
    """[N, V] log-probabilities without the forbidden ids, where a ``token`` [N] is asked for (None: everywhere)."""
    barred = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device).index_fill_(0, forbidden, True)
    everywhere = barred if token is None else barred & token[:, None]
    return logits.float().masked_fill(everywhere, -torch.inf).log_softmax(-1)
