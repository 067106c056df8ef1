"""Description of the machine that numbers were measured on."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

import torch

from redraft import __version__, runtime


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Hardware, load and software versions as plain values, with the measured speed of a matrix product in GFLOP/s."""
    return {**hardware(device), "matmul_gflops": runtime.peak_matmul(device) / 1e9}


def hardware(device: torch.device) -> dict[str, Any]:
    """Hardware, load and software versions as plain values, without measuring anything."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "device": str(device),
        "gpu": gpu,
        "cpu": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "redraft": __version__,
    }
