"""Public checkpoints give the numbers that their own code gave (``redraft doctor --parity`` runs the same checks)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from redraft.parity import CHECKS, Reference

ROOT = Path(os.environ.get("REDRAFT_PARITY") or Path(__file__).parents[3] / "shared" / "parity")


@pytest.mark.parametrize("name", CHECKS)
def test_parity(name: str) -> None:
    if not (ROOT / name).is_dir():
        pytest.skip(f"no reference values: {ROOT / name} (set REDRAFT_PARITY)")
    checks = list(CHECKS[name](Reference(ROOT / name)))
    assert len(checks) > 1
    assert [f"{check.what}: {check.difference:.3g}" for check in checks if not check.ok] == []
