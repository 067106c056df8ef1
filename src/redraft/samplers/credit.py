"""Credit: a token that was the likeliest for several passes is written at lower confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_SCALE
from redraft.options import setting
from redraft.runtime import upload
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class CreditState:
    """Credit of every token at every position."""

    credit: Tensor | None  # [B, L, V], on the device; None: zeros


@dataclass(frozen=True)
class Credit(Sampler):
    """CreditDecoding (2025, arXiv:2510.06133; dInfer, arXiv:2510.08666).

    At each pass the credit of every token decays, and the likeliest token v* of a position gains credit:

        C_v <- decay C_v + [v = v*] p_v^gain,        p' = softmax(log p_v + strength log(1 + C_v))

    All positions with p'(x) > ``threshold`` are written, and always the most confident one. The right token is often
    ranked first several passes before its probability is high; with ``gain`` below 1 such early predictions count
    nearly as much as confident ones. At temperature 0 the likeliest token under p' is written. A sampled token is
    unchanged, and its p' is compared with the threshold. ``block`` as in ``Confidence``. The state takes 4 V bytes per
    position.
    """

    threshold: float = setting(0.9, "Confidence above which a position is written.", above=0, most=1)
    strength: float = setting(0.7, "Weight of the credit.", least=0, most=MAX_SCALE)
    decay: float = setting(0.8, "Share of the credit that remains after a pass.", least=0, below=1)
    gain: float = setting(0.2, "Power of the probability that a token gains as credit.", above=0, most=1)
    block: int = block_option()

    tries = {"threshold": (0.5, 0.7, 0.9), "strength": (0.35, 0.7, 1.4)}

    def start(self, canvas: Canvas, spec: Spec) -> CreditState:
        common.check_diffusion(spec)
        return CreditState(None)

    def plan(self, canvas: Canvas, state: CreditState, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: CreditState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[CreditState, Step]:
        request, out = requests[0], outputs[0]
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        log_p, where = out.log_p.float(), out.log_p.device
        all_credit = state.credit  # changed in place: it is too large to copy at every pass
        if all_credit is None:
            all_credit = log_p.new_zeros(*canvas.ids.shape, log_p.shape[1])
        at = tuple(upload(torch.stack([request.rows[row], request.targets[row, column]]), where))
        peak, likeliest = log_p.max(-1)
        credit = self.decay * all_credit[at]
        credit.scatter_add_(1, likeliest[:, None], (self.gain * peak).exp()[:, None])
        all_credit[at] = credit
        raised = (log_p + self.strength * torch.log1p(credit)).log_softmax(-1)
        greedy = canvas.sampling.temperature[request.rows][row] == 0
        token = torch.where(upload(greedy, where), raised.argmax(-1), upload(out.token[row, column], where))
        raised_conf, conf = (values.gather(1, token[:, None])[:, 0] for values in (raised, log_p))
        raised_conf, tokens, confs = common.rectangles(
            request, (raised_conf, -torch.inf), (token, -1), (conf.to(out.conf.dtype), -torch.inf)
        )
        chosen_out = Output(out.log_p, tokens, confs)
        best = common.best(raised_conf, (request.targets >= 0).any(1).long())
        chosen = (raised_conf > math.log(self.threshold)) | best
        return CreditState(all_credit), common.write(request, chosen_out, chosen)
