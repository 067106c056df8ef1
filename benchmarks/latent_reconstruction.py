"""Reconstruction by the autoencoder of a latent model: share of tokens, from clean and from noisy vectors.

    python benchmarks/latent_reconstruction.py --model runs/latent --data mt/tatoeba.en-de --input src --target ref

On the test split. Rows: clean vectors; vectors at the noise of the sampler's last step (time 1 / steps of the
schedule), decoded directly; and the denoiser's prediction from these, which is what a sampler decodes. Intervals are
95 % bootstrap intervals over texts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import torch

import redraft
from redraft import likelihood
from redraft.data.columns import Columns
from redraft.data.examples import load
from redraft.data.loader import batches, tokenise
from redraft.noise import gaussian
from redraft.objectives.shared import vectors as vectors
from redraft.objectives.shared.autoencoder import Autoencoder
from redraft.types import Forward, VectorQuery


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
    network, spec, what = model.network, model.spec, model.spec.family.continuous
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
            prepared = replace(prepared, log_snr=torch.full_like(prepared.log_snr, float(log_snr)))
            clean = network(vectors.encoding(batch, spec))
            prepared = vectors.add_noise(prepared, clean)
            request = prepared.request
            if denoise:
                query = request.find(VectorQuery)
                assert query is not None
                request = request.with_extra(replace(query, vectors=_denoised(network, model, batch, request, log_snr)))
            logits = network(request)
            logits[:, list(spec.tokens.forbidden)] = -torch.inf
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
    network: likelihood.Network, model: redraft.Model, batch: likelihood.Batch, request: Forward, log_snr: torch.Tensor
) -> torch.Tensor:
    """The clean vectors [R, Q, Z] that the denoiser predicts from noisy ones."""
    query = request.find(VectorQuery)
    assert query is not None and query.vectors is not None and query.noisy is not None
    noisy, z = query.noisy, query.vectors
    column, spec = torch.arange(noisy.shape[1]), model.spec
    ids = torch.nn.functional.pad(batch.ids, (0, max(0, len(column) - batch.ids.shape[1])))[:, : len(column)]
    predict = replace(
        request,
        tokens=torch.where(noisy, spec.tokens.mask_id, ids),
        targets=torch.where(noisy, column, -1),
        time=gaussian.level(spec, log_snr).float().expand(len(z)),
    ).with_extra(VectorQuery("predict", z, noisy))
    v = network(predict)
    return vectors.scatter_vectors(gaussian.clean_of(v, z[noisy], log_snr.to(z).expand(len(v))), noisy)


if __name__ == "__main__":
    main()
