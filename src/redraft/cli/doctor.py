"""``redraft doctor``: what this machine has, how fast it is, what is off and how to mend it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import Device, Json, Seed

if TYPE_CHECKING:
    import torch

_CORE = ("torch", "tokenizers", "safetensors", "transformers", "pydantic", "typer", "rich", "numpy")
_OPTIONAL = {  # package -> what is off without it, and the extra that has it
    "datasets": ("data from a Hugging Face folder or hub name", "train"),
    "pyarrow": ("Parquet files", "train"),
    "tensorboard": ("training curves in TensorBoard", "train"),
    "sacrebleu": ("BLEU", "eval"),
    "rouge-score": ("ROUGE", "eval"),
    "scipy": ("intervals over several seeds", "eval"),
    "scikit-learn": ("the nearest-example floor of a comparison", "eval"),
}

_LEAST_DISK_GB = 0.2  # below this no model can be trained or saved


@dataclass(frozen=True)
class Problem:
    """Something off, and how to mend it."""

    what: str
    remedy: str
    needed: bool = False  # broken, and not just slow or left out: nothing to rely on


def doctor(
    parity: Annotated[
        Path | None, typer.Option(help="Folder of recorded outputs of public checkpoints: are ours the same?")
    ] = None,
    as_json: Json = False,
    device: Device = "auto",
    seed: Seed = 0,
) -> dict[str, Any]:
    """Check this machine, and say what is off.

    \b
    Examples:
      redraft doctor
      redraft doctor --json --device cpu
      redraft doctor --parity ../shared/parity

    Shown are versions, devices, measured speed and the state of the shipped checkpoints. Speeds are measured for
    about two seconds; --seed draws the matrices. Nothing is changed. With --parity only the comparison with
    recorded outputs is made, on the CPU, and a table in Markdown is shown.

    The exit code is 0, or 1 where something that is needed is broken: a package that is missing, a damaged checkpoint,
    no space on the disk, an output that differs. What is merely slow or left out is told, and no failure.
    """
    if parity is not None:
        from redraft.cli._parity import compare

        return compare(parity, as_json)
    import torch

    from redraft import runtime

    where = runtime.device(device)
    torch.manual_seed(seed)
    found = {
        **_versions(),
        "device": _device_name(where),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "memory_gb": round(memory(where) / 1e9, 1),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "matmul_gflops": {
            name: round(runtime.peak_matmul(where, getattr(torch, name)) / 1e9) for name in ("float32", "bfloat16")
        },
        "copy_gb_per_second": round(copy_bandwidth(where) / 1e9, 1),
    }
    problems = [*_package_problems(found["packages"]), *_machine_problems(found, where)]
    zoo, zoo_problems = _zoo()
    problems += zoo_problems
    found |= {"zoo": zoo, "problems": [asdict(problem) for problem in problems]}
    found["ok"] = not any(problem.needed for problem in problems)
    if not as_json:
        _show(found)
    return found


def copy_bandwidth(where: torch.device, megabytes: int = 256) -> float:
    """Measured memory traffic of a large copy, in bytes per second, read and write both counted."""
    import torch

    from redraft.runtime import synchronise

    source = torch.zeros(megabytes * 250_000, device=where)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(6):
        synchronise(where)
        begin = time.perf_counter()
        target.copy_(source)
        synchronise(where)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - begin))
    return best


def _versions() -> dict[str, Any]:
    packages: dict[str, str | None] = {}
    for name in (*_CORE, *_OPTIONAL):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    from redraft import __version__

    return {
        "redraft": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
    }


def _cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device_name(where: torch.device) -> str:
    import torch

    return f"{where} ({torch.cuda.get_device_name(where)})" if where.type == "cuda" else str(where)


def memory(where: torch.device) -> int:
    """Bytes of memory of a device."""
    import torch

    if where.type == "cuda":
        return int(torch.cuda.get_device_properties(where).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _package_problems(packages: dict[str, str | None]) -> list[Problem]:
    missing = [Problem(f"{name} is not installed.", "Run make install.", True) for name in _CORE if not packages[name]]
    for name, (use, extra) in _OPTIONAL.items():
        if not packages[name]:
            missing.append(Problem(f"{name} is not installed: no {use}.", f'Run pip install "redraft[{extra}]".'))
    return missing


def _machine_problems(found: dict[str, Any], where: torch.device) -> list[Problem]:
    import torch

    problems = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        problems.append(Problem(f"Python {found['python']} is not tested.", "Use Python 3.11, 3.12 or 3.13."))
    if found["threads"] > found["cores"]:
        what = f"{found['threads']} threads on {found['cores']} cores wait for each other."
        problems.append(Problem(what, f"Set OMP_NUM_THREADS={found['cores']}."))
    if where.type == "cpu" and shutil.which("nvidia-smi") and not torch.cuda.is_available():
        what = "there is an NVIDIA driver, but this torch can't use it."
        problems.append(Problem(what, "Install the CUDA build of torch (see PyTorch's install page)."))
    if where.type == "cpu" and found["load"] > found["cores"]:
        what = f"the machine is busy (load {found['load']} on {found['cores']} cores), which slows all down."
        problems.append(Problem(what, "Wait, or stop what else is running."))
    if (free := found["disk_free_gb"]) < 2:
        problems.append(Problem(f"only {free} GB free on this disk.", "Free some space.", needed=free < _LEAST_DISK_GB))
    return problems


def _zoo() -> tuple[list[dict[str, Any]], list[Problem]]:
    from redraft.cli._zoo import SUMS, check, folder

    root = folder()
    if root is None:
        return [], [Problem("no folder of shipped checkpoints.", "Run in a checkout, or set REDRAFT_ZOO to one.")]
    states = check(root)
    problems = []
    for name, state in states.items():
        if state == "unlisted":
            what = f"checkpoint file {root / name} is not listed in {SUMS}: it can't be verified."
            problems.append(Problem(what, "Run make checksums."))
        elif state != "intact":
            remedy = f"Restore it: git checkout -- {Path('zoo') / name}"
            problems.append(Problem(f"checkpoint file {root / name} is {state}.", remedy, needed=True))
    return [{"file": name, "state": state} for name, state in states.items()], problems


def _show(found: dict[str, Any]) -> None:
    speeds = found["matmul_gflops"]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    for name, text in (
        ("redraft", f"{found['redraft']}, Python {found['python']}, {found['platform']}"),
        ("packages", packages),
        ("device", f"{found['device']}, {found['memory_gb']} GB memory, {found['disk_free_gb']} GB of disk free"),
        ("threads", f"{found['threads']} on {found['cores']} cores, load {found['load']}"),
        ("matmul", f"{speeds['float32']} GFLOP/s float32, {speeds['bfloat16']} GFLOP/s bfloat16"),
        ("memory", f"{found['copy_gb_per_second']} GB/s copied (read and write)"),
        ("zoo", f"{sum(f['state'] == 'intact' for f in found['zoo'])} of {len(found['zoo'])} files intact"),
    ):
        typer.echo(f"{name:9} {text}")
    for problem in found["problems"]:
        typer.echo(f"{'!' if problem['needed'] else '-'} {problem['what']} {problem['remedy']}")
    if not found["problems"]:
        typer.echo("all well")
