"""Encoding a prompt once for each text instead of in every forward pass: the time saved.

    python benchmarks/encode_once.py

One text at a time, 24 new tokens, prompts of three lengths, networks of preset 3m with random weights (the cost does
not depend on them): an encoder-decoder with the exact cache and without a cache, and a transformer with as many
weights, all in their fast CPU form. Milliseconds are CPU time of this process on one thread, the minimum of several
rounds; operations are counted. Prints one JSON object for each case.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch

from redraft.data.tokenizer import Tokenizer
from redraft.model import Model
from redraft.presets import shape

NEW, ROUNDS = 24, 5
WAYS: dict[str, dict[str, Any]] = {"autoregressive": {}, "masked": {"steps": 8, "length": "fixed"}}


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.bytes()
    for family, way in WAYS.items():
        for network in ("cross_attention", "transformer"):
            model = Model.fresh({"name": family}, tokenizer, shape("3m", tokenizer.vocab_size, network), True)
            for length in (16, 64, 256):
                prompt = [int(i) for i in torch.randint(8, 250, (length - 1,))] + [tokenizer.sep_id]
                for cache in ("exact", "none"):
                    measure(model, family, network, prompt, cache, way)


def measure(model: Model, family: str, network: str, prompt: list[int], cache: str, way: dict[str, Any]) -> None:
    settings = model.settings(max_new_tokens=NEW, ignore_eos=True, cache=cache, **way)
    seconds = []
    for _ in range(ROUNDS):
        drafting = model.start([prompt], settings)
        begun = time.process_time()
        for _ in drafting:
            pass
        seconds.append(time.process_time() - begun)
    work = vars(drafting.loop.counter)
    counted = {name: work[name] for name in ("queries", "pairs", "targets", "encoded", "encoded_pairs")}
    found = {"family": family, "network": network, "cache": cache, "prompt": len(prompt), "new": NEW}
    found |= {"passes": work["passes"], "encoded": work["encoded"]}
    found |= {"mflop": round(model.network.forward_cost().of_counts(**counted) / 1e6, 1)}
    print(json.dumps(found | {"cpu_ms": round(1000 * min(seconds), 2)}), flush=True)


if __name__ == "__main__":
    main()
