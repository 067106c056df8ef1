"""DiffusionGemma: a Gemma 4 that reads text causally, and denoises a block after it whose positions all see it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError
from redraft.models.parts.attention import Attention, AttentionContext, attention_context
from redraft.models.parts.backbone import EVERY, Backbone, gather_targets
from redraft.models.parts.config import NetworkConfig
from redraft.models.parts.flops import ForwardCost, matrix_entries
from redraft.models.parts.mlp import Activation, GatedMlp
from redraft.models.parts.moe import Experts, MixtureOfExperts
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import rotary_table
from redraft.models.parts.self_conditioning import previous_mean
from redraft.models.parts.store import KeyValueView
from redraft.runtime import upload
from redraft.types import CleanStream, DraftQuery, Forward


@dataclass(frozen=True)
class Config(NetworkConfig):
    """Shape of a ``DiffusionGemma``. Layers in ``distant`` see all of the text before, others ``window`` - 1 positions.

    The two kinds of layers differ in their heads, and in the base and the share of their rotary positions.
    """

    vocab_size: int
    dim: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    distant_kv_heads: int = 2
    distant_head_dim: int = 128
    mlp_dim: int = 512
    experts: Experts = Experts(8, 2, 128, normalise=True, activation="gelu_tanh", scaled=True)
    max_length: int = 1024
    window: int = 512
    distant: tuple[int, ...] = (5,)
    near_theta: float = 10_000.0
    distant_theta: float = 1_000_000.0
    distant_turning: float = 0.25  # share of the pairs of a wide head that are rotated, the fastest ones
    norm_eps: float = 1e-6
    cap: float = 30.0  # logits are cap tanh(z / cap)
    activation: Activation = "gelu_tanh"
    self_conditioning: bool = True  # requests hold previous predictions; without them, they count as zero
    shift: int = 1  # of the causal reading; blocks are requested with a shift of 0 (``DraftQuery``)

    def __post_init__(self) -> None:
        for heads, name in ((self.kv_heads, "kv_heads"), (self.distant_kv_heads, "distant_kv_heads")):
            if heads < 1 or self.heads % heads:
                raise UserError(
                    f"model: heads = {self.heads} is not a multiple of {name} = {heads}.", "Change one of them."
                )
        if self.head_dim < 2 or self.head_dim % 2 or self.distant_head_dim < 2 or self.distant_head_dim % 2:
            raise UserError("model: head_dim and distant_head_dim must be even.", "Change them.")
        if self.window < 1 or self.cap <= 0 or not 0 <= self.distant_turning <= 1:
            raise UserError("model: window, cap or distant_turning is out of range.", "Restore the file.")

    @property
    def tied(self) -> bool:
        """The output projection is the embedding."""
        return True

    @property
    def key_heads(self) -> int:
        return self.kv_heads

    @property
    def hidden(self) -> int:
        return self.mlp_dim


@dataclass
class ReadingContext(AttentionContext):
    """Attention, and which positions belong to a block that is being written rather than to text that is read."""

    written: Tensor | None = None  # [R, Q, 1] bool; None: all text is read


class GemmaAttention(Attention):
    """Attention without 1 / sqrt(Dh), whose queries, keys and values are normalised in every head.

    In layers that see all text, there is no projection of values: they are the normalised keys, before the gain of
    their norm and the rotation.
    """

    scale = 1.0

    def __init__(self, c: Config, layer: int) -> None:
        near = layer not in c.distant
        kv_heads, width = (c.kv_heads, c.head_dim) if near else (c.distant_kv_heads, c.distant_head_dim)
        super().__init__(c.dim, c.heads, kv_heads, True, c.norm_eps, layer, width, local=near)
        self.eps = c.norm_eps
        if not near:
            self.qkv = nn.Linear(c.dim, (c.heads + kv_heads) * width, bias=False)

    def projected(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys before rotation [R, Q, H + Hk, Dh], and values [R, Q, Hk, Dh], of the heads in ``qkv``."""
        assert self.q_norm is not None and self.k_norm is not None
        query, key = qkv[:, :, : self.heads], qkv[:, :, self.heads : self.heads + self.kv_heads]
        value = qkv[:, :, -self.kv_heads :]  # the keys, if the layer has no values of its own
        both = torch.cat([self.q_norm(query), self.k_norm(key)], 2)
        return both, F.rms_norm(value, value.shape[-1:], None, self.eps)


