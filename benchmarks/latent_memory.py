"""Peak memory of token-space and latent diffusion by text length, in sampling and in training the denoiser.

    python benchmarks/latent_memory.py [--preset 7m] [--ratio 4] [--lengths 512 1024 2048 4096 8192]

One text of the given length at a time, random weights, float32, a vocabulary of 8192. The token-space model is
``masked`` with the sampler ``confidence``. Both run as in ``redraft generate`` and ``redraft train``, in a separate
process for each number. ``less`` is the peak of resident memory above the level with weights and, in training,
optimizer state; ``full`` includes these (as counted), but not Python and torch. Prints one JSON object for each row,
and a table.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import sys

import torch

from redraft.data.vocabulary import Ids, Vocabulary
from redraft.evaluation.memory import PeakMemory
from redraft.likelihood import prepare_batch
from redraft.model import Model
from redraft.objectives.shared.vocabulary import backward
from redraft.presets import preset
from redraft.train import optim
from redraft.types import Batch

_VOCABULARY = 8192


def measure(family: str, length: int, phase: str, name: str, ratio: int) -> dict[str, float]:
    """Bytes of one cell of the table."""
    _work(family, 64, phase, name, ratio)  # load code and tables once
    return _work(family, length, phase, name, ratio)


def _work(family: str, length: int, phase: str, name: str, ratio: int) -> dict[str, float]:
    tokenizer = Vocabulary(Ids(_VOCABULARY, pad=0, eos=1, bos=2, mask=3, sep=4, forbidden=(0, 2, 3, 4)))
    fields = {"name": family, **({"ratio": ratio} if family == "latent" else {})}
    model = Model.fresh(fields, tokenizer, preset(name, _VOCABULARY, max_length=length + 8), paired=False)  # type: ignore[arg-type]
    network, optimizer = model.network, None
    if phase == "training":
        last = model.family.phases()[-1]
        objective = last.objective
        for key, parameter in network.named_parameters():
            parameter.requires_grad_(key.startswith(last.trains))
        optimizer = optim.adamw(network.train(), 1e-3, (0.9, 0.98), 0.1)
        for group in optimizer.param_groups:  # allocate optimizer state before the measurement
            for parameter in group["params"]:
                zero = torch.zeros_like(parameter)
                optimizer.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": zero, "exp_avg_sq": zero.clone()}
    else:
        network.requires_grad_(False)
    ids = torch.randint(5, _VOCABULARY, (1, length + 1), generator=torch.Generator().manual_seed(0))
    target = torch.arange(length + 1)[None] > 0
    gc.collect()
    with PeakMemory(torch.device("cpu")) as memory:
        if optimizer is not None:
            batch = Batch(ids, target, torch.ones_like(target), None, torch.zeros(1, dtype=torch.int64))
            generator = torch.Generator().manual_seed(1)
            prepared, _ = prepare_batch(objective, batch, model.spec, generator, {"main": network})
            backward(network, objective, prepared, 1.0)
            optim.step(optimizer, 1e-3)
        else:
            settings = model.settings(max_new_tokens=length, steps=1, ignore_eos=True, cache="none")
            for _ in model.start([[2]], settings):
                pass
    held = sum(p.numel() * p.element_size() * (3 if optimizer and p.requires_grad else 1) for p in network.parameters())
    less = memory.peak - memory.before
    return {"full": less + held, "less": less}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="7m")
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--phases", nargs="+", default=["sampling", "training"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    forked = multiprocessing.get_context("fork")  # a separate process for each number, without importing again
    print("phase     length   tokens full   less   latent full   less   ratio full   less  (MB)")
    for phase in args.phases:
        for length in args.lengths:
            found = {}
            for family in ("masked", "latent"):
                with forked.Pool(1) as pool:
                    found[family] = pool.apply(measure, (family, length, phase, args.preset, args.ratio))
            token, latent = found["masked"], found["latent"]
            ratios = [token[key] / latent[key] for key in ("full", "less")]
            row = {"phase": phase, "length": length, "ratio": args.ratio, "token": token, "latent": latent}
            print(json.dumps(row), file=sys.stderr)
            numbers = [token["full"], token["less"], latent["full"], latent["less"]]
            print(
                phase, f"{length:7}", *(f"{n / 1e6:11.1f}" for n in numbers), *(f"{r:9.2f}" for r in ratios), flush=True
            )


if __name__ == "__main__":
    main()
