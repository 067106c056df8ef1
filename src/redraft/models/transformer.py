"""One transformer for every family: the request determines its attention pattern and its target positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.models.parts.attention import Attention, AttentionContext, attention_context
from redraft.models.parts.backbone import gather_targets
from redraft.models.parts.block import Block
from redraft.models.parts.config import NetworkConfig
from redraft.models.parts.edits import EditRates
from redraft.models.parts.mlp import SwiGLU
from redraft.models.parts.moe import Experts, MixtureOfExperts
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import RopeScaling, rotary_table
from redraft.models.parts.readout import Readout
from redraft.models.parts.self_conditioning import SelfConditioningProjection
from redraft.models.parts.store import KeyValueView
from redraft.models.parts.time import Modulation, TimeEmbedding
from redraft.runtime import upload
from redraft.types import Forward, StateQuery

_LEAST = {"vocab_size": 1, "dim": 1, "layers": 1, "heads": 1, "kv_heads": 0, "mlp_dim": 0, "max_length": 1}
_LEAST |= {"head_dim": 0, "rotary_dim": 0, "window": 0}


@dataclass(frozen=True)
class Config(NetworkConfig):
    """Shape of a ``Transformer``. ``kv_heads`` and ``mlp_dim`` of 0 mean heads, and 8/3 dim rounded up to 32."""

    vocab_size: int
    dim: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 0
    mlp_dim: int = 0
    max_length: int = 1024
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tied: bool = True
    timed: bool = False
    restart: bool = True  # position numbers of an answer to an isolated prompt start at 0; a learned vector marks it
    shift: int = 0  # the logits of position p are computed at p - shift (autoregressive: 1)
    head_dim: int = 0  # 0: dim / heads
    rotary_dim: int = 0  # components of a head that are rotated; 0: all
    stretch: RopeScaling | None = None  # scaling of the rotary frequencies for longer contexts
    qkv_bias: bool = False
    out_bias: bool = False  # bias of attention's output projection
    mlp_bias: bool = False
    head_bias: bool = False
    experts: Experts | None = None  # mixture of experts in place of the MLP
    window: int = 0  # local attention: layers attend to positions less than this many away; 0: to all positions
    distant: tuple[int, ...] = ()  # layers without local attention
    edits: bool = False  # predicts log-rates of edits instead of tokens (``parts.edits``)
    self_conditioning: bool = False  # self-conditioning: reads the previous prediction (``parts.self_conditioning``)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"model: {name} = {getattr(self, name)} must be at least {least}.")
        if not self.head_dim and self.dim % self.heads or self.head_width % 2:
            raise UserError(
                f"model: dim = {self.dim} can't be split into {self.heads} heads of even width.", "Change dim or heads."
            )
        if self.rotary_dim > self.head_width or self.rotary_dim % 2:
            raise UserError(f"model: rotary_dim = {self.rotary_dim} must be even and at most {self.head_width}.")
        if self.head_bias and self.tied:
            raise UserError(
                "model: head_bias needs an output projection that is not tied to the embedding.", "Set tied to false."
            )
        if self.edits and not self.tied:
            raise UserError("model: edits need an output projection tied to the embedding.", "Set tied to true.")
        if self.heads % self.key_heads:
            raise UserError(
                f"model: heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}.", "Change one of them."
            )

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        return self.head_dim or self.dim // self.heads

    @property
    def hidden(self) -> int:
        return self.mlp_dim or -(-self.dim * 8 // 3 // 32) * 32

    @property
    def radius(self) -> int | None:
        """Greatest distance in local attention (``parts.attention.attention_context``); None: no local attention."""
        return self.window - 1 if self.window else None


def block(c: Config, layer: int) -> Block:
    """A residual block of this shape; ``layer`` is its number in the key-value store."""
    sparse = c.experts is not None and layer not in c.experts.dense
    shape = (c.dim, c.heads, c.key_heads, c.qk_norm, c.norm_eps, layer, c.head_width, c.qkv_bias, c.out_bias)
    return Block(
        RMSNorm(c.dim, c.norm_eps),
        Attention(*shape, local=c.window > 0 and layer not in c.distant),
        RMSNorm(c.dim, c.norm_eps),
        MixtureOfExperts(c.dim, c.experts) if sparse and c.experts else SwiGLU(c.dim, c.hidden, c.mlp_bias),
        Modulation(c.dim, 6) if c.timed else None,
    )


class Transformer(Readout):
    """Pre-norm transformer: RoPE, RMSNorm, SwiGLU, grouped-query attention.

    Optional: QK norm, time conditioning by adaptive layer norm, mixture of experts, local attention.
    """

    rotary: Tensor
    answers_states = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.answer = nn.Parameter(torch.zeros(config.dim)) if config.restart else None  # marks answers
        self.edits = EditRates(config.dim) if config.edits else None
        self.self_conditioning = SelfConditioningProjection(config.dim) if config.self_conditioning else None
        self.head = None if config.tied else nn.Linear(config.dim, config.vocab_size, config.head_bias)
        self.time = TimeEmbedding(config.dim) if config.timed else None
        self.final_modulation = Modulation(config.dim, 2) if config.timed else None
        width = config.rotary_dim or config.head_width
        table = rotary_table(config.max_length, width, config.rope_theta, config.stretch)
        self.register_buffer("rotary", table, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Normal(0, 0.02); outputs of residual branches are scaled by 1/sqrt(2 layers) (GPT-2); no modulation."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=0.02)
        if self.answer is not None:
            nn.init.normal_(self.answer, std=0.02)
        for block in self._each():
            for last in (block.attention.out.weight, *_down(block.mlp)):
                nn.init.normal_(last, std=0.02 / (2 * self.config.layers) ** 0.5)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.project.weight)
        for block in self._each():
            if block.modulation is not None:
                with torch.no_grad():  # gates start at one, scales and shifts at zero: an ordinary transformer
                    block.modulation.project.bias.view(6, -1)[[2, 5]] = 1.0

    def _each(self) -> Iterator[Block]:
        return iter(self.blocks)  # type: ignore[arg-type]

    def context(self, request: Forward, store: KeyValueView | None = None) -> AttentionContext:
        """What all layers of a forward pass share."""
        c = self.config
        return attention_context(request, self.rotary, store, c.restart, c.radius, stretch=c.stretch)

    def marked(self, x: Tensor, request: Forward) -> Tensor:
        """Embeddings [R, Q, D] with the learned vector that marks the answer to an isolated prompt."""
        if self.answer is None or request.prompt is None:
            return x
        return x + upload(request.streams[1] >= request.prompt[:, None], self.device)[..., None] * self.answer

    def states(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """The last hidden states [N, D] of the target positions."""
        condition = self.condition(request)
        seen: list[Tensor] | None = [] if request.find(StateQuery) else None
        x = self.run(self.marked(self.embed(request), request), self.context(request, store), condition, seen=seen)
        last = self.finish(gather_targets(x, request, self.config.shift), request, condition)
        return self.with_states(last, seen, request)


def _down(mlp: nn.Module) -> list[Tensor]:
    """The output matrices of an MLP or of experts."""
    return [parameter for name, parameter in mlp.named_parameters() if name.endswith(("down.weight", "experts_down"))]
