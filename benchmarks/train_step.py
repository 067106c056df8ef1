"""One training update of redraft against a plain loop over a ``transformers`` Llama, with the same weights and batch.

    python benchmarks/train_step.py [--preset 7m] [--rows 32] [--length 128] [--rounds 6] [--threads 2]

All run forward, backward and AdamW on the same batch of plain text, in turn: redraft in the precision that its training
selects on this machine, the plain loop in float32, and the plain loop with bfloat16 autocast. Prints one JSON object:
tokens per second of each (median of paired rounds), ratios, and the share of the matmul peak. The peak is measured in
every round and the greatest value counts; the share is null if an update was faster than that.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from contextlib import nullcontext
from functools import partial

import torch

from redraft.bench._twin import llama_twin
from redraft.models.transformer import Transformer
from redraft.objectives.autoregressive import Autoregressive
from redraft.objectives.shared.vocabulary import backward
from redraft.presets import preset
from redraft.runtime import bfloat16_is_faster, keep_freed_memory
from redraft.train import optim
from redraft.train.throughput import Peak
from redraft.types import AttentionPattern, Batch, FamilyFacts, NetworkFacts, Spec, TokenIds

VOCABULARY = 8192
UPDATES = 3  # updates in each timed round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="7m")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    network = Transformer(preset(args.preset, VOCABULARY, shift=1)).train()
    twins = {"float32": llama_twin(network).train(), "bfloat16": llama_twin(network).train()}
    ids = torch.randint(5, VOCABULARY, (args.rows, args.length + 1))
    target = torch.ones_like(ids, dtype=torch.bool)
    target[:, 0] = False
    batch = Batch(ids, target, torch.ones_like(target), None, torch.full((args.rows,), args.length))
    spec = Spec(TokenIds(VOCABULARY, 0, 1, 3), NetworkFacts(AttentionPattern("causal"), shift=1), FamilyFacts())
    objective, noise = Autoregressive(), torch.Generator()
    ours_optimizer = optim.adamw(network, 1e-4, (0.9, 0.98), 0.1)
    theirs_optimizers = {
        name: torch.optim.AdamW(twin.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.1)
        for name, twin in twins.items()
    }
    low = bfloat16_is_faster(torch.device("cpu"))

    def ours() -> float:
        prepared = objective.prepare(batch, spec, noise)
        loss = backward(network, objective, prepared, 1.0, low)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=True)
        optim.step(ours_optimizer, 1e-4)
        return float(loss)

    def theirs(name: str) -> float:
        twin, optimizer = twins[name], theirs_optimizers[name]
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16"):
            loss = twin(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    contenders = {"ours": ours, **{name: partial(theirs, name) for name in twins}}
    losses = {name: run() for name, run in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    peak = Peak(torch.device("cpu"), torch.bfloat16 if low else torch.float32)
    for _ in range(args.rounds):
        for name, run in contenders.items():
            with keep_freed_memory() if name == "ours" else nullcontext():  # as in training
                run()  # warmup after the turn of another
                begin = time.perf_counter()
                for _ in range(UPDATES):
                    run()
                times[name].append((time.perf_counter() - begin) / UPDATES)
        peak.measure(seconds=0.4)
    flops = network.forward_cost().of_training(objective.prepare(batch, spec, noise))
    parameters = sum(p.numel() for p in network.parameters())
    report(args, parameters, times, losses, low, flops, peak)


def report(
    args: argparse.Namespace,
    parameters: int,
    times: dict[str, list[float]],
    losses: dict[str, float],
    low: bool,
    flops: float,
    peak: Peak,
) -> None:
    """Print the result as JSON; ``low``: redraft computes in bfloat16."""
    tokens, median = args.rows * args.length, statistics.median(times["ours"])
    share = peak.share(flops / median)

    def against(name: str) -> dict[str, object]:
        ratios = [b / a for a, b in zip(times["ours"], times[name], strict=True)]
        return {
            "tokens_per_second": round(tokens / statistics.median(times[name])),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_min_max": [round(min(ratios), 2), round(max(ratios), 2)],
        }

    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "preset": args.preset,
                "parameters": parameters,
                "batch": [args.rows, args.length],
                "first_losses": {name: round(loss, 4) for name, loss in losses.items()},
                "ours_tokens_per_second": round(tokens / median),
                "ours_dtype": "bfloat16" if low else "float32",
                "transformers_float32": against("float32"),
                "transformers_bfloat16_autocast": against("bfloat16"),
                "share_of_peak": None if share is None else round(share, 3),
                "peak_gflops": round(peak.flops / 1e9),
                "threads": args.threads,
                "machine": f"{platform.machine()}, torch {torch.__version__}",
            }
        )
    )


if __name__ == "__main__":
    main()
