"""The example of docs/extending.md is one new file without edits elsewhere: it works, and the laws of samplers hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def example() -> tuple[Path, str]:
    """The file of the example: its path in the checkout, and its text."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    [(path, text)] = re.findall(r"^```python\n# (\S+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return Path(path), text


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package with the example's file added."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    path, text = example()
    assert not (tmp_path / path).exists()
    (tmp_path / path).write_text(text, encoding="utf-8")
    return tmp_path


def run(arguments: list[str], checkout: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the copied package in place of this one."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_new_file_is_all_it_takes(checkout: Path) -> None:
    script = """
import json, sys
from redraft.data.tokenizer import Tokenizer
from redraft.model import Model
from redraft.presets import preset
from redraft.cli._main import main
tokenizer = Tokenizer.bytes()
shape = preset("toy", tokenizer.vocab_size, dim=32)
Model.fresh({"name": "masked"}, tokenizer, shape, paired=False).save("model")
model = Model.fresh({"name": "masked"}, tokenizer, shape, paired=False)
order = [step.pos.tolist() for step in model.stream("ab", sampler="rightmost", options={"count": 2}, max_new_tokens=5)]
print(json.dumps(order))
main(["generate", "--model", "model", "--prompt", "ab", "--sampler", "rightmost", "--option", "count=2",
      "--max-new-tokens", "5", "--json"])
main(["models", "--json"])
sys.exit(main(["generate", "--model", "model", "--prompt", "ab", "--sampler", "rightmost", "--option", "cuont=2"]))
"""
    done = run(["-c", script], checkout, checkout)
    assert done.returncode == 2, done.stderr
    assert "Did you mean 'count'?" in done.stderr
    order, found, listed = (json.loads(line) for line in done.stdout.splitlines())
    start = 3  # <bos> and two bytes
    assert order == [[start + 3, start + 4], [start + 1, start + 2], [start]]
    assert (found["sampler"], found["nfe"]) == ("rightmost", 3)
    assert "rightmost" in [sampler["name"] for sampler in listed["samplers"]]


def test_the_laws_of_samplers_hold(checkout: Path) -> None:
    """The law tests find the new file by themselves."""
    done = run(
        ["-m", "pytest", "tests/laws/test_samplers.py", "-k", "rightmost", "-p", "no:cacheprovider"], checkout, ROOT
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 5
