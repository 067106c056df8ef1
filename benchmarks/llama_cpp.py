"""GGUF exports in llama.cpp itself: its logits and token ids against redraft's, for every architecture that is written.

    pip install xllamacpp                                            # llama.cpp as a shared library
    python -m benchmarks.llama_cpp --headers LLAMA_CPP [--model base-autoregressive --model base-masked]

LLAMA_CPP is a source folder of llama.cpp of about the same build, whose headers a small function in C++ is compiled
with. Without --model, tiny random checkpoints of every architecture are written. Keys and values are kept in float32.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from redraft import load
from redraft.convert import export
from redraft.data.tokenizer import Tokenizer
from redraft.model import Model
from redraft.presets import preset

TEXT = "It's 1234 o'clock,\n\n  the café 猫 "
LENGTH = 40
_FAMILIES = [
    ("llama", {"name": "autoregressive"}, {"kv_heads": 2}),
    ("llama with biases", {"name": "autoregressive"}, {"qkv_bias": True, "out_bias": True, "mlp_bias": True}),
    ("qwen2", {"name": "autoregressive"}, {"qkv_bias": True}),
    ("qwen3", {"name": "autoregressive"}, {"qk_norm": True, "head_dim": 32}),
    ("dream", {"name": "masked", "shift": 1}, {"qkv_bias": True}),
    ("llada", {"name": "masked"}, {"kv_heads": 2}),
]
_SOURCE = """
#include "llama.h"
#include <cstring>
extern "C" int evaluate(const char *path, const int *ids, int n, bool causal, float *logits, const char *text,
                        int *tokens, int most, int *count) {
    llama_backend_init();
    llama_model *model = llama_model_load_from_file(path, llama_model_default_params());
    if (!model) return 1;
    const llama_vocab *vocab = llama_model_get_vocab(model);
    *count = llama_tokenize(vocab, text, strlen(text), tokens, most, true, false);
    llama_context_params how = llama_context_default_params();
    how.n_ctx = how.n_batch = how.n_ubatch = n;
    how.n_threads = how.n_threads_batch = 1;
    how.type_k = how.type_v = GGML_TYPE_F32;
    how.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context *context = llama_init_from_model(model, how);
    if (!context) return 2;
    llama_set_causal_attn(context, causal);
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch.token[i] = ids[i];
        batch.pos[i] = i;
        batch.n_seq_id[i] = batch.logits[i] = 1;
        batch.seq_id[i][0] = 0;
    }
    if (llama_decode(context, batch)) return 3;
    memcpy(logits, llama_get_logits(context), sizeof(float) * n * llama_vocab_n_tokens(vocab));
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
"""


def library(headers: Path, folder: Path) -> ctypes.CDLL:
    """The function ``evaluate``, with the functions of llama.cpp from the package."""
    source, made = folder / "evaluate.cpp", folder / "evaluate.so"
    source.write_text(_SOURCE)
    places = [f"-I{headers / 'include'}", f"-I{headers / 'ggml' / 'include'}"]
    subprocess.run(["g++", "-shared", "-fPIC", *places, str(source), "-o", str(made)], check=True)
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_GLOBAL | os.RTLD_NOW)
    __import__("xllamacpp")
    sys.setdlopenflags(before)
    return ctypes.CDLL(str(made))


def compare(lib: ctypes.CDLL, model: Model, file: Path) -> str:
    """How much the logits of all positions differ, and whether the token ids are equal."""
    size = model.network.config.vocab_size
    ids = torch.randint(5, size, (LENGTH,), generator=torch.Generator().manual_seed(0))
    causal = model.spec.family.schedule is None
    if not causal:
        ids[LENGTH // 2 : LENGTH - 5] = model.tokenizer.mask_id
    given = ids.numpy().astype(np.int32)
    found, tokens, count = np.zeros((LENGTH, size), np.float32), np.zeros(512, np.int32), ctypes.c_int()
    arrays = [array.ctypes.data_as(ctypes.c_void_p) for array in (given, found, tokens)]
    text = TEXT.encode()
    code = lib.evaluate(
        str(file).encode(), arrays[0], LENGTH, causal, arrays[1], text, arrays[2], len(tokens), ctypes.byref(count)
    )
    if code:
        return f"llama.cpp can't read it (step {code})"
    ours = model.logits(ids[None])[0]
    difference = (torch.from_numpy(found) - ours).abs().max()
    same = tokens[: count.value].tolist() == model.tokenizer.encode_opening(TEXT)
    return f"logits within {difference:.1e} of up to {ours.abs().max():.1f}, token ids {'equal' if same else 'differ'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--headers", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--storage", action="append", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, lines = Path(place), []
        lib = library(args.headers, folder)
        models = [(name, load(name)) for name in args.model]
        if not models:
            tokenizer = Tokenizer.train([TEXT, "the cat sat on the mat " * 3], 300)
            for name, family, shape in _FAMILIES:
                config = preset("toy", tokenizer.vocab_size, dim=64, layers=2, heads=4, **shape)
                models.append((name, Model.fresh(family, tokenizer, config, paired=False)))
        for name, model in models:
            for parameter in model.network.parameters() if not args.model else ():
                parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
            for storage in args.storage or ["float32"]:
                out = folder / f"{name.replace(' ', '-')}-{storage}"
                export("gguf", model.network, model.tokenizer, model.spec, out, storage, "", model.paired)
                lines.append(f"{name}, {storage}: {compare(lib, model, out / f'{out.name}.gguf')}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
