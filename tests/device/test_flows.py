"""Every flow of the project on an accelerator that isn't there (``tests.pretend_device``).

What was plugged in once leaves torch believing in an accelerator, so the files of ``flows`` run in a process of their
own. REDRAFT_FULL=1 runs all families, recipes, formats and long commands: about twenty minutes on one core.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FLOWS = ["training.py", "generation.py", "no_float64.py", "around.py"]


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="a torch that knows CUDA can't pretend it")
def test_flows_run_on_a_pretend_device() -> None:
    files = [f"tests/device/flows/{file}" for file in FLOWS]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


BLOCKED = """
import importlib, pkgutil, sys
import torch, typer, uvicorn, fastapi
from transformers import AutoModel, PreTrainedModel  # other packages find their own way on Windows
for name in ("fcntl", "resource"):
    sys.modules[name] = None
import redraft
left = ("redraft.__main__", "redraft.interop.lm_eval")
for module in pkgutil.walk_packages(redraft.__path__, "redraft."):
    if module.name not in left:
        importlib.import_module(module.name)
from redraft.host_memory import peak_resident
assert peak_resident() >= 0
"""


def test_nothing_of_posix_is_needed_at_import() -> None:
    """Every module imports where the modules that only POSIX has are missing, as on Windows."""
    ran = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
