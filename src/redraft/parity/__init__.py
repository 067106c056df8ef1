"""Do public checkpoints give the numbers that their own code gave? Checks against recorded outputs, model by model.

A folder of references has one folder for each model, with ``checkpoint/`` in the published format and ``goldens/``,
what the reference code computed from it (``tests/numerics/test_parity.py`` runs the same checks). Whatever is recorded
is compared, or its suite says why not: a value that no check asked for is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from redraft.errors import UserError
from redraft.parity import adapted, autoregressive, bd3lm, dream, latent_diffusion, llada, llada2_moe, mdlm, sedd
from redraft.parity._asking import answers
from redraft.parity._reference import IDS, NOTHING, Check, Reference, Suite

__all__ = ["CHECKS", "IDS", "NOTHING", "Check", "Reference", "Suite", "answers", "run"]

CHECKS: dict[str, Suite] = {
    "gpt2": autoregressive.SUITE,
    "llama": autoregressive.SUITE,
    "qwen2": autoregressive.SUITE,
    "qwen3": autoregressive.SUITE,
    "llada": llada.SUITE,
    "dream": dream.SUITE,
    "diffugpt": adapted.SUITE,
    "diffullama": adapted.SUITE,
    "llada_moe": llada.MOE,
    "llada2_moe": llada2_moe.SUITE,
    "mdlm": mdlm.SUITE,
    "sedd": sedd.SUITE,
    "bd3lm": bd3lm.SUITE,
    "latent_diffusion": latent_diffusion.SUITE,
}


def run(root: Path, only: str = "") -> Iterator[Check]:
    """Every check whose reference lies under ``root``.

    Raises:
        UserError: there is none.
    """
    known = [name for name in CHECKS if (root / name).is_dir() and only in ("", name)]
    if not known:
        raise UserError(f"'{root}' holds no reference values.", f"One folder for each model: {', '.join(CHECKS)}.")
    for name in known:
        yield from CHECKS[name].run(Reference(root / name))
