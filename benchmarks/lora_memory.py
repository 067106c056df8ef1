"""Memory and speed of LoRA: redraft against ``transformers`` + ``peft``, and redraft's plan against what it measures.

    python benchmarks/lora_memory.py [--shapes 30m,135m,600m] [--updates 4] [--rounds 2] [--threads 2] [--out FOLDER]

Each contender trains adapters of rank 8 on all matrices of the blocks of one checkpoint with random weights, 1,024
tokens an update (4 rows of 256), in a process of its own. The peak is that of the resident memory of the whole process,
with Python, torch and the loading of the weights. The shape ``600m`` is that of Qwen3-0.6B (vocabulary 151,936). Prints
a table, and one JSON object last: the median tokens per second and the greatest peak of the rounds, which alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS, LENGTH, RANK = 4, 256, 8
SHAPES: dict[str, dict[str, Any]] = {
    "30m": {"dim": 448, "layers": 9, "heads": 7, "kv_heads": 7, "mlp_dim": 1216, "vocab_size": 8192},
    "135m": {"dim": 576, "layers": 30, "heads": 9, "kv_heads": 3, "mlp_dim": 1536, "vocab_size": 49152},
    "600m": {
        "dim": 1024,
        "layers": 28,
        "heads": 16,
        "kv_heads": 8,
        "head_dim": 128,
        "mlp_dim": 3072,
        "vocab_size": 151_936,
        "rope_theta": 1e6,
    },
}
OURS: dict[str, list[str]] = {
    "redraft": [],
    "redraft, selective": ["train.activation_checkpointing=selective"],
    "redraft, int8": ["lora.base_dtype=int8"],
    "redraft, nf4": ["lora.base_dtype=nf4"],
}
PEFT = "transformers + peft"


def checkpoint(folder: Path, shape: dict[str, Any]) -> Path:
    """A Qwen3 checkpoint of this shape with random weights in bfloat16, and a byte-level tokenizer."""
    import torch
    from safetensors.torch import save_file

    from redraft import models
    from redraft.convert.shared import llama
    from redraft.data.tokenizer import Tokenizer
    from redraft.models.transformer import Config

    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = Config(**shape, max_length=4096, qk_norm=True, restart=False, shift=1)
    network, state = models.empty({"name": "transformer", **vars(config)}, "shape"), {}
    own = dict(network.named_parameters())
    for name, place in llama.layout(config).places.items():
        wanted = place.view(own[place.name]).shape
        random = torch.randn(wanted) * 0.02 if len(wanted) > 1 else torch.ones(wanted)
        state[name] = random.bfloat16()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    described = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False}
    described |= {**llama.to_keys(config), "dtype": "bfloat16", "eos_token_id": 1, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(described))
    Tokenizer.bytes().save(folder)
    return folder


def recipe(folder: Path, updates: int, threads: int, changes: list[str]) -> Any:
    """The run as a recipe, as ``redraft finetune`` makes it."""
    from redraft.train.recipe import Recipe

    text = folder.parent / "text.txt"
    lines = (f"{number} is a number, and its square is {number * number}." for number in range(20_000))
    text.write_text("\n".join(lines))
    return Recipe.of(
        {
            "data": {"source": str(text), "length": LENGTH, "fractions": [1.0, 0.0, 0.0]},
            "model": {"from": str(folder)},
            "family": {"name": "autoregressive", "prompt_encoder": False},
            "lora": {"rank": RANK, "alpha": 2.0 * RANK},
            "train": {"tokens": updates * ROWS * LENGTH, "batch_tokens": ROWS * LENGTH, "log_every": 1},
        },
        overrides=[f"train.threads={threads}", "train.validation_rows=0", "train.lr=1e-4", *changes],
    )


def ours(folder: Path, updates: int, threads: int, changes: list[str]) -> dict[str, Any]:
    """Train with redraft."""
    from redraft.train.logging import Event
    from redraft.train.loop import train

    speeds: list[float] = []

    def watch(event: Event) -> None:
        if event.kind == "update":
            speeds.append(event.values["tokens_per_second"])

    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        train(recipe(folder, updates, threads, changes), Path(out) / "run", device="cpu", on_event=watch)
    return {"tokens_per_second": statistics.median(speeds[1:])}


def theirs(folder: Path, updates: int, threads: int) -> dict[str, Any]:
    """Train with ``transformers`` and ``peft`` in bfloat16, in a plain loop."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    speeds = []
    for _ in range(updates):
        ids = torch.randint(5, 261, (ROWS, LENGTH))
        begun = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        speeds.append(ROWS * LENGTH / (time.perf_counter() - begun))
    return {"tokens_per_second": statistics.median(speeds[1:])}


def one(name: str, folder: Path, updates: int, threads: int) -> dict[str, Any]:
    """Run one contender in this process."""
    from redraft.evaluation.memory import peak_resident

    found = theirs(folder, updates, threads) if name == PEFT else ours(folder, updates, threads, OURS[name])
    return {**found, "peak": peak_resident()}


def planned(name: str, folder: Path) -> int:
    """The peak that redraft's plan predicts for one of its contenders."""
    import torch

    from redraft.planning.training import plan

    return plan(recipe(folder, 1, 1, OURS[name]), torch.device("cpu")).total


def run(name: str, folder: Path, updates: int, threads: int, flag: str = "--one") -> Any:
    """Run one contender, or plan it, in a process of its own; what it printed."""
    words = [sys.executable, __file__, flag, name, "--out", str(folder), "--updates", str(updates)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([*words, "--threads", str(threads)], stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"failed: {name} in {folder}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="30m,135m,600m")
    parser.add_argument("--contenders", help=f"separated by ';'; default: {'; '.join([*OURS, PEFT])}")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "redraft-lora-memory")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one or options.plan:
        found: Any = planned(options.plan, options.out) if options.plan else None
        print(json.dumps(found or one(options.one, options.out, options.updates, options.threads)))
        return
    contenders = options.contenders.split(";") if options.contenders else [*OURS, PEFT]
    results: dict[str, Any] = {}
    for shape in options.shapes.split(","):
        folder = checkpoint(options.out / shape, SHAPES[shape])
        runs = [
            (name, run(name, folder, options.updates, options.threads))
            for _ in range(options.rounds)
            for name in contenders
        ]
        for name in contenders:
            mine = [found for other, found in runs if other == name]
            plan = run(name, folder, 1, options.threads, "--plan") if name in OURS else None
            peak, speed = max(m["peak"] for m in mine), statistics.median(m["tokens_per_second"] for m in mine)
            results[f"{shape}, {name}"] = {"peak": peak, "planned": plan, "tokens_per_second": speed}
            share = "" if plan is None else f"  plan {plan / 1e9:5.2f} GB ({plan / peak - 1:+.0%})"
            print(f"{shape:5} {name:22} {speed:8.1f} tokens/s  peak {peak / 1e9:5.2f} GB{share}", flush=True)
    print(json.dumps({"machine": platform.machine(), "cores": os.cpu_count(), "results": results}))


if __name__ == "__main__":
    main()
