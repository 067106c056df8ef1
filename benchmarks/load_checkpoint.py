"""Loading a large sharded checkpoint: seconds and peak memory, for a synthetic Llama of a given size.

    python benchmarks/load_checkpoint.py [--layers 16] [--shards 5] [--dtype bfloat16] [--folder DIR]

Writes random bfloat16 weights with Llama's tensor names (1.1B parameters by default), then loads them in another
process. Prints one JSON object. The peak includes memory mapped from files; ``anonymous`` is the process's own memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32768,
    "hidden_act": "silu",
}

_LOAD = """
import json, re, sys, time, torch, redraft
from pathlib import Path
torch.zeros(1)
def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before, begin = status("VmHWM"), time.perf_counter()
model = redraft.load(sys.argv[1], "cpu", getattr(torch, sys.argv[2]))
seconds = time.perf_counter() - begin
size = sum(p.numel() * p.element_size() for p in model.network.parameters())
print(json.dumps({
    "parameters": model.parameters, "seconds": round(seconds, 2), "weights_mb": round(size / 1e6),
    "peak_mb": round(status("VmHWM") / 1e6), "before_mb": round(before / 1e6),
    "anonymous_mb": round(status("RssAnon") / 1e6),
}))
"""


def write(folder: Path, layers: int, shards: int) -> None:
    """Write the checkpoint, shard by shard."""
    from safetensors.torch import save_file

    from redraft.convert.llama import Llama
    from redraft.convert.shared.keys import Keys
    from redraft.data.vocabulary import Ids
    from redraft.models import empty

    config = {**_CONFIG, "num_hidden_layers": layers}
    plan = Llama.read(Keys(config, "config.json"), [], Ids(config["vocab_size"]))
    own = dict(empty(plan.network, "benchmark").named_parameters())
    names = list(plan.layout.places)
    where = {}
    for number in range(shards):
        file, state = f"model-{number + 1:05d}-of-{shards:05d}.safetensors", {}
        for name in names[number * len(names) // shards : (number + 1) * len(names) // shards]:
            place = plan.layout.places[name]
            state[name] = torch.empty(place.view(own[place.name]).shape, dtype=torch.bfloat16).normal_(std=0.02)
            where[name] = file
        save_file(state, str(folder / file))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--shards", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        write(Path(name), args.layers, args.shards)
        largest = max(path.stat().st_size for path in Path(name).iterdir())
        run = subprocess.run(
            [sys.executable, "-c", _LOAD, name, args.dtype], capture_output=True, text=True, check=True
        )
    result = json.loads(run.stdout)
    print(
        json.dumps(
            {"benchmark": "load_checkpoint", "dtype": args.dtype, "largest_shard_mb": round(largest / 1e6), **result}
        )
    )


if __name__ == "__main__":
    main()
