"""Compare an autoregressive and a masked diffusion model on the sample data, from Python.

    python examples/compare.py --out runs/verdict --tokens 20000

`redraft compare` does the same from the command line. A study that was stopped continues from its finished pieces.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from redraft.compare.run import run
from redraft.compare.study import Study

DATA = Path(__file__).parent / "data" / "tatoeba.en-de"
ZOO = Path(__file__).parents[1] / "zoo"


def main() -> None:
    """Fine-tune the shipped pair on the same tokens, measure both models, and print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(DATA), help="A data set with the columns english and german.")
    parser.add_argument("--out", default="runs/verdict", help="Folder for the report.")
    parser.add_argument("--tokens", type=int, default=20_000, help="Training tokens of each model.")
    parser.add_argument("--rows", type=int, default=200, help="Test rows.")
    args = parser.parse_args()

    study = Study(
        data=args.data,
        input="english",
        target="german",
        families=("autoregressive", "masked"),  # the first is the baseline
        bases={family: str(ZOO / f"translate-en-de-{family}") for family in ("autoregressive", "masked")},
        budget_tokens=args.tokens,
        train={"lr": 5e-5, "validation_rows": 100},
        steps=(2, 8),
        candidates=(1,),
        test_rows=args.rows,
        validation_rows=max(2, args.rows // 2),
        batch_sizes=(1, 32),
        timed_calls=4,
        out=args.out,
    )
    record = run(study, print)  # the content of results.json, as dataclasses (docs/results-schema.md)

    print(record.verdict.headline)
    for setting in record.settings:
        if setting.chosen and setting.work is not None:  # chosen on validation rows, measured on test rows
            score, alone = setting.quality["bleu"], setting.speed[0]  # at the first batch size, 1
            print(
                f"{setting.label}: {score.value:.1f} BLEU [{score.low:.1f}, {score.high:.1f}], "
                f"{setting.work.nfe:.1f} forward passes per sample, {alone.p50 * 1000:.0f} ms at batch 1"
            )
    print(f"The report is {args.out}/report.html")


if __name__ == "__main__":
    main()
