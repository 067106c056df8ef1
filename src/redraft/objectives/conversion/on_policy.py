"""On policy: learn the autoregressive model's distributions on texts that the converted model writes itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.objectives.base import Objective, Rollout, SamplePass, Samples
from redraft.objectives.block import Block
from redraft.objectives.conversion.base import ConversionMethod, Converted, Origin
from redraft.objectives.conversion.soft_targets import SoftTargets
from redraft.objectives.masked import Masked
from redraft.objectives.shared import blocks as blocks
from redraft.options import setting
from redraft.types import Batch, Prepared, Spec


@dataclass(frozen=True, kw_only=True)
class OnPolicy(ConversionMethod):
    """On-policy distillation (OPDLM, arXiv:2606.06712; for autoregressive students Agarwal et al. 2024,
    arXiv:2306.13649). The model writes an answer to each prompt of the data. Its canvas before a random round of each
    block is the noisy text, and of the masks that were left then it learns

        KL(p(. | x_<i) || q_i(. | canvas))

    where p is the autoregressive model and x the answer. The answers of the data are not read. Within a block, q sees
    tokens behind i that p does not: there it learns to ignore them. It costs writing the texts and a forward pass of
    the teacher. With ``also`` soft_targets, their share and top apply. Families masked and block, without a length
    head: lengths would be learnt from the model's own.
    """

    generation: Mapping[str, Any] = setting(
        {},
        "Settings of generation (docs/choosing.md) that differ from the model's own. The temperature is 1, without "
        "top_p, top_k and candidates; answers are as long as the longest of the data.",
    )

    rank = 3

    @property
    def brings(self) -> tuple[ConversionMethod, ...]:
        """The divergence from the autoregressive model, and nothing else."""
        return (SoftTargets(share=1.0),)

    def wrap(self, inner: Objective[Any], origin: Origin) -> Objective[Any]:
        """As ``ConversionMethod.wrap``.

        Raises:
            UserError: an objective that masks in another way.
        """
        self.check_inner(inner, (Masked, Block))
        core = inner
        while isinstance(core, Converted):
            core = core.inner
        if not isinstance(core, Masked | Block) or core.complementary:
            what = "[objective] on_policy masks what was left when the model wrote the text, and nothing else."
            raise UserError(what, "Leave out complementary and self_condition.")
        return OnPolicyLoss(inner, origin)


@dataclass(frozen=True)
class OnPolicyLoss(Converted):
    """The loss of ``OnPolicy``."""

    @property
    def curricular(self) -> bool:
        """No: texts are written with the family's attention."""
        return False

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[Prepared]:
        if spec.network.length_head or spec.network.timed:
            what = "[objective] on_policy can't train a length head, or a network that reads the time."
            raise UserError(what, "Set family.length_head to false, and family.timed too.")
        samples: Samples = yield SamplePass(batch, 1, int(torch.randint(1 << 62, (), generator=generator)))
        text, order = samples.batch, samples.order
        assert order is not None
        left = left_at_a_round(order, text.target, blocks.groups(text, spec.network.attention, spec), generator)
        prepared: Prepared = yield from self.inner.rollout(replace(text, hidden=left), spec, generator)
        return prepared


def left_at_a_round(order: Tensor, target: Tensor, group: Tensor, generator: torch.Generator) -> Tensor:
    """The targets that were masks before a random round of each block -> [R, L] bool.

    Args:
        order: [R, L] round in which a position got its token; those of a block are equally likely to be drawn.
        target: [R, L] bool. group: [R, L] the block of each position.
    """
    same = (group[:, :, None] == group[:, None, :]) & target[:, :, None] & target[:, None, :]  # [R, L, L]
    before = torch.ones(order.shape[1], order.shape[1], dtype=torch.bool).tril(-1)
    repeated = (same & (order[:, :, None] == order[:, None, :]) & before).any(2)  # an earlier position has its round
    chance = torch.rand(order.shape, generator=generator).masked_fill(repeated, -1.0)
    drawn = torch.where(same, chance[:, None, :], -1.0).argmax(2)  # [R, L] a position of the block's round
    return target & (order >= order.gather(1, drawn))
