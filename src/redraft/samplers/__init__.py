"""One file = one rule for changing the canvas. Files that begin with an underscore wrap or serve the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redraft.types import Sampler


def unwrapped(sampler: Sampler) -> Sampler:
    """The sampler that was asked for, without what makes it write block by block or change the length."""
    while type(sampler).__module__.rpartition(".")[2].startswith("_") and hasattr(sampler, "inner"):
        sampler = sampler.inner
    return sampler
