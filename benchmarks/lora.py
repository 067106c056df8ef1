"""Full fine-tuning against LoRA: the shipped base pair on 3,000 rows of data-to-text (E2E), BLEU on 300 test inputs.

python benchmarks/lora.py --data-root DATA --out runs/lora
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WAYS: dict[str, list[str]] = {
    "full": ["--lr", "1e-3"],
    "LoRA, rank 16": ["--lr", "4e-3", "--lora-rank", "16", "--lora-alpha", "32", "--set", "train.weight_decay=0"],
}


def redraft(*arguments: object) -> dict[str, Any]:
    """Run one command with ``--json``, and return what it prints.

    Raises:
        SystemExit: the command failed.
    """
    words = [sys.executable, "-m", "redraft", *map(str, arguments), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(words)}\n{done.stdout}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows(root: Path, out: Path, count: int) -> Path:
    """A set of ``count`` training rows, spread evenly over the original, and all validation rows."""
    out.mkdir(parents=True, exist_ok=True)
    for split, most in (("train", count), ("validation", 300)):
        with gzip.open(root / f"data-to-text/e2e.{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = file.readlines()
        kept = [lines[i * len(lines) // most] for i in range(most)]
        (out / f"e2e.{split}.jsonl").write_text("".join(kept), encoding="utf-8")
    return out / "e2e"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--test-rows", type=int, default=300)
    parser.add_argument("--passes", type=float, default=4)
    options = parser.parse_args()
    data = rows(options.data_root, options.out / "data", options.rows)
    columns = ["--input", "mr", "--target", "text"]
    for family in ("autoregressive", "masked"):
        for way, more in WAYS.items():
            out = options.out / f"{family}-{way.split(',')[0].lower()}"
            fixed = ["--set", "data.length=192", "--set", "data.too_long=skip", "--set", "train.threads=1"]
            fixed += ["--set", "train.batch_tokens=1536"]
            base = ["--from", f"base-{family}", "--data", data, *columns, "--out", out, "--passes", options.passes]
            trained = redraft("finetune", *base, *more, *fixed)
            test = [
                "--data",
                options.data_root / "data-to-text/e2e",
                *columns,
                "--rows",
                options.test_rows,
                "--temperature",
                0,
            ]
            found = redraft("evaluate", "--model", out, *test, "--max-new-tokens", 80)
            print(json.dumps({"family": family, "way": way, "trained": trained, "found": found}), flush=True)


if __name__ == "__main__":
    main()
