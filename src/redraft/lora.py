"""The configuration of a low-rank adapter: which matrices get one, and of what rank."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from redraft.options import check, setting

ALL = "all-linear"
PACKINGS = ("int8", "nf4")
BASE_DTYPES = ("auto", "float32", "bfloat16", *PACKINGS)
BASE_DTYPE_HELP = (
    "Type of the frozen weights in memory. auto: that of the checkpoint's files. int8 and nf4 pack the matrices of the "
    "blocks (nf4 needs redraft[lowbit])."
)


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter (LoRA, Hu et al. 2021, arXiv:2106.09685): W x + scale B A x, where only A and B are trained.

    Names of modules are those of the public checkpoint that the model was loaded from, and Llama's for our own
    transformer.
    """

    rank: int = setting(8, "Rank of the adapter matrices.", least=1, flag="--lora-rank", reach=("cli",))
    alpha: float = setting(
        16.0, "Scale of the adapter's output: alpha / rank.", least=0, flag="--lora-alpha", reach=("cli",)
    )
    dropout: float = setting(
        0.0,
        "Dropout of the adapter's inputs during training.",
        least=0,
        below=1,
        flag="--lora-dropout",
        reach=("cli",),
    )
    targets: str | tuple[str, ...] = setting(
        ALL,
        "Matrices that get an adapter: last parts of module names (q_proj,v_proj), one regular expression for whole "
        "names, or all-linear for every matrix of every block.",
        metavar="NAMES",
        flag="--lora-targets",
        reach=("cli",),
    )
    rslora: bool = setting(
        False,
        "Scale by alpha / sqrt(rank) (rank-stabilised LoRA, arXiv:2312.03732).",
        flag="--rslora",
        reach=("cli",),
    )

    base_dtype: str = setting("auto", BASE_DTYPE_HELP, choices=BASE_DTYPES, flag="--base-dtype", reach=("cli",))

    def __post_init__(self) -> None:
        check(self)

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def packing(self) -> str:
        """``int8`` or ``nf4``; empty: the frozen weights are not packed."""
        return self.base_dtype if self.base_dtype in PACKINGS else ""

    def takes(self, name: str) -> bool:
        """Does a module of this name get an adapter?"""
        if self.targets == ALL or self.targets == (ALL,):
            return True
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in self.targets)
