"""Mixture of experts: each token is routed to a few of many small MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError
from redraft.models.parts.mlp import Activation, SwiGLU, activate
from redraft.models.parts.packed import Packed, linear, product_dtype


@dataclass(frozen=True)
class Experts:
    """Shape and routing of the experts.

    ``softmax``: probabilities over all experts, of which the ``active`` largest are chosen (Switch, arXiv:2101.03961;
    OLMoE, arXiv:2409.02060). ``sigmoid``: an independent score for each expert. A ``bias`` is added to the scores for
    the choice only, to balance the load (DeepSeek-V3, arXiv:2412.19437). With ``groups`` > 1, only experts of the
    ``top_groups`` groups with the largest sum of their two best scores can be chosen. ``normalise``: the weights of the
    chosen experts sum to one. All weights are multiplied by ``scale``.

    ``scaled``: the router reads x / rms(x) times a learned vector / sqrt(D), and the weight of each expert has a
    learned factor (Gemma 4).
    """

    count: int
    active: int
    hidden: int  # width of one expert
    shared: int = 0  # width of an expert that processes every token; 0: none
    dense: tuple[int, ...] = ()  # layers with an ordinary MLP instead
    score: Literal["softmax", "sigmoid"] = "softmax"
    bias: bool = False
    normalise: bool = False
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    activation: Activation = "silu"
    scaled: bool = False
    norm_eps: float = 1e-6  # of rms(x) in a ``scaled`` router

    def __post_init__(self) -> None:
        if not 0 < self.active <= self.count:
            raise UserError(
                f"experts: active = {self.active} must be between 1 and count = {self.count}.", "Change one of them."
            )
        if not 0 < self.top_groups <= self.groups or self.count % self.groups:
            raise UserError(
                f"experts: {self.count} experts can't be split into {self.groups} groups of which {self.top_groups} "
                "are chosen.",
                "Set groups to a divisor of count, and top_groups to at most groups.",
            )


class MixtureOfExperts(nn.Module):
    """sum over the chosen experts e of w_e down_e(act(gate_e x) * up_e x), plus the shared expert."""

    experts_gate_up: nn.Parameter | Packed  # [E, 2 H, D]
    experts_down: nn.Parameter | Packed  # [E, D, H]

    def __init__(self, dim: int, experts: Experts) -> None:
        super().__init__()
        self.experts = experts
        self.router = nn.Linear(dim, experts.count, bias=False)
        self.balance = nn.Parameter(torch.zeros(experts.count)) if experts.bias else None
        self.input_scale = nn.Parameter(torch.ones(dim)) if experts.scaled else None
        self.expert_scale = nn.Parameter(torch.ones(experts.count)) if experts.scaled else None
        self.experts_gate_up = nn.Parameter(torch.empty(experts.count, 2 * experts.hidden, dim).normal_(std=0.02))
        self.experts_down = nn.Parameter(torch.empty(experts.count, dim, experts.hidden).normal_(std=0.02))
        self.shared = SwiGLU(dim, experts.shared) if experts.shared else None

    def forward(self, x: Tensor, routed: Tensor | None = None) -> Tensor:
        """[..., D] -> [..., D]. ``routed`` [..., D]: what the router reads; None: x."""
        flat = x.reshape(-1, x.shape[-1])
        weight, chosen = self.route(flat if routed is None else routed.reshape(flat.shape))
        if x.device.type == "cuda" and self.groupable:
            own = 0.0 if self.shared is None else self.shared(flat)
            return (own + self.grouped(flat, weight, chosen)).view_as(x)
        total = torch.zeros_like(flat) if self.shared is None else self.shared(flat)
        active = self.experts.active
        order = chosen.flatten().argsort()  # the tokens of one expert are contiguous
        token, weight = order.div(active, rounding_mode="floor"), weight.flatten()[order].to(x.dtype)
        sizes = torch.bincount(chosen.flatten(), minlength=self.experts.count).tolist()
        for expert, (part, share) in enumerate(zip(token.split(sizes), weight.split(sizes), strict=True)):
            if len(part):
                gate, up = self.gate_up(flat[part], expert).chunk(2, -1)
                y = self.down(activate(gate, self.experts.activation) * up, expert)
                total = total.index_add(0, part, (y * share[:, None]).to(total.dtype))  # they differ in autocast
        return total.view_as(x)

    @property
    def groupable(self) -> bool:
        """The matrices of all experts are plain tensors, and this torch has products that take them together."""
        plain = isinstance(self.experts_gate_up, Tensor) and isinstance(self.experts_down, Tensor)
        return plain and hasattr(torch.nn.functional, "grouped_mm")

    def gate_up(self, x: Tensor, expert: int) -> Tensor:
        """Gate and up of one expert, [T, D] -> [T, 2 H]."""
        return linear(x, self.experts_gate_up[expert])

    def down(self, x: Tensor, expert: int) -> Tensor:
        """The output of one expert, [T, H] -> [T, D]."""
        return linear(x, self.experts_down[expert])

    def grouped(self, flat: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """The same sum by grouped matrix products, without asking the device how many tokens each expert has.

        Hidden states [T, D], weights and experts [T, active] -> [T, D].
        """
        count, active = chosen.shape
        sorted_experts, order = chosen.flatten().sort(stable=True)  # the tokens of one expert are contiguous
        ends = torch.searchsorted(sorted_experts, torch.arange(self.experts.count, device=flat.device), right=True)
        dtype = product_dtype(flat)
        rows, ends = flat[order.div(active, rounding_mode="floor")].to(dtype), ends.int()
        assert isinstance(self.experts_gate_up, Tensor) and isinstance(self.experts_down, Tensor)
        gate_up, down = (part.to(dtype).transpose(1, 2) for part in (self.experts_gate_up, self.experts_down))
        gate, up = F.grouped_mm(rows, gate_up, offs=ends).chunk(2, -1)
        y = F.grouped_mm(activate(gate, self.experts.activation) * up, down, offs=ends)
        back = torch.empty_like(y).index_copy(0, order, y).view(count, active, -1)
        return (back * weight[..., None].to(back.dtype)).sum(1)

    def route(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states [T, D] -> weights and indices of the chosen experts, [T, active] each; at least float32."""
        e, exact = self.experts, torch.promote_types(flat.dtype, torch.float32)
        flat = flat.to(exact)
        if self.input_scale is not None:
            width = flat.shape[-1:]
            flat = F.rms_norm(flat, width, None, e.norm_eps) * (self.input_scale.to(exact) * width[0] ** -0.5)
        logits = F.linear(flat, self.router.weight.to(exact))
        score = logits.softmax(-1) if e.score == "softmax" else logits.sigmoid()
        rank = score if self.balance is None else score + self.balance
        if e.groups > 1:
            grouped = rank.view(len(rank), e.groups, -1)
            best = grouped.topk(min(2, grouped.shape[-1]), -1).values.sum(-1).topk(e.top_groups, -1).indices
            open_ = torch.zeros(len(rank), e.groups, dtype=torch.bool, device=rank.device).scatter_(1, best, True)
            rank = grouped.masked_fill(~open_[..., None], -torch.inf).view_as(rank)
        chosen = rank.topk(e.active, -1).indices
        weight = score.gather(1, chosen)
        if e.normalise:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        weight = weight * e.scale
        return (weight if self.expert_scale is None else weight * self.expert_scale.to(exact)[chosen]), chosen
