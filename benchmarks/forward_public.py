"""One forward pass of public checkpoints: redraft against transformers, with the same weights, in turn.

    python benchmarks/forward_public.py [--dim 512] [--layers 8] [--length 256] [--rounds 15]

Random Llama, Qwen2, Qwen3 and GPT-2 of about 35M parameters; logits at every position. Prints one JSON object for each
model: median seconds of both (of their CPU time if the machine is shared), and their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

import torch
import transformers

import redraft
from redraft.types import Forward


def models(dim: int, layers: int) -> dict[str, Any]:
    shared = {
        "hidden_size": dim,
        "intermediate_size": 3 * dim,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 8192,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }
    gpt = {"n_embd": dim, "n_head": 8, "n_layer": layers, "n_positions": 1024, "vocab_size": 8192}
    t = transformers
    return {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**shared)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**shared)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**shared, head_dim=dim // 8)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**gpt)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    for name, make in models(args.dim, args.layers).items():
        theirs = make().eval()
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            model = redraft.load(folder, "cpu")
        network, ids = model.inference_network(), torch.randint(0, 8192, (1, args.length))
        pos = torch.arange(args.length)[None]
        request = Forward(tokens=ids, positions=pos, targets=pos + 1, attention=model.spec.network.attention)
        calls = {
            "ours": lambda network=network, request=request: network(request),
            "theirs": lambda theirs=theirs, ids=ids: theirs(ids).logits,
        }
        took: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
        with torch.inference_mode():
            gap = (network(request) - theirs(ids).logits[0]).abs().max()
            for _ in range(args.rounds):
                for who, call in calls.items():
                    wall, busy = time.perf_counter(), time.process_time()
                    call()
                    took[who].append((time.perf_counter() - wall, time.process_time() - busy))
        wall, busy = ({who: statistics.median(part[i] for part in took[who]) for who in took} for i in (0, 1))
        result = {
            "benchmark": "forward_public",
            "model": name,
            "parameters": model.parameters,
            "length": args.length,
            "threads": torch.get_num_threads(),
            "ours_ms": round(wall["ours"] * 1e3, 1),
            "theirs_ms": round(wall["theirs"] * 1e3, 1),
            "ours_cpu_ms": round(busy["ours"] * 1e3, 1),
            "theirs_cpu_ms": round(busy["theirs"] * 1e3, 1),
            "cpu_ratio": round(busy["theirs"] / busy["ours"], 2),
            "largest_difference": float(gap),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
