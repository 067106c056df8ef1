"""Reward: make texts with higher rewards likelier, among several that the model generates for each prompt (GRPO)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from redraft.data.examples import Example
from redraft.data.post_training import PromptRows, Prompts, tokenise_prompts
from redraft.data.tokenizer import Tokenizer
from redraft.objectives.base import Rollout, SamplePass, Samples, ScorePass
from redraft.options import REQUIRED, setting
from redraft.posttraining.base import PostTraining, Weighted, WeightedBatch, weighted
from redraft.posttraining.estimators.base import Estimator
from redraft.types import Batch, Spec


@dataclass(frozen=True, kw_only=True)
class Reward(PostTraining):
    """Group-relative policy optimisation (GRPO, Shao et al. 2024, arXiv:2402.03300), on policy: one update for each
    generated text. For G texts y_1 .. y_G of a prompt with rewards r_j:

        A_j = r_j - mean of the other rewards
        loss = mean_j [ -A_j log p(y_j) + kl/2 (log p(y_j) - log p_ref(y_j))^2 ]

    The baseline leaves the text's own reward out, and nothing is divided by the standard deviation: with exact
    likelihoods the gradient of the first term is that of the expected reward, without bias. The second term has the
    gradient of KL(p || p_ref). The estimator of log p decides which published method this is:

    - ``exact``: GRPO of an autoregressive model.
    - ``coupled``, ``levels``, ``blocks``: the sequence's ELBO as one action (ESPO, arXiv:2512.03759).
    - ``left_to_right``: JustGRPO (arXiv:2601.15165), exact for masked models that generate from left to right.
    - ``one_step``: diffu-GRPO (d1, arXiv:2504.12216), a biased baseline.
    """

    reward: str = setting(REQUIRED, "A file of rewards/, or FILE.py:FUNCTION.", flag="--reward", metavar="NAME")
    reward_options: Mapping[str, Any] = setting({}, "Options of the reward.")
    group: int = setting(8, "Texts generated for each prompt, G.", least=2)
    kl: float = setting(0.001, "Weight of the divergence from the starting checkpoint; 0: it is not needed.", least=0)
    generation: Mapping[str, Any] = setting(
        {},
        "Settings of generation (docs/choosing.md) that differ from the model's own. The temperature is 1, without "
        "top_p, top_k and candidates.",
    )

    learning_rate = 1e-5
    passes = 1.0
    estimators: ClassVar[tuple[str, ...]] = ("exact", "blocks", "coupled")

    def rows(self) -> PromptRows:
        return PromptRows()

    def tokenise(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Prompts:
        return tokenise_prompts(examples, tokenizer)

    def objective(self, estimator: Estimator) -> RewardLoss:
        return RewardLoss(estimator, self.group, self.kl)


@dataclass(frozen=True)
class RewardLoss(Weighted):
    """The loss of ``Reward``. Its value is kl times the penalty minus the mean reward.

    Reported are means over texts of ``reward``, ``length`` (tokens), ``truncated`` and, if there is a reference, ``kl``
    (half the squared difference of the log-likelihoods, in nats); and ``identical``, the share of groups whose rewards
    are all equal, from which nothing is learned.
    """

    group: int
    kl: float

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override] # of this instance
        """The divergence is measured from the starting checkpoint."""
        return self.kl > 0

    def units_of_row(self) -> int:
        """The texts of a group."""
        return self.group

    def units(self, batch: Batch) -> int:
        """Texts that are generated for a batch [B, L]."""
        return len(batch.ids) * self.group

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[WeightedBatch]:
        seed = int(torch.randint(1 << 62, (), generator=generator))
        samples: Samples = yield SamplePass(batch, self.group, seed)
        prepared = self.prepare(samples.batch, spec, generator)
        factors, value = advantages(samples.reward, self.group), -samples.reward.sum()
        reward = samples.reward.view(-1, self.group)
        stats = {
            "reward": reward.mean(),
            "length": samples.batch.target.sum(1).double().mean(),
            "identical": (reward == reward[:, :1]).all(1).double().mean(),
            "truncated": samples.truncated.double().mean(),
        }
        if self.kl:
            own = yield ScorePass(prepared)
            reference = yield ScorePass(prepared, "teacher")
            gain = reference - own  # log p - log p_ref, whose gradient is minus that of the nats
            factors = factors - self.kl * gain
            stats["kl"] = (gain**2 / 2).mean()
            value = value + self.kl * (gain**2 / 2).sum()
        prepared = yield from self.shares(prepared, factors)
        return weighted(prepared, factors, value, self.units(batch), stats)

    def shares(self, prepared: WeightedBatch, factors: Tensor) -> Generator[ScorePass, Tensor, WeightedBatch]:
        """The batch with the weights by which its targets count in the log-likelihood of their row.

        Args:
            factors: [B] of each row's nats: negative for texts that get unlikelier.
        """
        return prepared
        yield  # makes this function a generator, which runs no forward pass


def advantages(reward: Tensor, group: int) -> Tensor:
    """Each reward [R] minus the mean of the others of its group, where groups of ``group`` follow each other -> [R].

    Equal rewards give exactly 0.
    """
    each = reward.view(-1, group)
    return ((each[:, :, None] - each[:, None, :]).sum(2) / (group - 1)).flatten()
