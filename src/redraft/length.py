"""Length from the prompt: where a model was trained with a length head, how long the answer will be."""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.types import Forward, Spec


def length_request(ids: Tensor, prompt: Tensor, spec: Spec, rows: Tensor | None = None) -> Forward:
    """Ask for the distribution of output length, read at the last prompt position over ids 0, 1, 2 ...

    Args:
        ids: [R, L] rows that begin with their prompts. prompt: [R] prompt lengths.
    """
    width = int(prompt.max())
    positions = torch.arange(width)
    return Forward(
        x=ids[:, :width],
        pos=torch.where(positions < prompt[:, None], positions, -1),
        want=prompt[:, None] - 1,
        attend=spec.attend,
        prompt=prompt,
        t=torch.zeros(len(prompt)) if spec.timed else None,
        rows=rows,
    )


def best_lengths(logits: Tensor, most: int, count: int, feasible: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``count`` likeliest lengths in 1..most, likeliest first: [R, V] -> log-probabilities and lengths [R, count].

    A length counts the tokens of the answer including end-of-text (Mask-Predict's length beam, arXiv:1904.09324).

    Args:
        feasible: [most] bool, which lengths may be chosen; fewer than ``count`` give fewer columns.
    """
    scores, fewest = logits[:, 1 : most + 1].float(), min(count, most, logits.shape[1] - 1)
    if feasible is not None:
        allowed = feasible[: scores.shape[1]].to(scores.device)
        scores = scores.clamp(min=-1e30).masked_fill(~allowed, -torch.inf)  # one of these, however unlikely
        fewest = min(fewest, int(allowed.sum()))
    log_p, index = scores.log_softmax(-1).topk(fewest, -1)
    return log_p, index + 1
