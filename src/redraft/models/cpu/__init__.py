"""Networks in a form that is faster for inference on CPUs, one file per network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redraft.errors import UserError
from redraft.settings import Weights

if TYPE_CHECKING:
    from redraft.models.cpu.cross_attention import CpuCrossAttention
    from redraft.models.cpu.drafter import CpuDrafter
    from redraft.models.cpu.transformer import CpuTransformer

    CpuForm = CpuTransformer | CpuCrossAttention | CpuDrafter


def cpu_form(network: Any, weights: Weights = "float32") -> type[CpuForm] | None:
    """The CPU form of a network in its present state on this machine; None: there is none.

    Raises:
        UserError: weights other than float32 for a network without a CPU form.
    """
    from redraft.models.cpu.cross_attention import CpuCrossAttention
    from redraft.models.cpu.drafter import CpuDrafter
    from redraft.models.cpu.transformer import CpuTransformer

    forms: tuple[type[CpuForm], ...] = (CpuTransformer, CpuCrossAttention, CpuDrafter)
    for form in forms:
        if form.fits(network):
            return form
    if weights != "float32":
        raise UserError(
            f"weights = '{weights}' needs a float32 model on a CPU whose network has a CPU form.",
            "Leave weights at float32.",
        )
    return None
