"""The model that a drafter was trained for: its name, and a fingerprint by which another one is recognised."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from redraft.errors import UserError
from redraft.models.parts.backbone import Backbone

_SAMPLE = 1 << 14  # numbers of a tensor that the fingerprint depends on


@dataclass(frozen=True)
class Target:
    """The autoregressive model whose hidden states a drafter reads."""

    model: str  # name or path, as ``loading.stable_name``
    fingerprint: str

    def check(self, network: Backbone, where: str) -> None:
        """Check that a network is the target's; ``where`` names the drafter.

        Raises:
            UserError: it is another one, or its weights are in float16.
        """
        if network.dtype == torch.float16:
            raise UserError(
                "A drafter can't recognise its target in float16.", "Use --dtype bfloat16, or --dtype float32."
            )
        if fingerprint(network) != self.fingerprint:
            raise UserError(
                f"{where} was trained for '{self.model}', and this model has other weights.",
                "Use the model that it was trained for, or train a drafter for this one: "
                "redraft finetune --family drafter --from MODEL.",
            )


def fingerprint(network: Backbone) -> str:
    """A hash of the names, the shapes and a sample of the weights, rounded to bfloat16.

    It is the same in float32 and bfloat16, on any device.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in sorted(network.named_parameters()):
        flat = weight.detach().flatten()
        part = flat[:: max(1, -(-len(flat) // _SAMPLE))].to(torch.bfloat16).cpu()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(part.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
