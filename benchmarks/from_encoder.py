"""A trained encoder as the start of a diffusion model: how much training does a pre-trained BERT save?

A ``ModernBertForMaskedLM`` (Warner et al. 2024, arXiv:2412.13663) is trained with BERT's objective (Devlin et al. 2018,
arXiv:1810.04805), saved by ``transformers`` and fine-tuned as masked diffusion by ``redraft finetune``. The same
network with random weights is trained in the same way. Both are scored by the bound on the same validation rows with
the same noise.

python benchmarks/from_encoder.py --data-root DATA --out runs/encoder

Stages run in order. A finished stage is not repeated, and an interrupted run is continued. ``report.json`` holds the
results so far.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import redraft
from redraft.conversion import convert_family
from redraft.data.columns import Columns
from redraft.data.examples import load
from redraft.data.loader import Loader, batches
from redraft.data.tokenising import tokenise
from redraft.data.tokenizer import Tokenizer
from redraft.files import write_atomically
from redraft.likelihood import bound

NAMES = {"<pad>": "[PAD]", "<eos>": "[UNK]", "<bos>": "[CLS]", "<mask>": "[MASK]", "<sep>": "[SEP]"}
LENGTH = 127  # tokens of a window after its [CLS]
BATCH = 2048  # tokens of an update: sixteen windows
FIXED = (
    f"data.length={LENGTH}",
    f"train.batch_tokens={BATCH}",
    "train.ema=0.995",
    "train.schedule=wsd",
    "train.threads=1",
)
FIXED += ("train.dtype=bfloat16", "train.log_every=100", "train.validation_rows=30")
Point = dict[str, float | None]
_CONSTANT = 0.8  # share of a run with constant learning rate (train.schedule = wsd)


def untrained(out: Path, kind: str = "modern_bert") -> Path:
    """A public folder with an encoder of 3M random weights and the tokenizer of the shipped base pair."""
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        ModernBertConfig,
        ModernBertForMaskedLM,
        PreTrainedTokenizerFast,
    )

    folder = out / "untrained"
    if folder.exists():
        return folder
    backend = redraft.load("base-masked").tokenizer.backend.to_str()
    for ours, theirs in NAMES.items():
        backend = backend.replace(f'"{ours}"', f'"{theirs}"')
    file = out / "tokenizer.json"
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(backend, encoding="utf-8")
    words = {f"{key}_token": f"[{key.upper()}]" for key in ("pad", "unk", "cls", "mask", "sep")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **words)
    shape: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4}
    shape |= {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH + 1,
        "pad_token_id": tokenizer.pad_token_id,
    }
    shape |= {"initializer_range": 0.04}  # equivalent to 0.02 at width 768
    torch.manual_seed(0)
    model: Any
    if kind == "bert":
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        model = BertForMaskedLM(BertConfig(intermediate_size=768, **none, **shape))
    else:
        begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        special = {"cls_token_id": begin, "bos_token_id": begin, "sep_token_id": end, "eos_token_id": end}
        model = ModernBertForMaskedLM(ModernBertConfig(intermediate_size=512, **special, **shape))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def hide(ids: Tensor, may: Tensor, vocab_size: int, mask: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """BERT's noise on ``ids`` [B, L]: 15 % of those that ``may`` [B, L] be chosen. Of these, 80 % become the mask, 10 %
    a random token, and 10 % stay. Returns the noisy ids and which were chosen, both [B, L]."""
    chosen = may & (torch.rand(ids.shape, generator=generator) < 0.15)
    draw = torch.rand(ids.shape, generator=generator)
    shown = ids.masked_fill(chosen & (draw < 0.8), mask)
    any_token = torch.randint(len(NAMES), vocab_size, ids.shape, generator=generator)
    return torch.where(chosen & (draw >= 0.9), any_token, shown), chosen


def encoder(out: Path, kind: str, data: str, tokens: int, lr: float) -> None:
    """Train the untrained encoder with BERT's objective: AdamW, warmup over a tenth, linear decay."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder, log = out / "encoder", out / "encoder.json"
    if log.exists():
        return
    torch.set_num_threads(1)
    model = AutoModelForMaskedLM.from_pretrained(untrained(out, kind)).train()
    body, head = (model.bert, model.cls) if kind == "bert" else (model.model, lambda x: model.decoder(model.head(x)))
    tokenizer = vocabulary(untrained(out))
    splits = load(data, Columns(text="text"))
    loader = Loader(tokenise(splits.train, tokenizer), tokenizer, LENGTH, BATCH, seed=1)
    probe = batches(tokenise(splits.validation[:30], tokenizer), tokenizer, LENGTH, 8192)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    noise, seen, step, window = torch.Generator().manual_seed(0), 0, 0, list[Tensor]()

    def loss(batch: Any, generator: torch.Generator) -> Tensor:
        shown, chosen = hide(batch.ids, batch.target, tokenizer.vocab_size, tokenizer.mask_id, generator)
        with torch.autocast("cpu", torch.bfloat16):
            states = body(input_ids=shown, attention_mask=batch.valid.long()).last_hidden_state
            logits = head(states[chosen])  # logits at the chosen positions only
        return F.cross_entropy(logits.float(), batch.ids[chosen])

    begun = time.monotonic()
    while seen < tokens:
        batch = next(loader)
        seen, step = seen + int(batch.valid.sum()), step + 1
        done = min(seen / tokens, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(done / 0.1, (1 - done) / 0.9)
        found = loss(batch, noise)
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        window.append(found.detach())
        if step % 50 == 0 or seen >= tokens:
            rate = seen / (time.monotonic() - begun)
            print(f"encoder {seen:,} tokens: loss {torch.stack(window).mean():.3f}, {rate:,.0f} tokens/s", flush=True)
            window.clear()
    with torch.no_grad():
        model.eval()
        held_out = torch.stack([loss(batch, torch.Generator().manual_seed(9)) for batch in probe]).mean()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(untrained(out)).save_pretrained(folder)
    results = {
        "tokens": seen,
        "lr": lr,
        "held_out_nats_per_chosen_token": float(held_out),
        "parameters": model.num_parameters(),
    }
    write_atomically(log, json.dumps({**results, "seconds": time.monotonic() - begun}) + "\n")


def vocabulary(folder: Path) -> Tokenizer:
    """The tokenizer of a folder as ``redraft finetune`` uses it: documents end with [SEP]."""
    return convert_family(redraft.load(folder), {"name": "masked"}).tokenizer


def finetune(start: Path, out: Path, data: str, tokens: int, lr: float, every: int) -> None:
    """Run ``redraft finetune`` of a folder as masked diffusion. Continues an interrupted run; skips a finished one.

    The learning rate is constant for 80 % of the tokens, so that points of runs of different lengths are comparable,
    and then falls to 5 %.

    Raises:
        SystemExit: the command failed.
    """
    words = [
        sys.executable,
        "-m",
        "redraft",
        "finetune",
        "--from",
        start,
        "--data",
        data,
        "--text",
        "text",
        "--out",
        out,
    ]
    words += ["--tokens", tokens, "--lr", lr, *(word for option in FIXED for word in ("--set", option))]
    words += ["--set", f"train.validate_every={every}"]
    print(f"{out.name}: {tokens:,} tokens at {lr:g}", flush=True)
    if subprocess.run([str(word) for word in words]).returncode:
        raise SystemExit(f"failed: {' '.join(map(str, words))}")


def chosen(start: Path, out: Path, kind: str, data: str, tokens: int, rates: list[float]) -> float:
    """The learning rate with the lowest bound after a short training."""
    for rate in rates:
        finetune(start, out / f"trial-{kind}-{rate:g}", data, tokens, rate, 0)
    return min(rates, key=lambda rate: curve(out / f"trial-{kind}-{rate:g}")[-1]["nats"])


def curve(run: Path) -> list[Point]:
    """The validations of a run: the last one at each number of tokens."""
    file = run / "train" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    found = {line["tokens"]: line for line in lines if line["kind"] == "validation"}
    return [{"tokens": t, "nats": v["nats_per_token"], "error": v["nats_error"]} for t, v in sorted(found.items())]


def worth(nats: float, scratch: list[Point]) -> float | None:
    """Tokens that training from scratch needs to reach a bound, interpolated between two points by the logarithm of the
    tokens; None if it is outside of them."""
    for a, b in pairwise(scratch):
        if b["nats"] <= nats <= a["nats"]:
            share = (a["nats"] - nats) / (a["nats"] - b["nats"]) if a["nats"] > b["nats"] else 0.0
            return math.exp(math.log(a["tokens"]) * (1 - share) + math.log(b["tokens"]) * share)
    return None


def score(folder: Path, data: str, rows: int) -> Point:
    """The bound of the model of a folder on validation rows spread evenly over the set, with the noise of seed 0."""
    torch.set_num_threads(1)
    model = convert_family(redraft.load(folder), {"name": "masked"})
    examples = load(data, Columns(text="text")).validation
    rows = min(rows, len(examples))
    probe = [examples[i * len(examples) // rows] for i in range(rows)]
    whole = batches(tokenise(probe, model.tokenizer), model.tokenizer, LENGTH, 8192)
    found = bound(model.network, whole, model.family.objective(), model.spec)
    return {"nats": found.nats_per_token, "error": found.nats_per_token_stderr, "scored_tokens": float(found.tokens)}


def report(out: Path) -> dict[str, Any]:
    """Both curves, and what training from scratch needs to reach each point of the converted ones. Intermediate points
    are compared with those of the longest run; final points (learning rate at its end, more rows) with final points."""

    def read(file: Path) -> Any:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    runs = {run.name: curve(run) for run in sorted(out.glob("*-*")) if (run / "train").is_dir()}
    ends = {
        run: {"tokens": points[-1]["tokens"], **end}
        for run, points in runs.items()
        if (end := read(out / f"{run}.json"))
    }
    ways = {run: [p for p in points if p["tokens"] <= _CONSTANT * points[-1]["tokens"]] for run, points in runs.items()}
    longest = max((way for run, way in ways.items() if run.startswith("scratch-")), key=len, default=[])
    scratch = sorted((end for run, end in ends.items() if run.startswith("scratch-")), key=lambda end: end["tokens"])
    for run, way in ways.items():
        if run.startswith("converted-"):
            for point in way:
                point["from_scratch"] = worth(point["nats"], longest)
            if run in ends:
                ends[run]["from_scratch"] = worth(ends[run]["nats"], scratch)
    return {
        "encoder": read(out / "encoder.json"),
        "as_it_is": read(out / "as-it-is.json"),
        "on_the_way": runs,
        "ends": ends,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=STAGES, help=f"of {', '.join(STAGES)}; default: all")
    parser.add_argument("--data-root", help="default: $REDRAFT_DATA")
    parser.add_argument("--data", default="lm/novels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", choices=("modern_bert", "bert"), default="modern_bert")
    parser.add_argument("--encoder-tokens", type=int, default=3_000_000)
    parser.add_argument("--encoder-lr", type=float, default=2e-3)
    parser.add_argument("--converted", type=int, nargs="+", default=[1_000_000], metavar="TOKENS")
    parser.add_argument("--scratch", type=int, nargs="+", default=[2_000_000], metavar="TOKENS")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1e-3, 2e-3], help="learning rates to try, each on --trial tokens"
    )
    parser.add_argument("--trial", type=int, default=100_000, metavar="TOKENS")
    parser.add_argument("--every", type=int, default=250_000, metavar="TOKENS", help="tokens between validations")
    parser.add_argument("--rows", type=int, default=120, help="validation rows for the final scores")
    options = parser.parse_args()
    if options.data_root:
        os.environ["REDRAFT_DATA"] = options.data_root
    out, data = options.out, options.data
    if "encoder" in options.stages:
        encoder(out, options.kind, data, options.encoder_tokens, options.encoder_lr)
    for kind, start in (("converted", out / "encoder"), ("scratch", out / "untrained")):
        if kind not in options.stages:
            continue
        rate = chosen(start, out, kind, data, options.trial, options.rates)
        for tokens in getattr(options, kind):
            run = out / f"{kind}-{tokens}"
            finetune(start, run, data, tokens, rate, options.every)
            ended(run, run.name, out, data, options.rows)
            tell(out)
    ended(out / "encoder", "as-it-is", out, data, options.rows)
    print(json.dumps(tell(out)))


def ended(folder: Path, name: str, out: Path, data: str, rows: int) -> None:
    """Score the model of a folder, once, into ``name``.json."""
    if folder.exists() and not (out / f"{name}.json").exists():
        write_atomically(out / f"{name}.json", json.dumps(score(folder, data, rows)) + "\n")


def tell(out: Path) -> dict[str, Any]:
    """Write the report with the results so far."""
    found = report(out)
    write_atomically(out / "report.json", json.dumps(found, indent=1) + "\n")
    return found


STAGES = ["encoder", "converted", "scratch"]

if __name__ == "__main__":
    main()
