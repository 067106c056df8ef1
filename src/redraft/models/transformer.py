"""One transformer for every family: what it sees and predicts is decided by the request, not by the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.models.parts.attention import Attention, see
from redraft.models.parts.backbone import pick
from redraft.models.parts.block import Block
from redraft.models.parts.edits import EditRates
from redraft.models.parts.guess import Guessed
from redraft.models.parts.mlp import SwiGLU
from redraft.models.parts.moe import Experts, MixtureOfExperts
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import Stretch, rotary_table
from redraft.models.parts.readout import Readout
from redraft.models.parts.store import KeyValueStore
from redraft.models.parts.time import Modulation, TimeEmbedding
from redraft.types import Forward

_LEAST = {"vocab_size": 1, "dim": 1, "layers": 1, "heads": 1, "kv_heads": 0, "mlp_dim": 0, "max_length": 1}
_LEAST |= {"head_dim": 0, "rotary_dim": 0, "window": 0}


@dataclass(frozen=True)
class Config:
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
    restart: bool = True  # positions of an answer to an isolated prompt count from 0 again, and it is marked
    shift: int = 0  # the logits of position p stand at p - shift (autoregressive 1)
    head_dim: int = 0  # 0: dim / heads
    rotary_dim: int = 0  # numbers of a head that are rotated; 0: all
    stretch: Stretch | None = None  # of the rotations, for longer contexts
    qkv_bias: bool = False
    out_bias: bool = False  # of attention's output
    mlp_bias: bool = False
    head_bias: bool = False
    experts: Experts | None = None  # instead of one MLP a layer
    window: int = 0  # layers see what is less than so many positions away, but for those in ``distant``; 0: everything
    distant: tuple[int, ...] = ()
    edits: bool = False  # predicts log-rates of edits (``parts.edits``), and not tokens
    guess: bool = False  # is told what it predicted before (``parts.guess``)

    encoder_layers = 0  # every layer reads prompt and answer alike

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"model: {name} = {getattr(self, name)} must be at least {least}.")
        if not self.head_dim and self.dim % self.heads or self.head_width % 2:
            raise UserError(f"model: dim {self.dim} does not split into {self.heads} heads of even width.")
        if self.rotary_dim > self.head_width or self.rotary_dim % 2:
            raise UserError(f"model: rotary_dim {self.rotary_dim} must be even, and at most {self.head_width}.")
        if self.head_bias and self.tied:
            raise UserError("model: head_bias needs a head of its own.", "Set tied to false.")
        if self.edits and not self.tied:
            raise UserError("model: edits are read off the embedding.", "Set tied to true.")
        if self.heads % self.key_heads:
            raise UserError(f"model: heads {self.heads} is not a multiple of kv_heads {self.kv_heads}.")

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
    def reach(self) -> int | None:
        """How far layers see that don't see everything (``attention.see``)."""
        return self.window - 1 if self.window else None


def _block(c: Config, layer: int) -> Block:
    sparse = c.experts is not None and layer not in c.experts.dense
    shape = (c.dim, c.heads, c.key_heads, c.qk_norm, c.norm_eps, layer, c.head_width, c.qkv_bias, c.out_bias)
    return Block(
        RMSNorm(c.dim, c.norm_eps),
        Attention(*shape, near=c.window > 0 and layer not in c.distant),
        RMSNorm(c.dim, c.norm_eps),
        MixtureOfExperts(c.dim, c.experts) if sparse and c.experts else SwiGLU(c.dim, c.hidden, c.mlp_bias),
        Modulation(c.dim, 6) if c.timed else None,
    )


class Transformer(Readout):
    """Pre-norm transformer: RoPE, RMSNorm, SwiGLU, grouped-query attention; optional QK norm, adaLN time, experts."""

    rotary: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(_block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.answer = nn.Parameter(torch.zeros(config.dim)) if config.restart else None  # tells answer from prompt
        self.edits = EditRates(config.dim) if config.edits else None
        self.guess = Guessed(config.dim) if config.guess else None
        self.head = None if config.tied else nn.Linear(config.dim, config.vocab_size, config.head_bias)
        self.time = TimeEmbedding(config.dim) if config.timed else None
        self.final_modulation = Modulation(config.dim, 2) if config.timed else None
        width = config.rotary_dim or config.head_width
        table = rotary_table(config.max_length, width, config.rope_theta, config.stretch)
        self.register_buffer("rotary", table, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Normal(0, 0.02), residual outputs scaled by 1/sqrt(2 layers) (GPT-2); modulations start at zero."""
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
                with torch.no_grad():  # gates begin at one, scales and shifts at zero: a plain transformer
                    block.modulation.project.bias.view(6, -1)[[2, 5]] = 1.0

    def _each(self) -> Iterator[Block]:
        return iter(self.blocks)  # type: ignore[arg-type]

    def forward(self, ask: Forward, store: KeyValueStore | None = None) -> Tensor:
        """Flat logits [N, V] in the order of ``ask.want >= 0``."""
        sight = see(ask, self.rotary, store, self.config.restart, self.config.reach)
        x = self.embed(ask)
        if self.answer is not None and ask.prompt is not None:
            x = x + (ask.streams[1] >= ask.prompt[:, None]).to(self.device)[..., None] * self.answer
        condition = self.condition(ask)
        x = self.run(x, sight, condition)
        return self.predict(pick(x, ask, self.config.shift), ask, condition)


def _down(mlp: nn.Module) -> list[Tensor]:
    """The matrices that write an MLP's result into the residual stream."""
    return [parameter for name, parameter in mlp.named_parameters() if name.endswith(("down.weight", "experts_down"))]
