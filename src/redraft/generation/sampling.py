"""Sample tokens from the predictions for a request."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.runtime import download, gumbel_max, inverse_cdf, keyed_uniform, noise_keys, row_chunks, upload
from redraft.types import Canvas, Output, Request


def remove_disallowed(request: Request, logits: Tensor) -> None:
    """Set the ids that a request disallows to -inf. Changes ``logits`` [N, V] in place."""
    ids = request.drawing.disallowed
    if ids is not None:
        disallowed = ids[(request.targets >= 0).nonzero()[:, 0]]
        row, column = (disallowed >= 0).nonzero(as_tuple=True)
        at = upload(torch.stack([row, disallowed[row, column]]), logits.device)
        logits[at[0], at[1]] = -torch.inf


def log_probabilities(logits: Tensor) -> Tensor:
    """Logits [N, V] -> log-probabilities [N, V] float32. Float32 logits are overwritten if they are large.

    Large logits are converted some rows at a time, so that there is one copy of them in float32 and not three.
    """
    parts = list(row_chunks(logits))
    if len(parts) <= 1:
        return logits.float().log_softmax(-1)
    found = logits if logits.dtype == torch.float32 else torch.empty_like(logits, dtype=torch.float32)
    for part in parts:
        found[part] = logits[part].float().log_softmax(-1)
    return found


@dataclass(frozen=True)
class Draw:
    """The tokens [N] drawn at the target positions of a request and their log-probabilities [N], on the device."""

    token: Tensor
    conf: Tensor


def draw(canvas: Canvas, request: Request, log_p: Tensor) -> Draw:
    """Draw a token at each target position from random numbers keyed by (seed, noise step, position): by inverse CDF
    from one uniform, or, if ``Drawing.gumbel`` is set, from one Gumbel number for each token.

    Temperature 0 is argmax; a sampler's schedule (``Drawing.heat``) is a factor. ``conf`` is the log-probability at
    temperature 1, before top-k and top-p. The host does not wait for the device.

    Args:
        log_p: [N, V].
    """
    rows = request.rows
    conf, token = log_p.max(-1)
    warm = canvas.sampling.temperature[rows] > 0
    if not bool(warm.any()):
        return Draw(token, conf)
    real = request.targets >= 0
    row = real.nonzero()[:, 0]
    flat = warm[row].nonzero()[:, 0]
    step = canvas.step[rows] if request.drawing.noise_step is None else request.drawing.noise_step
    noise, choose = (noise_keys, gumbel_max) if request.drawing.gumbel else (keyed_uniform, inverse_cdf)
    noise_at = noise(canvas.seed[rows], step, request.targets.clamp(min=0))[real][flat]
    sampling = canvas.sampling.at(rows[row[flat]])
    if request.drawing.heat is not None:
        heat = request.drawing.heat.to(sampling.temperature)
        sampling = replace(sampling, temperature=sampling.temperature * heat[row[flat]])
    if len(flat) == len(row):
        token = choose(log_p, noise_at, sampling)
        return Draw(token, log_p.gather(1, token[:, None])[:, 0])
    here = upload(flat, log_p.device)
    sampled = choose(log_p[here], noise_at, sampling)
    token[here] = sampled
    conf[here] = log_p[here, sampled]
    return Draw(token, conf)


def arrange(request: Request, log_p: Tensor, token: Tensor, conf: Tensor) -> Output:
    """The output of a request from log-probabilities [N, V], and from the drawn ``token`` [N] and ``conf`` [N] on the
    host.

    Raises:
        UserError: the network's predictions are not numbers.
    """
    check_numbers(conf.numpy())  # samplers that rank by confidence would never finish
    real = request.targets >= 0
    if request.targets.shape[1] == 1 and real.all():
        return Output(log_p, token[:, None], conf[:, None])
    tokens = torch.full(request.targets.shape, -1, dtype=torch.int64)
    confs = torch.full(request.targets.shape, -torch.inf)
    tokens[real], confs[real] = token, conf
    return Output(log_p, tokens, confs)


def check_numbers(predicted: np.ndarray) -> None:
    """Check the predictions of a network.

    Raises:
        UserError: some are not numbers.
    """
    if np.isnan(predicted).any():
        raise UserError(
            "The network's predictions are not numbers: its training diverged, or its weights are damaged.",
            "Use another checkpoint.",
        )


def sample(canvas: Canvas, request: Request, log_p: Tensor) -> Output:
    """``draw`` and ``arrange``: sample a token at each target position from ``log_p`` [N, V].

    Raises:
        UserError: the network's predictions are not numbers.
    """
    drawn = draw(canvas, request, log_p)
    return arrange(request, log_p, *download(drawn.token, drawn.conf))
