"""Quality against forward passes for every sampler of masked models, on one trained model and the same rows.

    python benchmarks/samplers.py [--model translate-en-de-masked] [--data mt/tatoeba.en-de] [--rows 300]
        [--candidates 4] [--only confidence threshold ...] [--out results.jsonl]

Prints one JSON object for each setting, and a table at the end. The temperature is 0 unless the setting names another;
intervals are 95 % bootstrap intervals over rows.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import redraft
from redraft.data.columns import Columns
from redraft.data.examples import load
from redraft.evaluation import stats
from redraft.evaluation.items import make_items
from redraft.metrics.bleu import Bleu
from redraft.metrics.chrf import Chrf

Setting = tuple[str, dict[str, Any], float]


def grid() -> list[Setting]:
    """Sampler, its options, and temperature of each setting."""
    found: list[Setting] = [("confidence", {"steps": steps}, 0.0) for steps in (1, 2, 3, 4, 6, 8, 12, 16)]
    found += [("confidence", {"steps": steps, "schedule": "cosine"}, 0.0) for steps in (4, 8)]
    for order in ("margin", "entropy", "random", "left"):
        found += [("confidence", {"steps": steps, "order": order}, 0.0) for steps in (4, 8, 16)]
    found += [("confidence", {"steps": 8, "position_temperature": t}, 0.0) for t in (0.02, 0.1)]
    found += [("threshold", {"threshold": bar}, 0.0) for bar in (0.1, 0.3, 0.5, 0.7, 0.85)]
    found += [("factor", {"factor": factor}, 0.0) for factor in (0.7, 1.0, 1.5, 2.0, 3.0)]
    found += [("entropy_bound", {"gamma": gamma}, 0.0) for gamma in (0.1, 1.0, 2.0, 4.0, 8.0)]
    found += [
        ("hierarchical", {"threshold": high, "low": low}, 0.0) for high, low in ((0.8, 0.5), (0.7, 0.3), (0.7, 0.1))
    ]
    found += [("slow_fast", {"reach": reach, "threshold": bar}, 0.0) for reach, bar in ((0.3, 0.7), (0.1, 0.4))]
    found += [
        ("prophet", {"steps": steps, "early": gap, "middle": gap * 2 / 3, "late": gap / 3}, 0.0)
        for steps, gap in ((8, 7.5), (8, 5.0), (8, 3.0), (16, 3.0))
    ]
    found += [("mask_predict", {"steps": steps}, 0.0) for steps in (2, 4, 8)]
    found += [
        ("joint_threshold", {"threshold": bar, "edit": edit}, 0.0) for bar, edit in ((0.5, 0.1), (0.5, 0.5), (0.7, 0.5))
    ]
    found += [
        ("wino", {"threshold": bar, "verify": verify}, 0.0) for bar, verify in ((0.3, 0.2), (0.3, 0.5), (0.6, 0.7))
    ]
    found += [
        ("multi_block", {"block": block, "threshold": entropy}, 0.0) for block in (4, 8) for entropy in (0.4, 1.5, 3.0)
    ]
    found += [("token_to_mask", {"threshold": bar, "doubt": 0.1}, 0.0) for bar in (0.5, 0.9)]
    found += [("token_to_mask", {"threshold": 0.5, "by": "change", "doubt": 0.3}, 0.0)]
    for strategy in ("cap", "rescale", "conf", "loop", "forward_backward"):
        found.append(("remdm", {"steps": 32, "strategy": strategy, "eta": 0.04}, 0.0))
    found.append(("remdm", {"steps": 8, "strategy": "cap", "eta": 0.04}, 0.0))
    found += [("ancestral", {"steps": steps}, 0.0) for steps in (8, 32)] + [("first_hitting", {}, 0.0)]
    found += [("first_hitting", {}, 1.0), ("confidence", {"steps": 16}, 1.0), ("entropy_bound", {"gamma": 2.0}, 1.0)]
    return found


def measure(model: Any, asked: list[Any], setting: Setting, candidates: int, **more: Any) -> dict[str, Any]:
    """Quality and forward passes of a setting. ``more``: other settings of generation."""
    name, options, temperature = setting
    begin = time.perf_counter()
    texts = model.generate(
        [item.prompt for item in asked],
        sampler=name,
        options=options,
        temperature=temperature,
        candidates=candidates,
        **more,
    )
    result: dict[str, Any] = {
        "sampler": name,
        "options": options,
        "temperature": temperature,
        "passes": sum(text.nfe for text in texts) / len(texts),
        "seconds": time.perf_counter() - begin,
    }
    for metric in (Bleu(), Chrf()):
        score = metric.score([text.text for text in texts], [item.references for item in asked])
        around = stats.interval(score.stats[None], metric.combine)
        result[metric.name] = [around.value, around.low, around.high]
    return result


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown. A setting is marked if no other has a higher BLEU with as few forward passes."""
    lines = ["| sampler | options | passes a text | BLEU | chrF |", "|---|---|---:|---|---|"]
    for one in results:
        options = ", ".join(
            f"{key} {value:g}" if not isinstance(value, str) else value for key, value in one["options"].items()
        )
        if one["temperature"]:
            options = ", ".join([*([options] if options else []), f"temperature {one['temperature']:g}"])
        beaten = any(other["passes"] <= one["passes"] and other["bleu"][0] > one["bleu"][0] for other in results)
        cells = [f"{one[name][0]:.1f} [{one[name][1]:.1f}, {one[name][2]:.1f}]" for name in ("bleu", "chrf")]
        name = one["sampler"] if beaten else f"**{one['sampler']}**"
        lines.append(f"| {name} | {options} | {one['passes']:.1f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="translate-en-de-masked")
    parser.add_argument("--data", default="mt/tatoeba.en-de")
    parser.add_argument("--data-root")
    parser.add_argument("--input", default=None)
    parser.add_argument("--target", default=None)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--only", nargs="*", help="samplers; unset: all")
    parser.add_argument("--out", type=Path, help="JSON lines; what it holds already is not measured again")
    args = parser.parse_args()
    columns = Columns(input=args.input, target=args.target) if args.input else None
    examples = getattr(load(args.data, columns, data_root=args.data_root), args.split)
    model = redraft.load(args.model)
    asked = make_items(examples, model.tokenizer, args.rows, model.paired, model.settings().max_new_tokens)
    results: list[dict[str, Any]] = []
    if args.out is not None and args.out.exists():
        results = [json.loads(line) for line in args.out.read_text().splitlines()]
    done = [(one["sampler"], one["options"], one["temperature"]) for one in results]
    for setting in grid():
        if setting in done or (args.only and setting[0] not in args.only):
            continue
        results.append(measure(model, asked, setting, args.candidates))
        print(json.dumps(results[-1]), flush=True)
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
