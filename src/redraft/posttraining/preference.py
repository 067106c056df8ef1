"""Preference: make preferred answers likelier than rejected ones, compared with a reference model (DPO, VRPO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from redraft.data.examples import Example
from redraft.data.post_training import Comparisons, PreferenceRows, tokenise_preferences
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.objectives.base import Rollout, ScorePass
from redraft.options import setting
from redraft.posttraining.base import PostTraining, Weighted, WeightedBatch, weighted
from redraft.posttraining.estimators.base import Estimator
from redraft.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class Preference(PostTraining):
    """DPO (Rafailov et al. 2023, arXiv:2305.18290), and VRPO for diffusion models (LLaDA 1.5, arXiv:2505.19223). For a
    preferred answer w and a rejected one l, with a frozen copy of the starting checkpoint as the reference:

        s = beta [ (log p(w) - log p_ref(w)) - (log p(l) - log p_ref(l)) ],    loss = -log sigmoid(s) + sft nll(w)

    nll(w) is per token. Diffusion models use estimates of their bound in place of log p. Both networks see the same
    noise, so that its effects mostly cancel in s, and a model equal to its reference has s = 0 exactly.
    """

    beta: float = setting(0.2, "Strength of the reference: larger values keep the model closer to it.", above=0)
    sft: float | None = setting(
        None,
        "Weight of the likelihood of the preferred answer. Unset: 0.05 for bounds, 0 for exact likelihoods.",
        least=0,
    )
    rejected: str = setting("rejected", "Column of the rejected answers; --target names that of the preferred ones.")

    learning_rate = 1e-5
    passes = 1.0
    estimators = ("exact", "blocks", "levels")

    def rows(self) -> PreferenceRows:
        return PreferenceRows(self.rejected)

    def tokenise(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Comparisons:
        return tokenise_preferences(examples, tokenizer)

    def objective(self, estimator: Estimator) -> PreferenceLoss:
        sft = (0.0 if estimator.exact else 0.05) if self.sft is None else self.sft
        return PreferenceLoss(estimator, self.beta, sft)


@dataclass(frozen=True)
class PreferenceLoss(Weighted):
    """The loss of ``Preference``. In a batch of 2 P rows, row P + i is the rejected answer to the prompt of row i.

    Reported are the means over pairs of ``margin`` (s), ``accuracy`` (s > 0; half a point for s = 0), and
    ``chosen_gain`` and ``rejected_gain``, log p - log p_ref in nats; and ``drift``, the mean absolute gain per token.
    """

    beta: float
    sft: float

    needs_teacher = True

    def units(self, batch: Batch) -> int:
        """Pairs of a batch [2 P, L]."""
        return len(batch.ids) // 2

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[WeightedBatch]:
        pairs = self.units(batch)
        if 2 * pairs != len(batch.ids):
            raise UserError("A batch of preferences has an odd number of rows.", "Give rows of chosen and rejected.")
        prepared = self.prepare(batch, spec, generator)
        own = yield ScorePass(prepared)
        reference = yield ScorePass(prepared, "teacher")
        gain = reference - own
        margin = self.beta * (gain[:pairs] - gain[pairs:])
        slope = self.beta * torch.sigmoid(-margin)
        length = batch.target.sum(1).clamp(min=1).cpu()
        likelihood = self.sft / length[:pairs]
        value = F.softplus(-margin) + likelihood * own[:pairs]
        stats = {
            "margin": margin.mean(),
            "accuracy": ((margin > 0).double() + 0.5 * (margin == 0)).mean(),
            "chosen_gain": gain[:pairs].mean(),
            "rejected_gain": gain[pairs:].mean(),
            "drift": (gain.abs() / length).mean(),
        }
        return weighted(prepared, torch.cat([slope + likelihood, -slope]), value.sum(), pairs, stats)
