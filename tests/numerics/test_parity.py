"""Public checkpoints give the same outputs as their own code (``redraft doctor --parity`` runs the same checks)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from redraft.parity import CHECKS, NOTHING, Check, Reference, Suite

ROOT = Path(os.environ.get("REDRAFT_PARITY") or Path(__file__).parents[3] / "shared" / "parity")


@pytest.mark.parametrize("name", CHECKS)
def test_parity(name: str) -> None:
    if not (ROOT / name).is_dir():
        pytest.skip(f"no reference values: {ROOT / name} (set REDRAFT_PARITY)")
    checks = list(CHECKS[name].run(Reference(ROOT / name)))
    assert len(checks) > 1
    assert [f"{check.what}: {check.difference:.3g}" for check in checks if not check.ok] == []


def test_every_recorded_value_is_compared_or_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "m" / "goldens").mkdir(parents=True)
    values = {"a": torch.tensor([1.0, -torch.inf]), "b": torch.ones(2), "c": torch.ones(2)}
    save_file(values, str(tmp_path / "m" / "goldens" / "x.safetensors"))
    (tmp_path / "m" / "goldens" / "y.json").write_text('{"d": 3}')

    def checks(reference: Reference) -> Iterator[Check]:
        yield reference.close("a", torch.tensor([1 + 1e-5, -torch.inf]), reference.tensors("x")["a"])
        yield reference.close("a, wrong", torch.tensor([1.001, -torch.inf]), reference.tensors("x")["a"])
        yield reference.same("d", [[3]], [[reference.values("y", "d")]])

    found = list(Suite(checks, {"x.b": "for a reason"}).run(Reference(tmp_path / "m")))
    assert [(check.what, check.ok) for check in found] == [
        ("a", True),
        ("a, wrong", False),
        ("d", True),
        ("x.b", True),
        ("x.c", False),
    ]
    assert [check.note for check in found if check.tolerance == NOTHING] == ["for a reason", "no reason is given"]
