"""Every script under examples/ runs, at a size that takes seconds."""

from __future__ import annotations

import ast
import gzip
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import preloaded

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def settings(**more: str) -> dict[str, str]:
    """An environment with this package and the scripts of this Python first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PATH": path, "OMP_NUM_THREADS": "1", **more}


def run(arguments: list[str], **environment: str) -> str:
    """What a program prints, run in the checkout."""
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env=settings(**environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some rows of the sample data."""
    folder = tmp_path_factory.mktemp("sample")
    for split, count in (("train", 600), ("validation", 60), ("test", 60)):
        name = f"tatoeba.en-de.{split}.jsonl.gz"
        with gzip.open(EXAMPLES / "data" / name, "rb") as whole, gzip.open(folder / name, "wb") as part:
            part.writelines(itertools.islice(whole, count))
    return str(folder / "tatoeba.en-de")


def test_train(tmp_path: Path) -> None:
    told = run([sys.executable, "examples/train.py", "--out", str(tmp_path / "model"), "--tokens", "4000"])
    assert told.count("forward passes: ") == 2
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_generate() -> None:
    told = run([sys.executable, "examples/generate.py"])
    assert "'Das Wetter ist heute gut.'  5 forward passes" in told
    places = [json.loads(found) for found in re.findall(r"^step \d: positions (\[.*?\])", told, re.MULTILINE)]
    assert len(places) == 4
    assert len(set(sum(places, []))) == sum(map(len, places))  # each position is filled once
    filled = told.splitlines()[-1]
    assert filled.startswith("Mein Bruder hat ")
    assert filled.endswith(" gekauft.")


def test_compare(tmp_path: Path, sample: str) -> None:
    command = [sys.executable, "examples/compare.py", "--data", sample, "--out", str(tmp_path / "out")]
    told = run([*command, "--tokens", "1000", "--rows", "4"])
    assert "forward passes per sample" in told
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {setting["family"] for setting in results["settings"]} == {"autoregressive", "masked"}
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_sampler_from_outside() -> None:
    told = run([sys.executable, "-m", "examples.my_sampler", "--count", "2"])
    lines = told.splitlines()
    places = [json.loads(line.split(" = ")[0].removeprefix("positions ")) for line in lines if " = " in line]
    flat = sum(places, [])
    assert flat == sorted(flat)  # from left to right
    assert all(len(each) == 2 for each in places[:-1])


def test_a_sampler_from_outside_on_the_command_line() -> None:
    told = run(
        [
            *("redraft", "generate", "--model", "translate-en-de-masked", "--prompt", "I am tired.", "--json"),
            *("--sampler", "examples.my_sampler:Leftmost", "--option", "count=2"),
        ],
        PYTHONPATH=os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    )
    assert json.loads(told)["sampler"] == "examples.my_sampler:Leftmost"


def test_the_life_of_a_model(tmp_path: Path, sample: str) -> None:
    """The whole script, with models that learn nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with preloaded.command(tmp_path, settings()) as scripts:
        told = run(
            ["bash", "examples/life_of_a_model.sh", "--quick", str(tmp_path)],
            PATH=f"{scripts}{os.pathsep}{settings()['PATH']}",
            LIFE_DATA=sample,
            LIFE_TOKENS="2048",
            LIFE_ROWS="24",
            LIFE_STUDY_TOKENS="1000",
            LIFE_PORT=str(port),
        )
    steps = re.findall(r"== (\d)\. ", told)
    assert steps == [str(number) for number in range(1, 9)]
    for name in ("small-masked/config.json", "tuning/tune.json", "verdict/report.html", "llama/model.safetensors"):
        assert (tmp_path / name).is_file(), name
    [used] = [json.loads(line) for line in told.splitlines() if line.startswith("{") and '"seed"' in line]
    assert used["sampler"] in ("confidence", "factor")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_scripts_say_how_they_are_run(path: Path) -> None:
    page = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert re.search(rf"python (examples/{path.name}|-m examples\.{path.stem})", page)
