"""DiffusionGemma (transformers): not supported yet. The suite checks that the checkpoint is refused by name."""

from __future__ import annotations

from collections.abc import Iterator

from redraft.errors import UserError
from redraft.parity.reference import Check, Reference, Suite


def checks(reference: Reference) -> Iterator[Check]:
    """The checkpoint is refused, with its name."""
    try:
        reference.load()
        said = ""
    except UserError as error:
        said = str(error)
    yield reference.same("refused by name", [["'diffusion_gemma'" in said]], [[True]])


SUITE = Suite(checks, {"*": "redraft has no such network: the checkpoint is refused by name"})
