"""``redraft doctor``: hardware, software and speed of this machine, with problems and their remedies."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import Device, Json, Seed
from redraft.cli._verbs import verb

if TYPE_CHECKING:
    import torch

_CORE = ("torch", "tokenizers", "safetensors", "transformers", "pydantic", "typer", "rich", "numpy")
_OPTIONAL = {  # package -> what needs it, and the extra that installs it
    "datasets": ("data from a Hugging Face folder or hub name", "train"),
    "pyarrow": ("Parquet files", "train"),
    "tensorboard": ("training curves in TensorBoard", "train"),
    "sacrebleu": ("BLEU", "eval"),
    "rouge-score": ("ROUGE", "eval"),
    "scipy": ("intervals over several seeds", "eval"),
    "scikit-learn": ("the nearest-example baseline of a comparison", "eval"),
    "gguf": ("GGUF files and packaged models", "gguf"),
}

_LEAST_DISK_GB = 0.2  # too little to train or save a model


@dataclass(frozen=True)
class Problem:
    """A problem of this machine and its remedy."""

    what: str
    remedy: str
    needed: bool = False  # redraft doesn't work without it; others only cost speed or a feature


@verb(order=150)
def doctor(
    parity: Annotated[
        Path | None, typer.Option(help="Folder with recorded outputs of public checkpoints to compare with ours.")
    ] = None,
    as_json: Json = False,
    device: Device = "auto",
    seed: Seed = 0,
) -> dict[str, Any]:
    """Check this machine and report problems.

    \b
    Examples:
      redraft doctor
      redraft doctor --json --device cpu
      redraft doctor --parity ../shared/parity

    It prints versions, devices, measured speed and the state of the shipped checkpoints. The measurements take about
    two seconds; --seed sets the random matrices. It changes nothing. --parity compares with recorded outputs instead,
    on the CPU, and prints a Markdown table.

    The exit code is 1 if something necessary is broken: a missing package, a damaged checkpoint, a full disk, or an
    output that differs. Otherwise it is 0; slow hardware and missing optional packages are reported as warnings.
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
        "memory_gb": round(runtime.installed_memory(where) / 1e9, 1),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "matmul_gflops": {
            name: round(runtime.peak_matmul(where, getattr(torch, name)) / 1e9) for name in ("float32", "bfloat16")
        },
        "copy_gb_per_second": round(runtime.copy_bandwidth(where) / 1e9, 1),
    }
    found["compiled"], compiled_problems = _compiled()
    problems = [*_package_problems(found["packages"]), *_machine_problems(found, where), *compiled_problems]
    zoo, zoo_problems = _zoo()
    problems += zoo_problems
    packaged, packaged_problems = _packaged()
    problems += packaged_problems
    found |= {"zoo": zoo, "packaged": packaged, "problems": [asdict(problem) for problem in problems]}
    found["ok"] = not any(problem.needed for problem in problems)
    if not as_json:
        _show(found)
    return found


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
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device_name(where: torch.device) -> str:
    import torch

    return f"{where} ({torch.cuda.get_device_name(where)})" if where.type == "cuda" else str(where)


def _package_problems(packages: dict[str, str | None]) -> list[Problem]:
    missing = [Problem(f"{name} is not installed.", "Run make install.", True) for name in _CORE if not packages[name]]
    for name, (use, extra) in _OPTIONAL.items():
        if not packages[name]:
            missing.append(
                Problem(
                    f"{name} is not installed. It is needed for {use}.", f'Install it: pip install "redraft[{extra}]".'
                )
            )
    return missing


def _machine_problems(found: dict[str, Any], where: torch.device) -> list[Problem]:
    import torch

    problems = []
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        problems.append(
            Problem(f"redraft is not tested with Python {found['python']}.", "Use Python 3.11, 3.12 or 3.13.")
        )
    if found["threads"] > found["cores"]:
        what = f"There are {found['threads']} threads for {found['cores']} cores, which makes them wait for each other."
        problems.append(Problem(what, f"Set OMP_NUM_THREADS={found['cores']}."))
    if where.type == "cpu" and shutil.which("nvidia-smi") and not torch.cuda.is_available():
        what = "There is an NVIDIA driver, but the installed torch can't use it."
        problems.append(Problem(what, "Install the CUDA build of torch (see PyTorch's installation page)."))
    if where.type == "cpu" and found["load"] > found["cores"]:
        what = f"The machine is busy: load {found['load']} on {found['cores']} cores."
        problems.append(Problem(what, "Wait, or stop other programs."))
    if (free := found["disk_free_gb"]) < 2:
        problems.append(
            Problem(f"Only {free} GB are free on this disk.", "Free some space.", needed=free < _LEAST_DISK_GB)
        )
    return problems


def _compiled() -> tuple[dict[str, str | None], list[Problem]]:
    """The library with the compiled layers of small networks on CPUs, or why there is none."""
    from redraft.models.cpu.native import library

    search = library()
    if search.found is not None:
        return {"library": search.found.path.name, "reason": None}, []
    what = f"Compiled code for small networks on CPUs is not used: {search.reason}. They are slower without it."
    problems = [Problem(what, search.remedy)] if search.remedy else []
    return {"library": None, "reason": search.reason}, problems


def _zoo() -> tuple[list[dict[str, Any]], list[Problem]]:
    from redraft.shipped import zoo, zoo_folder
    from redraft.zoo.files import SUMS, check

    root = zoo_folder()
    if not zoo():
        return [], [
            Problem(
                "The folder of shipped checkpoints was not found.", "Run redraft in its checkout, or set REDRAFT_ZOO."
            )
        ]
    states = check(root)
    problems = []
    for name, state in states.items():
        if state == "unlisted":
            what = f"Checkpoint file {root / name} can't be verified: it is not in {SUMS}."
            problems.append(Problem(what, "Run make checksums."))
        elif state != "intact":
            remedy = f"Restore it: git checkout -- {Path('zoo') / name}"
            problems.append(Problem(f"Checkpoint file {root / name} is {state}.", remedy, needed=True))
    return [{"file": name, "state": state} for name, state in states.items()], problems


def _packaged() -> tuple[dict[str, str], list[Problem]]:
    """State of each packaged model: intact, damaged or not installed."""
    from redraft.shipped import PACKAGED
    from redraft.zoo.files import packaged_state

    states = {name: packaged_state(model) for name, model in PACKAGED.items()}
    damaged = [name for name, state in states.items() if state == "damaged"]
    remedy = "Install it again: make pretrained."
    return states, [Problem(f"The packaged model '{name}' is damaged.", remedy, needed=True) for name in damaged]


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
        ("compiled", found["compiled"]["library"] or f"nothing: {found['compiled']['reason']}"),
        ("zoo", f"{sum(f['state'] == 'intact' for f in found['zoo'])} of {len(found['zoo'])} files intact"),
        ("packaged", ", ".join(f"{name} {state}" for name, state in found["packaged"].items())),
    ):
        typer.echo(f"{name:9} {text}")
    for problem in found["problems"]:
        typer.echo(f"{'!' if problem['needed'] else '-'} {problem['what']} {problem['remedy']}")
    if not found["problems"]:
        typer.echo("No problems found.")
