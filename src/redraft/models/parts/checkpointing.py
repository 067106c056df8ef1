"""Activation checkpointing: activations of a block that are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "selective", "full"]
_LEAST_INNER = 128  # products over fewer numbers, such as those of adapters, cost less time than their result memory


def checkpointed(how: Checkpointing, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """The output [...] of a block, which keeps for its gradient:

    - ``none``: every activation that the gradient needs;
    - ``selective``: its input, the results of its large matrix products, and attention. Norms, rotations, activation
      functions and adapters run again (Korthikanti et al. 2022, arXiv:2205.05198), which takes few per cent more time;
    - ``full``: its input only. The whole block runs again (Chen et al. 2016, arXiv:1604.06174).
    """
    if how == "none":
        result: Tensor = block(*inputs)
    elif how == "full":
        result = checkpoint(block, *inputs, use_reentrant=False)
    else:
        contexts = partial(create_selective_checkpoint_contexts, _policy)
        result = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    return result


def _policy(context: Any, operation: Any, *args: Any, **options: Any) -> CheckpointPolicy:
    """Keep the results of fused attention and of matrix products over many numbers."""
    aten = torch.ops.aten
    if operation in (aten.mm.default, aten.addmm.default):
        keep = args[-1].shape[0] >= _LEAST_INNER
    else:
        keep = "scaled_dot_product" in str(operation) or "flex_attention" in str(operation)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
