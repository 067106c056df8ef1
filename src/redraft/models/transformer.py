"""One transformer for every family: what it sees and predicts is decided by the request, not by the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from redraft.errors import UserError
from redraft.models.parts.attention import Attention, Sight, see
from redraft.models.parts.mlp import SwiGLU
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import rotary_table
from redraft.models.parts.store import KeyValueStore
from redraft.models.parts.time import Modulation, TimeEmbedding
from redraft.types import Forward

_LEAST = {"vocab_size": 1, "dim": 1, "layers": 1, "heads": 1, "kv_heads": 0, "mlp_dim": 0, "max_length": 1}


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

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"model: {name} = {getattr(self, name)} must be at least {least}.")
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UserError(f"model: dim {self.dim} does not split into {self.heads} heads of even width.")
        if self.heads % self.key_heads:
            raise UserError(f"model: heads {self.heads} is not a multiple of kv_heads {self.kv_heads}.")

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def hidden(self) -> int:
        return self.mlp_dim or -(-self.dim * 8 // 3 // 32) * 32


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with time conditioning, norms are shifted, scaled and gated."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config.dim, config.heads, config.key_heads, config.qk_norm, config.norm_eps, layer)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = SwiGLU(config.dim, config.hidden)
        self.modulation = Modulation(config.dim, 6) if config.timed else None
        self.dropout = 0.0

    def forward(self, x: Tensor, sight: Sight, condition: Tensor | None) -> Tensor:
        if self.modulation is None or condition is None:
            x = x + self._drop(self.attention(self.attention_norm(x), sight))
            return x + self._drop(self.mlp(self.mlp_norm(x)))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)
        y = torch.addcmul(shift_a, self.attention_norm(x), 1 + scale_a)
        x = torch.addcmul(x, gate_a, self._drop(self.attention(y, sight)))
        y = torch.addcmul(shift_m, self.mlp_norm(x), 1 + scale_m)
        return torch.addcmul(x, gate_m, self._drop(self.mlp(y)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout > 0 else x


class Transformer(nn.Module):
    """Pre-norm transformer: RoPE, RMSNorm, SwiGLU, grouped-query attention; optional QK norm and adaLN time.

    ``network(ask)`` returns flat logits [N, V] for the wanted positions only: the vocabulary is projected nowhere else.
    """

    rotary: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.answer = nn.Parameter(torch.zeros(config.dim)) if config.restart else None  # tells answer from prompt
        self.head = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.time = TimeEmbedding(config.dim) if config.timed else None
        self.final_modulation = Modulation(config.dim, 2) if config.timed else None
        table = rotary_table(config.max_length, config.dim // config.heads, config.rope_theta)
        self.register_buffer("rotary", table, persistent=False)
        self.recompute = False  # activation checkpointing: trade one more forward for memory
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
            for linear in (block.attention.out, block.mlp.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * self.config.layers) ** 0.5)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.project.weight)
        for block in self._each():
            if block.modulation is not None:
                with torch.no_grad():  # gates begin at one, scales and shifts at zero: a plain transformer
                    block.modulation.project.bias.view(6, -1)[[2, 5]] = 1.0

    def _each(self) -> Iterator[Block]:
        return iter(self.blocks)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def set_dropout(self, rate: float) -> None:
        """Dropout on every residual branch, in training mode only."""
        for block in self._each():
            block.dropout = rate

    def forward(self, ask: Forward, store: KeyValueStore | None = None) -> Tensor:
        """Flat logits [N, V] in the order of ``ask.want >= 0``."""
        sight = see(ask, self.rotary, store, self.config.restart)
        tokens, pos = ask.streams
        x = F.embedding(tokens.to(self.device), self.embedding.weight)
        if self.answer is not None and ask.prompt is not None:
            x = x + (pos >= ask.prompt[:, None]).to(self.device)[..., None] * self.answer
        condition = self._condition(ask)
        for block in self.blocks:
            if self.recompute and self.training:
                x = checkpoint(block, x, sight, condition, use_reentrant=False)
            else:
                x = block(x, sight, condition)
        x = self.norm(pick(x, ask, self.config.shift))
        if self.final_modulation is not None and condition is not None:
            row = (ask.want >= 0).nonzero()[:, 0].to(self.device)
            shift, scale = self.final_modulation(condition)
            x = torch.addcmul(shift[row, 0], x, 1 + scale[row, 0])
        return F.linear(x, self.embedding.weight if self.head is None else self.head.weight)

    def _condition(self, ask: Forward) -> Tensor | None:
        if self.time is None:
            return None
        if ask.t is None:
            raise ValueError("this network is conditioned on time, but the request carries no t")
        return self.time(ask.t.to(self.device))

    def store(self, seats: int, cells: int) -> KeyValueStore:
        """A key-value store of this network's shape."""
        c = self.config
        return KeyValueStore(
            c.layers, seats, cells, c.key_heads, c.dim // c.heads, self.device, self.embedding.weight.dtype
        )


def pick(x: Tensor, ask: Forward, shift: int) -> Tensor:
    """Hidden states [R, Q, D] -> [N, D], those from which the wanted positions are predicted."""
    if ask.want.shape == (1, 1) and ask.pos.shape[1] == 1:
        return x[:, 0]
    pos = ask.pos if ask.cell is None else ask.cell
    length = int(pos.max()) + 1
    index = torch.zeros(len(pos), length + 1, dtype=torch.int64, device=pos.device)
    row, query = _locate(index, pos, 0, ask.want, shift if ask.shift is None else ask.shift)
    if ask.clean is not None and ask.clean.want is not None:  # what is in both streams is read from the clean one
        more = _locate(index, ask.clean.pos, ask.pos.shape[1], ask.clean.want, shift)
        row, query = torch.cat([row, more[0]]), torch.cat([query, more[1]])
    return x[row.to(x.device), query.to(x.device)]


def _locate(index: Tensor, pos: Tensor, begin: int, want: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Enter the columns, from ``begin`` on, of positions ``pos`` [R, K] into ``index`` [R, length + 1]; then rows and
    columns [N] from which the positions ``want`` [R, W] are predicted."""
    length = index.shape[1] - 1
    columns = torch.arange(begin, begin + pos.shape[1], device=pos.device).expand_as(pos)
    index.scatter_(1, torch.where(pos < 0, length, pos), columns)
    row, column = (want >= 0).nonzero(as_tuple=True)
    return row, index[row, (want[row, column] - shift).clamp(0, length)]
