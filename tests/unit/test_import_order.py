"""The import order of the house, by reading the source; and ``import redraft`` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "redraft"

# Each tier may import itself and the tiers above it. Folders of one tier may also import one another, save for the
# pairs in APART.
TIERS = [
    {"errors"},
    {"options", "registry"},
    {"limits"},
    {"types", "lora", "settings", "keyword_settings", "config", "files", "hub", "shipped", "runtime", "host_memory"},
    {"sandbox"},
    {"gguf_file", "weight_files"},
    {"data", "noise", "models", "weights"},
    {"presets", "canvas", "samplers", "guidance", "caches", "constraints"},
    {"objectives"},
    {"families", "curricula", "posttraining"},
    {"targets"},
    {"convert"},
    {"generation", "likelihood", "rollouts", "model", "loading", "saving", "conversion", "adapters"},
    {"metrics", "tasks", "trace", "rewards"},
    {"evaluation"},
    {"train"},
    {"planning"},
    {"compare", "serve", "interop", "executors", "bench", "parity", "tune", "bulk", "zoo", "study"},
    {"cli"},
]
# Samplers take schedules by their protocol and know no network; networks know no noise; data know neither.
APART = [("samplers", "models"), ("models", "noise"), ("data", "noise"), ("data", "models")]
ENTRANCES = {"__init__", "__main__"}  # the package's two doors see everything


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def part(module: str) -> str:
    """``redraft.noise.schedules.linear`` -> ``noise``."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(path: Path) -> set[str]:
    """Parts of the house that a file imports anywhere, also inside its functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "redraft"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write redraft.… in full"
            if node.module == "redraft":
                found |= {f"redraft.{alias.name}" for alias in node.names}
            elif node.module and node.module.startswith("redraft."):
                found.add(node.module)
    known = set().union(*TIERS)
    return {part(module) for module in found if part(module) in known}


def owner(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def tier(name: str) -> int:
    return next(i for i, names in enumerate(TIERS) if name in names)


def test_every_part_has_a_tier() -> None:
    assert {owner(path) for path in files()} - ENTRANCES <= set().union(*TIERS)


@pytest.mark.parametrize(
    "path", [p for p in files() if owner(p) not in ENTRANCES], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_imports_point_upwards(path: Path) -> None:
    me = owner(path)
    for other in imported(path):
        assert tier(other) <= tier(me), f"{me} must not import {other}"
        assert (me, other) not in APART, f"{me} must not import {other}"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = run("import redraft, sys; print(*sys.modules)").split()
    assert not {"torch", "numpy", "transformers", "typer", "pydantic"} & set(loaded)


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["models", "--checkpoints"]], ids=" ".join)
def test_the_command_line_loads_nothing_heavy_for(arguments: list[str]) -> None:
    code = f"""
import sys
from redraft.cli._main import main
assert main({arguments}) == 0
print("LOADED", *sys.modules)
"""
    loaded = run(code).split("LOADED")[1].split()
    assert not {"torch", "numpy", "transformers", "fastapi"} & set(loaded)
