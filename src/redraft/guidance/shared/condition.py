"""Removal of prompts, in training and for guidance."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from redraft.types import Batch, Spec


def without_prompt(ids: Tensor, inside: Tensor, spec: Spec) -> Tensor:
    """``ids`` [R, Q] with the tokens in ``inside`` [R, Q] bool masked, except markers (beginning of text, separator).

    The prompt keeps its length, so that the answer keeps its positions, and caches remain aligned.
    """
    markers = torch.tensor(spec.tokens.forbidden, dtype=ids.dtype, device=ids.device)
    return ids.masked_fill(inside & ~torch.isin(ids, markers), spec.tokens.mask_id)


def drop_prompts(batch: Batch, spec: Spec, rate: float, generator: torch.Generator) -> Batch:
    """Mask the prompt of each row with probability ``rate``, to train for classifier-free guidance.

    Ho and Salimans 2022 (arXiv:2207.12598). A rate of 0 uses no random numbers.
    """
    if rate == 0 or batch.prompt is None:
        return batch
    drop = torch.rand(len(batch.ids), generator=generator, device=generator.device).to(batch.ids.device) < rate
    inside = torch.arange(batch.ids.shape[1], device=batch.ids.device) < batch.prompt[:, None]
    return replace(batch, ids=without_prompt(batch.ids, inside & drop[:, None], spec))
