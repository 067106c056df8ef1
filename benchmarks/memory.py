"""Memory over many generations: resident size after a warmup, and after a thousand more generations.

    python benchmarks/memory.py --model translate-en-de-masked [--generations 1000]

Prompts have different lengths, and samplers alternate. Prints one JSON object; growth should be noise around zero.
"""

from __future__ import annotations

import argparse
import gc
import json
import random

import redraft
from redraft.evaluation.memory import peak_resident, resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="translate-en-de-masked")
    parser.add_argument("--generations", type=int, default=1000)
    args = parser.parse_args()
    model = redraft.load(args.model, "cpu")
    causal = model.spec.network.shift == 1
    choices = [{"sampler": "autoregressive"}] if causal else [{"steps": 4}, {"sampler": "threshold"}, {"candidates": 4}]
    words = "the weather is nice today and we should go for a walk in the park".split()  # noqa: SIM905
    generator = random.Random(0)

    def some(count: int) -> None:
        for number in range(count):
            prompt = " ".join(generator.choices(words, k=generator.randint(1, 24)))
            model.generate(prompt, max_new_tokens=generator.randint(4, 48), **choices[number % len(choices)])

    some(100)
    gc.collect()
    before = resident()
    some(args.generations)
    gc.collect()
    after = resident()
    print(
        json.dumps(
            {
                "benchmark": "memory",
                "model": args.model,
                "generations": args.generations,
                "resident_mb_after_100": round(before / 1e6, 1),
                "resident_mb_at_the_end": round(after / 1e6, 1),
                "growth_mb": round((after - before) / 1e6, 2),
                "peak_mb": round(peak_resident() / 1e6, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
