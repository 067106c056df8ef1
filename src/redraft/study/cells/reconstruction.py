"""The share of tokens that the autoencoder of a latent model reconstructs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from redraft.data.loader import batches
from redraft.data.tokenising import tokenise
from redraft.errors import UserError
from redraft.objectives.shared import vectors as vectors
from redraft.objectives.shared.autoencoder import Autoencoder
from redraft.rollouts import evaluating
from redraft.study.cells.base import Bench, Cell, ModelCell
from redraft.study.cells.data import Data

_CLEAN = 60.0  # log-SNR of vectors without noise


@dataclass(frozen=True)
class Reconstruction(Cell):
    """Tokens that are decoded as they were, from the vectors that the encoder makes of them, without noise."""

    trained: ModelCell
    data: Data

    @property
    def label(self) -> str:
        return f"reconstruction by {self.trained.model} on {self.data.task}, seed {self.trained.seed}"

    def work(self, bench: Bench) -> dict[str, Any]:
        """Encode and decode the test rows.

        Raises:
            UserError: the model has no autoencoder.
        """
        model = bench.model(self.trained.folder(bench.out))
        spec, network = model.spec, model.network
        if spec.family.continuous is None:
            raise UserError(f"'{self.trained.model}' has no autoencoder.", "Name a model of family latent.")
        rows = self.data.examples(bench.out, "test")[: self.data.test_rows]
        parts = batches(tokenise(rows, model.tokenizer), model.tokenizer, self.data.length, 4096, "skip")
        hits, tokens = list[float](), list[int]()
        with evaluating(network), torch.inference_mode():
            for batch in parts:
                prepared = Autoencoder().prepare(batch, spec, torch.Generator().manual_seed(0))
                prepared = replace(prepared, log_snr=torch.full_like(prepared.log_snr, _CLEAN))
                prepared = vectors.add_noise(prepared, network(vectors.encoding(batch, spec)))
                logits = network(prepared.request)
                logits[:, list(spec.tokens.forbidden)] = -torch.inf
                hit = (logits.argmax(-1) == prepared.target).double()
                hits += torch.zeros(prepared.rows).double().index_add_(0, prepared.row, hit).tolist()
                tokens += batch.target.sum(1).tolist()
        return {"hits": hits, "tokens": tokens}
