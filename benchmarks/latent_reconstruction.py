"""How much of a text a latent model's autoencoder gives back: share of tokens, from clean vectors and under noise.

    python benchmarks/latent_reconstruction.py --model runs/latent --data mt/tatoeba.en-de --input src --target ref

On the test split. Rows: clean vectors; vectors at the noise of the sampler's last step (time 1 / steps of the
schedule), decoded as they are; and what the denoiser makes of those, which is what a sampler decodes. Intervals are
95 % bootstrap intervals over texts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import torch

import redraft
from redraft import likelihood
from redraft.data.examples import Columns, load
from redraft.data.loader import batches, tokenise
from redraft.noise import gaussian
from redraft.objectives import _vectors as vectors
from redraft.objectives._autoencoder import Autoencoder
from redraft.types import Forward, Vectors


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--text")
    parser.add_argument("--input")
    parser.add_argument("--target")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32])
    args = parser.parse_args()
    model = redraft.load(args.model, "cpu")
    network, spec, what = model.network, model.spec, model.spec.continuous
    assert what is not None
    test = load(args.data, Columns(text=args.text, input=args.input, target=args.target)).test[: args.rows]
    most = min(512, network.config.max_length - 1)
    parts = batches(tokenise(test, model.tokenizer), model.tokenizer, most, 8192, "skip")
    levels = {"clean": (torch.tensor(60.0), False)}
    for steps in args.steps:
        g = gaussian.log_snr(spec, torch.tensor(1 / steps))
        levels |= {f"last of {steps} steps": (g, False), f"last of {steps} steps, denoised": (g, True)}
    for name, (log_snr, denoise) in levels.items():
        generator, right, count = torch.Generator().manual_seed(0), [], []
        for batch in parts:
            prepared = Autoencoder().prepare(batch, spec, generator)
            extra = {**prepared.extra, "log_snr": torch.full_like(prepared.extra["log_snr"], float(log_snr))}
            clean = network(vectors.encoding(batch, spec))
            prepared = vectors.noised(replace(prepared, extra=extra), clean)
            ask = prepared.ask
            assert ask.vectors is not None and ask.vectors.noisy is not None
            if denoise:
                ask = replace(ask, vectors=replace(ask.vectors, z=_denoised(network, model, batch, ask, log_snr)))
            logits = network(ask)
            logits[:, list(spec.forbidden)] = -torch.inf
            hit = (logits.argmax(-1) == prepared.target).double()
            right.append(torch.zeros(prepared.rows).double().index_add_(0, prepared.row, hit))
            count.append(batch.target.sum(1).double())
        hits, tokens = torch.cat(right), torch.cat(count)
        draws = torch.randint(len(hits), (1000, len(hits)), generator=generator)
        shares = hits[draws].sum(1) / tokens[draws].sum(1)
        low, high = shares.quantile(torch.tensor([0.025, 0.975]).double()).tolist()
        row = {"vectors": name, "log_snr": round(float(log_snr), 2), "tokens": int(tokens.sum()), "texts": len(hits)}
        row |= {"share": round(float(hits.sum() / tokens.sum()), 5), "interval": [round(low, 5), round(high, 5)]}
        print(json.dumps(row), flush=True)


def _denoised(
    network: likelihood.Network, model: redraft.Model, batch: likelihood.Batch, ask: Forward, log_snr: torch.Tensor
) -> torch.Tensor:
    """The clean vectors that the denoiser predicts from noisy ones, [R, Q, Z]."""
    assert ask.vectors is not None and ask.vectors.z is not None and ask.vectors.noisy is not None
    noisy, z = ask.vectors.noisy, ask.vectors.z
    column, spec = torch.arange(noisy.shape[1]), model.spec
    ids = torch.nn.functional.pad(batch.ids, (0, max(0, len(column) - batch.ids.shape[1])))[:, : len(column)]
    predict = replace(
        ask,
        x=torch.where(noisy, spec.mask_id, ids),
        want=torch.where(noisy, column, -1),
        t=gaussian.level(spec, log_snr).float().expand(len(z)),
        vectors=Vectors("predict", z, noisy),
    )
    v = network(predict)
    return vectors.rectangle(gaussian.clean_of(v, z[noisy], log_snr.to(z).expand(len(v))), noisy)


if __name__ == "__main__":
    main()
