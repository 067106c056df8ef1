"""What a text without its condition looks like: to a network in training, and to one that guides."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from redraft.types import Batch, Spec


def without_prompt(ids: Tensor, inside: Tensor, spec: Spec) -> Tensor:
    """The tokens marked in ``inside`` [R, Q] bool masked; markers (beginning of text, separator) stay where they are.

    The prompt keeps its length and positions, so that an answer stands where it stood, and caches stay in step.
    """
    markers = torch.tensor(spec.forbidden, dtype=ids.dtype, device=ids.device)
    return ids.masked_fill(inside & ~torch.isin(ids, markers), spec.mask_id)


def drop_prompts(batch: Batch, spec: Spec, rate: float, generator: torch.Generator) -> Batch:
    """Each row loses its prompt with probability ``rate``: what classifier-free guidance needs from training.

    Ho and Salimans 2022 (arXiv:2207.12598). A rate of 0 draws nothing.
    """
    if rate == 0 or batch.prompt is None:
        return batch
    drop = torch.rand(len(batch.ids), generator=generator, device=generator.device).to(batch.ids.device) < rate
    inside = torch.arange(batch.ids.shape[1], device=batch.ids.device) < batch.prompt[:, None]
    return replace(batch, ids=without_prompt(batch.ids, inside & drop[:, None], spec))