class GemmaBlock(nn.Module):
    """s (y + norm(norm(mlp(norm(y))) + norm(experts(norm(y))))) with y = x + norm(attention(norm(x))).

    The router reads y itself. The number s is another one for text that is read than for a block that is written.
    """

    def __init__(self, c: Config, layer: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(c.dim, c.norm_eps), GemmaAttention(c, layer)
        self.attended_norm = RMSNorm(c.dim, c.norm_eps)
        self.mlp_norm, self.mlp = RMSNorm(c.dim, c.norm_eps), GatedMlp(c.dim, c.mlp_dim, c.activation, bias=False)
        self.mlp_out_norm = RMSNorm(c.dim, c.norm_eps)
        self.experts_norm, self.experts = RMSNorm(c.dim, c.norm_eps), MixtureOfExperts(c.dim, c.experts)
        self.experts_out_norm = RMSNorm(c.dim, c.norm_eps)
        self.sum_norm = RMSNorm(c.dim, c.norm_eps)
        self.read_scale, self.write_scale = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        self.dropout = 0.0

    def forward(self, x: Tensor, context: AttentionContext, condition: Tensor | None) -> Tensor:
        x = x + self._drop(self.attended_norm(self.attention(self.attention_norm(x), context)))
        both = self.mlp_out_norm(self.mlp(self.mlp_norm(x)))
        both = both + self.experts_out_norm(self.experts(self.experts_norm(x), x))
        x = x + self._drop(self.sum_norm(both))
        written = context.written if isinstance(context, ReadingContext) else None
        scale = self.read_scale if written is None else torch.where(written, self.write_scale, self.read_scale)
        return x * scale.to(x.dtype)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout > 0 else x


class PreviousPrediction(nn.Module):
    """rms_norm(x + mlp(norm(m))), with x the embedding and m the mean embedding of the previous prediction."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.norm, self.mlp = RMSNorm(c.dim, c.norm_eps), GatedMlp(c.dim, c.mlp_dim, c.activation, bias=False)
        self.eps = c.norm_eps

    def forward(self, x: Tensor, mean: Tensor) -> Tensor:
        """Embeddings [R, Q, D] and mean embeddings [R, Q, D] -> [R, Q, D]."""
        y = x + self.mlp(self.norm(mean.to(x.dtype)))
        return F.rms_norm(y, y.shape[-1:], None, self.eps)


class DiffusionGemma(Backbone):
    """Google's DiffusionGemma (text) on the layers of Gemma 4; in transformers, ``DiffusionGemmaForBlockDiffusion``.

    A request without drafts reads text causally. From ``DraftQuery.draft_from`` on, and in the noisy stream of two
    streams, a block is written: all of its positions see each other and the text before. Layers with a window see the
    last ``window`` - 1 positions of this text. Both ways share all weights but a number for each layer (``read_scale``,
    ``write_scale``) and the input, which in a block adds the previous prediction (self-conditioning).
    """

    near: Tensor
    distant: Tensor

    isolates_prompts = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        self.blocks = nn.ModuleList(GemmaBlock(c, layer) for layer in range(c.layers))
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.previous = PreviousPrediction(c)
        turning = int(c.distant_turning * c.distant_head_dim // 2)
        self.register_buffer("near", rotary_table(c.max_length, c.head_dim, c.near_theta), persistent=False)
        wide = rotary_table(c.max_length, c.distant_head_dim, c.distant_theta, turning=turning)
        self.register_buffer("distant", wide, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def enable_self_conditioning(self, enabled: bool) -> None:
        """Whether requests hold previous predictions. The weights that read them are always there."""
        self.config = replace(self.config, self_conditioning=enabled)

    def forward_cost(self) -> ForwardCost:
        """Operations per unit of work. Every position is counted as one of a block, with a previous prediction."""
        blocks: list[Any] = list(self.blocks)
        layers = [part for block in blocks for part in (block.attention, block.mlp, block.experts)]
        return ForwardCost(
            position=2 * matrix_entries(*layers, self.previous),
            pair=sum(4 * block.attention.heads * block.attention.head_dim for block in blocks),
            prediction=2 * self.embedding.weight.numel(),
        )

    def states(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """The last hidden states [N, D] of the target positions."""
        x = self.run(self.embed(request), self.context(request, store))
        return self.norm(gather_targets(x, request, self.config.shift))

    def context(self, request: Forward, store: KeyValueView | None = None) -> ReadingContext:
        """What all layers of a forward pass share."""
        radius, written = self.config.window - 1, _written(request)
        found = attention_context(request, self.distant, store, False, radius, self.near, whole=True)
        return ReadingContext(
            **vars(found), written=None if written is None else upload(written, self.device)[..., None]
        )

    def embed(self, request: Forward) -> Tensor:
        """Inputs [R, Q, D] of the blocks: scaled embeddings, with the previous prediction where a block is written."""
        size = self.config.dim**0.5
        x, written = super().embed(request) * size, _written(request)
        if written is None:
            return x
        columns = written.any(0).nonzero()[:, 0]  # the others only read
        first, last = int(columns[0]), int(columns[-1]) + 1
        part, mean = x[:, first:last], previous_mean(request, self.embedding.weight)
        mean = torch.zeros_like(part) if mean is None else mean[:, first:last] * size
        part = torch.where(upload(written[:, first:last], self.device)[..., None], self.previous(part, mean), part)
        return torch.cat([x[:, :first], part, x[:, last:]], 1)

    def project(self, states: Tensor, request: Forward, part: slice = EVERY) -> Tensor:
        """Hidden states [n, D] -> logits [n, V], of at least float32."""
        logits, cap = self.onto_vocabulary(states), self.config.cap
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).div(cap).tanh().mul(cap)


def _written(request: Forward) -> Tensor | None:
    """[R, Q] bool, on the host, over both streams: positions of a block that is being written; None: there are none."""
    tokens, positions = request.streams
    if request.find(CleanStream) is not None:
        noisy = torch.arange(tokens.shape[1], device=positions.device) < request.tokens.shape[1]
        return noisy.expand_as(positions)
    draft = request.find(DraftQuery)
    if draft is None or draft.draft_from is None:
        return None
    written = positions >= draft.draft_from[:, None]
    return written if bool(written.any()) else None
