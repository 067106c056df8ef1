"""Parity: checks that public checkpoints give the same outputs as their own code, against recorded outputs.

A folder of references has one folder for each model: ``checkpoint/`` in the published format, and ``goldens/``, the
outputs of the reference code (``tests/numerics/test_parity.py`` runs the same checks). Each recorded value is compared,
or its suite gives a reason why not; a value without either is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from redraft.errors import UserError
from redraft.parity import (
    adapted,
    autoregressive,
    bd3lm,
    diffusion_gemma,
    dream,
    dreamon,
    fast_dllm_v2,
    gguf,
    illada,
    latent_diffusion,
    llada,
    llada2_1_moe,
    llada2_moe,
    mdlm,
    nemotron_labs_diffusion,
    sdar,
    sedd,
)
from redraft.parity.outputs import model_logits
from redraft.parity.reference import IDS, NOTHING, Check, Reference, Suite

__all__ = ["CHECKS", "IDS", "NOTHING", "Check", "Reference", "Suite", "model_logits", "run"]

CHECKS: dict[str, Suite] = {
    "gpt2": autoregressive.SUITE,
    "llama": autoregressive.SUITE,
    "qwen2": autoregressive.SUITE,
    "qwen3": autoregressive.SUITE,
    "gguf_blocks": gguf.BLOCKS,
    "gguf_llama": gguf.SUITE,
    "gguf_qwen2": gguf.SUITE,
    "gguf_qwen3": gguf.SUITE,
    "llada": llada.SUITE,
    "illada": illada.SUITE,
    "dream": dream.SUITE,
    "dreamon": dreamon.SUITE,
    "diffugpt": adapted.SUITE,
    "diffullama": adapted.SUITE,
    "llada_moe": llada.MOE,
    "llada2_moe": llada2_moe.SUITE,
    "sdar": sdar.SUITE,
    "fast_dllm_v2": fast_dllm_v2.SUITE,
    "llada2.1_moe": llada2_1_moe.SUITE,
    "nemotron_labs_diffusion": nemotron_labs_diffusion.SUITE,
    "mdlm": mdlm.SUITE,
    "sedd": sedd.SUITE,
    "bd3lm": bd3lm.SUITE,
    "diffusion_gemma": diffusion_gemma.SUITE,
    "latent_diffusion": latent_diffusion.SUITE,
}


def run(root: Path, only: str = "") -> Iterator[Check]:
    """Run the checks of every reference under ``root``, or of ``root`` if it is the folder of one reference.

    Args:
        only: name of the one model to check; "" for all.
    Raises:
        UserError: there is no reference.
    """
    if root.resolve().name in CHECKS and any(root.glob("**/goldens")):
        root, only = root.resolve().parent, root.resolve().name
    known = [name for name in CHECKS if (root / name).is_dir() and only in ("", name)]
    if not known:
        raise UserError(
            f"Folder '{root}' holds no reference values.", f"It needs a folder for a model: {', '.join(CHECKS)}."
        )
    for name in known:
        yield from CHECKS[name].run(Reference(root / name))
