"""Limits of the options of samplers, cache policies and guidance.

They are far beyond useful values, and keep a mistyped or hostile number from taking all memory or time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from redraft.options import Setting, check, declared

MAX_STEPS = 1 << 16
MAX_POSITIONS = 1 << 20
MAX_ROWS = 256  # canvas rows of a prompt: candidate lengths, beams
MAX_SCALE = 1e9  # of factors and weights


def check_options(component: Any) -> None:
    """Check the options of a registered class: as ``options.check``, and the numbers that are not declared as settings.

    A number without a declared range must be finite, and at most 2^20 in size.

    Raises:
        UserError: a value that is not allowed.
    """
    check(component)
    plain, known = Setting(help="", least=-MAX_POSITIONS, most=MAX_POSITIONS), declared(type(component))
    for field in dataclasses.fields(component):
        value = vars(component)[field.name]
        if field.name not in known and isinstance(value, int | float) and not isinstance(value, bool):
            plain.check(value, field.name)
