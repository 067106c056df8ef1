"""Greedy decoding, batch 1: ours against ``transformers`` ``generate`` with KV cache, same weights, same ids.

    python benchmarks/ar_decode.py [--preset 7m] [--new-tokens 128] [--rounds 5] [--threads 2]

Prints one JSON object: tokens a second of both (median of paired rounds) and their ratio.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch
from llama_twin import llama_twin

from redraft.caches.exact import Exact
from redraft.canvas import make_canvas
from redraft.decode import Loop, Method
from redraft.models._lean import Lean
from redraft.models.transformer import Transformer
from redraft.presets import preset
from redraft.samplers.autoregressive import Autoregressive
from redraft.types import Attend, Spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="7m")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--int8", action="store_true", help="ours with int8 weights")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    network = Transformer(preset(args.preset, 8192, shift=1)).eval().requires_grad_(False)
    for parameter in network.parameters():  # random weights with opinions, so that argmax has margins
        if parameter.ndim == 2:
            parameter.mul_(2)
    twin, lean = llama_twin(network).eval(), Lean(network, args.int8)
    prompt = torch.randint(5, 8192, (1, args.prompt))
    spec = Spec(8192, 0, -1, 3, Attend("causal"), False, False, 1, False, None)

    def ours() -> list[int]:
        row = [*prompt[0].tolist(), *[None] * args.new_tokens]
        canvas = make_canvas([row], [args.prompt], spec, seeds=[0])
        for _ in Loop({"main": lean}, Method(Autoregressive(), Exact()), spec).run(canvas):
            pass
        return canvas.ids[0, args.prompt :].tolist()

    def theirs() -> list[int]:
        with torch.inference_mode():
            out = twin.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=args.new_tokens, do_sample=False
            )
        return out[0, args.prompt :].tolist()

    same = ours() == theirs()
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(args.rounds):
        for name, run in (("ours", ours), ("theirs", theirs)):
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "ar_decode",
                "preset": args.preset,
                "parameters": sum(p.numel() for p in network.parameters()),
                "prompt": args.prompt,
                "new_tokens": args.new_tokens,
                "weights": "int8" if args.int8 else "float32",
                "identical_ids": same,
                "ours_tokens_per_second": round(args.new_tokens / statistics.median(times["ours"]), 1),
                "transformers_tokens_per_second": round(args.new_tokens / statistics.median(times["theirs"]), 1),
                "ratio": round(statistics.median(ratios), 2),
                "ratio_min_max": [round(min(ratios), 2), round(max(ratios), 2)],
                "threads": args.threads,
                "machine": f"{platform.machine()}, torch {torch.__version__}",
            }
        )
    )


if __name__ == "__main__":
    main()
