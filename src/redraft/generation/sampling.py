"""Sample tokens from the predictions for a request."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.runtime import inverse_cdf, keyed_uniform
from redraft.types import Canvas, Output, Request


def remove_disallowed(request: Request, logits: Tensor) -> None:
    """Set the ids that a request disallows to -inf. Changes ``logits`` [N, V] in place."""
    ids = request.drawing.disallowed
    if ids is not None:
        disallowed = ids[(request.targets >= 0).nonzero()[:, 0]].to(logits.device)
        logits[(disallowed >= 0).nonzero()[:, 0], disallowed[disallowed >= 0]] = -torch.inf


def sample(canvas: Canvas, request: Request, log_p: Tensor) -> Output:
    """Sample a token at each target position by inverse CDF, from one uniform keyed by (seed, noise step, position).

    Temperature 0 is argmax. ``conf`` is the log-probability at temperature 1, before top-k and top-p.

    Args:
        log_p: [N, V].
    Raises:
        UserError: the network's predictions are not numbers.
    """
    rows, real = request.rows, request.targets >= 0
    conf, token = log_p.max(-1)
    warm = canvas.sampling.temperature[rows] > 0
    if bool(warm.any()):
        row = real.nonzero()[:, 0]
        flat = warm[row].nonzero()[:, 0]
        step = canvas.step[rows] if request.drawing.noise_step is None else request.drawing.noise_step
        uniform = keyed_uniform(canvas.seed[rows], step, request.targets.clamp(min=0))[real][flat]
        owner, device = rows[row[flat]], log_p.device
        here = flat.to(device)
        sampled = inverse_cdf(log_p[here], uniform.to(device), canvas.sampling.at(owner, device))
        token[here] = sampled
        conf[here] = log_p[here, sampled]
    token, conf = token.cpu(), conf.cpu()
    if np.isnan(conf.numpy()).any():  # samplers that rank by confidence would never finish
        raise UserError(
            "The network's predictions are not numbers: its training diverged, or its weights are damaged.",
            "Use another checkpoint.",
        )
    if request.targets.shape[1] == 1 and real.all():
        return Output(log_p, token[:, None], conf[:, None])
    tokens = torch.full(request.targets.shape, -1, dtype=torch.int64)
    confs = torch.full(request.targets.shape, -torch.inf)
    tokens[real], confs[real] = token, conf
    return Output(log_p, tokens, confs)
