"""Learning-rate schedules: pure functions of the share of the budget that is spent. Imports nothing heavy."""

from __future__ import annotations

import math

from redraft.errors import UserError, suggest


def cosine(progress: float, warmup: float, floor: float) -> float:
    """Linear warm-up over the first ``warmup`` of the run, then half a cosine from 1 down to ``floor``.

    Loshchilov & Hutter 2017, arXiv:1608.03983. ``progress`` and ``warmup`` are shares of the budget; ``floor`` and the
    result are shares of the peak learning rate.
    """
    if progress < warmup:
        return progress / warmup
    through = (progress - warmup) / (1.0 - warmup)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(through, 1.0)))


def wsd(progress: float, warmup: float, floor: float, decay: float = 0.2) -> float:
    """Warm-up, stable, decay: a plateau at 1, then linear decay to ``floor`` over the last ``decay`` of the run.

    Hu et al. 2024, arXiv:2404.06395; the linear decay is that of Haegele et al. 2024, arXiv:2405.18392.
    """
    if progress < warmup:
        return progress / warmup
    begin = max(1.0 - decay, warmup)
    if progress <= begin:
        return 1.0
    return 1.0 - (1.0 - floor) * min((progress - begin) / (1.0 - begin), 1.0)


def constant(progress: float, warmup: float, floor: float) -> float:
    """Warm-up, then 1 until the end; ``floor`` is not used."""
    return progress / warmup if progress < warmup else 1.0


SCHEDULES = {"cosine": cosine, "wsd": wsd, "constant": constant}


def learning_rate(schedule: str, progress: float, lr: float, warmup: float, floor: float) -> float:
    """The learning rate when ``progress`` (0..1) of the budget is spent.

    Raises:
        UserError: no schedule of that name.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"Unknown learning-rate schedule '{schedule}'.", suggest(schedule, SCHEDULES))
    return lr * SCHEDULES[schedule](progress, warmup, floor)
