"""A loss or weights that are no longer finite: never saved, and how the run continues from its last checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from redraft.errors import UserError
from redraft.files import write_atomically
from redraft.train import checkpoint
from redraft.train.ranks import Ranks

# Settings that a run may change when it continues after its loss was not finite.
TAMING = {f"train.{name}" for name in ("lr", "warmup", "min_lr", "schedule", "clip", "betas", "weight_decay", "dtype")}
_MARK = "diverged.json"


def check_finite(
    work: Path, step: int, lr: float, values: Mapping[str, float], tensors: Mapping[str, Tensor], ranks: Ranks
) -> None:
    """Check that a run can be saved or go on.

    Args:
        work: the run's own folder. lr: the peak learning rate. values: by name, such as the loss.
        tensors: what would be saved [...], by name: the parts that this process holds.
        ranks: the processes of the run. If one of them finds something, all raise.
    Raises:
        UserError: one of them is not finite. It names the last checkpoint, and the command that continues from there.
    """
    broken = [f"The {name}" for name, value in values.items() if not math.isfinite(value)]
    broken = broken or [f"The tensor '{name}'" for name in _not_finite(tensors)]
    if not any(ranks.any(bool(broken))):
        return
    broken = broken or ["A tensor of another process"]
    saved = checkpoint.checkpoints(work)
    if ranks.is_writer:
        write_atomically(work / _MARK, json.dumps({"step": step, "what": broken[0]}) + "\n")
    what = f"{broken[0]} is not finite at step {step}."
    if not saved:
        raise UserError(what, f"Run the same command with a lower learning rate, such as --lr {lr / 2:.2g}.")
    good = checkpoint.step_of(saved[-1])
    raise UserError(
        f"{what} Nothing of it was saved: the last checkpoint is that of step {good}.",
        f"Run the same command with a lower learning rate, such as --lr {lr / 2:.2g}: it continues from step {good}. "
        "--set train.clip, train.warmup and train.dtype may change, too.",
    )


def _not_finite(tensors: Mapping[str, Tensor]) -> Iterable[str]:
    return (name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all()))


def has_diverged(work: Path) -> bool:
    """Did the last start of this run end because something was not finite?"""
    return (work / _MARK).is_file()


def forget(work: Path) -> None:
    """Note that the run continues."""
    (work / _MARK).unlink(missing_ok=True)
