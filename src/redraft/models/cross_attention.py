"""Encoder and decoder: the prompt is read once by a stack of its own; the answer's stack looks at it across."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.models import transformer
from redraft.models.parts.attention import Attention, Sight, mix, see
from redraft.models.parts.backbone import pick
from redraft.models.parts.block import Block
from redraft.models.parts.edits import EditRates
from redraft.models.parts.guess import Guessed
from redraft.models.parts.mlp import SwiGLU
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import rotary_table, rotate
from redraft.models.parts.readout import Readout
from redraft.models.parts.store import KeyValueStore, Window
from redraft.models.parts.time import Modulation, TimeEmbedding
from redraft.types import Attend, Forward

_LEAST = {"vocab_size": 1, "dim": 1, "encoder_layers": 1, "layers": 1, "heads": 1, "kv_heads": 0, "mlp_dim": 0}
_LEAST |= {"max_length": 1}


@dataclass(frozen=True)
class Config:
    """Shape of a ``CrossAttention``. ``kv_heads`` and ``mlp_dim`` of 0 mean heads, and 8/3 dim rounded up to 32."""

    vocab_size: int
    dim: int = 256
    encoder_layers: int = 3
    layers: int = 3  # of the decoder
    heads: int = 4
    kv_heads: int = 0
    mlp_dim: int = 0
    max_length: int = 1024  # of prompt and answer together
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tied: bool = True
    timed: bool = False  # the decoder is told the time; the encoder's work never depends on it
    shift: int = 0  # the logits of position p stand at p - shift (autoregressive 1)
    edits: bool = False  # predicts log-rates of edits (``parts.edits``), and not tokens
    guess: bool = False  # is told what it predicted before (``parts.guess``)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"model: {name} = {getattr(self, name)} must be at least {least}.")
        if self.dim % self.heads or self.head_width % 2:
            raise UserError(f"model: dim {self.dim} does not split into {self.heads} heads of even width.")
        if self.edits and not self.tied:
            raise UserError("model: edits are read off the embedding.", "Set tied to true.")
        if self.heads % self.key_heads:
            raise UserError(f"model: heads {self.heads} is not a multiple of kv_heads {self.kv_heads}.")

    @classmethod
    def matching(cls, other: transformer.Config) -> Config:
        """Half of a transformer's layers as encoder, half as decoder, its width kept, at an equal number of weights.

        Cross-attention adds 2 D (D + Dkv) + D weights a layer; as many are taken from the MLPs of all layers.

        Raises:
            UserError: a transformer of one layer, which can't be halved.
        """
        if other.layers < 2:
            raise UserError("an encoder and a decoder need a layer each, the shape has one.", "Take a larger preset.")
        first = other.layers // 2
        key_dim = other.head_width * other.key_heads
        added = (other.layers - first) * (2 * other.dim * (other.dim + key_dim) + other.dim)
        hidden = other.hidden - added / (3 * other.dim * other.layers)
        return cls(
            vocab_size=other.vocab_size,
            dim=other.dim,
            encoder_layers=first,
            layers=other.layers - first,
            heads=other.heads,
            kv_heads=other.kv_heads,
            mlp_dim=max(8, round(hidden / 8) * 8),
            max_length=other.max_length,
            qk_norm=other.qk_norm,
            rope_theta=other.rope_theta,
            norm_eps=other.norm_eps,
            tied=other.tied,
        )

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        return self.dim // self.heads

    @property
    def hidden(self) -> int:
        return self.mlp_dim or -(-self.dim * 8 // 3 // 32) * 32


@dataclass
class Memory:
    """What every cross-attention of one pass shares. P: positions of the longest prompt that the encoder reads."""

    encoded: Tensor | None  # [R', P, D] what the encoder made of prompts; None: their keys are all in the store
    table: Tensor | None  # [1, P, 2, Dh / 2] rotations of its keys
    mask: Tensor | None  # [R, 1, 1 or Q, P] bool; None: every query sees all
    some: Tensor | None  # [R, 1, 1] 1 where there is a prompt to look at, else 0; None: everywhere
    store: KeyValueStore | None
    write: Window | None  # where the keys of the R' encoded prompts go
    read: Window | None  # whence those of all rows come


@dataclass
class Looking(Sight):
    """What the decoder sees: itself, as any transformer does, and the prompt (None: there is none)."""

    memory: Memory | None = None


class Cross(nn.Module):
    """Attention from the answer to the encoded prompt (Vaswani et al. 2017, arXiv:1706.03762, 3.2.3).

    Queries are rotated by their place in the answer and keys by theirs in the prompt, so that distance along the two
    texts counts, as it does between answer and prompt of a ``Transformer`` that restarts its positions.
    """

    def __init__(self, c: Config, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.layer = c.heads, c.key_heads, c.head_width, layer
        self.query = nn.Linear(c.dim, self.heads * self.head_dim, bias=False)
        self.key_value = nn.Linear(c.dim, 2 * self.kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, c.dim, bias=False)
        self.q_norm = RMSNorm(self.head_dim, c.norm_eps) if c.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, c.norm_eps) if c.qk_norm else None

    def forward(self, x: Tensor, table: Tensor, memory: Memory) -> Tensor:
        rows, width, _ = x.shape
        query = self.query(x).view(rows, width, -1, self.head_dim)
        if self.q_norm is not None:
            query = self.q_norm(query)
        query = rotate(query, table).transpose(1, 2)
        keys, values = self._keys(memory)
        mixed = mix(query, keys, values, memory.mask)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, width, -1))
        return y if memory.some is None else y * memory.some

    def _keys(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Keys and values of the prompts, [R, Hk, P, Dh] each: computed from what was encoded, or kept."""
        pair: Tensor | None = None
        if memory.encoded is not None and memory.table is not None:
            rows, width, _ = memory.encoded.shape
            key, value = self.key_value(memory.encoded).view(rows, width, -1, self.head_dim).chunk(2, 2)
            key = rotate(key if self.k_norm is None else self.k_norm(key), memory.table)
            pair = torch.stack([key, value]).transpose(2, 3)
        if memory.store is None:
            assert pair is not None
            return pair[0], pair[1]
        if pair is not None and memory.write is not None:
            memory.store.put(self.layer, memory.write, pair)
        assert memory.read is not None
        return memory.store.get(self.layer, memory.read)


class DecoderBlock(Block):
    """Self-attention, cross-attention, MLP.

    The time, where it is told, modulates the first and the last; cross-attention it leaves alone (as in PixArt-alpha,
    Chen et al. 2023, arXiv:2310.00426).
    """

    attention: Attention

    def __init__(self, c: Config, layer: int) -> None:
        super().__init__(
            RMSNorm(c.dim, c.norm_eps),
            Attention(c.dim, c.heads, c.key_heads, c.qk_norm, c.norm_eps, layer),
            RMSNorm(c.dim, c.norm_eps),
            SwiGLU(c.dim, c.hidden),
            Modulation(c.dim, 6) if c.timed else None,
        )
        self.cross_norm, self.cross = RMSNorm(c.dim, c.norm_eps), Cross(c, layer)

    def between(self, x: Tensor, sight: Sight) -> Tensor:
        if not isinstance(sight, Looking) or sight.memory is None:
            return x
        return x + self._drop(self.cross(self.cross_norm(x), sight.table, sight.memory))


class CrossAttention(Readout):
    """The transformer of Vaswani et al. 2017 (arXiv:1706.03762) with today's parts: RoPE, RMSNorm, SwiGLU.

    It serves every family: what the decoder sees of itself is decided by the request. A masked decoder over an encoder
    is the network of Mask-Predict (Ghazvininejad et al. 2019, arXiv:1904.09324), a causal one that of an
    encoder-decoder language model.

    The encoder reads an isolated prompt but for its last token, the separator, which is the decoder's first position:
    there the first token of an autoregressive answer is predicted, or the length of another. Keys and values of an
    encoded position, one pair for each layer of the decoder, take its cell of the key-value store, so that under an
    exact cache the encoder runs once for a text. A request without a prompt runs the decoder alone.
    """

    rotary: Tensor
    config: Config

    needs_prompt = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        self.encoder = nn.ModuleList(
            Block(
                RMSNorm(c.dim, c.norm_eps),
                Attention(c.dim, c.heads, c.key_heads, c.qk_norm, c.norm_eps, layer),
                RMSNorm(c.dim, c.norm_eps),
                SwiGLU(c.dim, c.hidden),
            )
            for layer in range(c.encoder_layers)
        )
        self.encoder_norm = RMSNorm(c.dim, c.norm_eps)
        self.blocks = nn.ModuleList(DecoderBlock(c, layer) for layer in range(c.layers))
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.head = None if c.tied else nn.Linear(c.dim, c.vocab_size, bias=False)
        self.edits = EditRates(c.dim) if c.edits else None
        self.guess = Guessed(c.dim) if c.guess else None
        self.time = TimeEmbedding(c.dim) if c.timed else None
        self.final_modulation = Modulation(c.dim, 2) if c.timed else None
        table = rotary_table(c.max_length, c.head_width, c.rope_theta)
        self.register_buffer("rotary", table, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """As ``Transformer``: Normal(0, 0.02), residual outputs scaled by the square root of their number."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.embedding.weight, std=0.02)
        for stack, branches in ((self.encoder, 2), (self.blocks, 3)):
            for name, weight in stack.named_parameters():
                if name.endswith(("out.weight", "down.weight")):
                    nn.init.normal_(weight, std=0.02 / (branches * len(stack)) ** 0.5)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.project.weight)
                if module.parts == 6:
                    with torch.no_grad():  # gates begin at one: a plain transformer
                        module.project.bias.view(6, -1)[[2, 5]] = 1.0

    def every_block(self) -> Iterator[nn.Module]:
        return chain(self.encoder, self.blocks)

    def forward(self, ask: Forward, store: KeyValueStore | None = None) -> Tensor:
        """Flat logits [N, V] in the order of ``ask.want >= 0``.

        Raises:
            ValueError: a prediction is wanted within a prompt, where the decoder doesn't stand.
        """
        check(ask, self.config.shift)
        begin, source, answer = split(ask)
        memory = None if begin is None else self.memory(ask, begin, source, answer, store, self.encode)
        sight = self.sight(answer, begin, store, memory)
        condition = self.condition(ask)
        x = self.run(self.embed(answer), sight, condition)
        return self.predict(pick(x, answer, self.config.shift), ask, condition)

    def sight(
        self, answer: Forward, begin: Tensor | None, store: KeyValueStore | None, memory: Memory | None
    ) -> Looking:
        """The decoder's view of itself; it counts its positions from its own beginning."""
        if begin is None or store is None or answer.mask is not None or answer.clean is not None:
            seen = see(answer, self.rotary, store, False)
        else:
            window = store.window(answer, begin)
            seen = Sight(self.rotary[:1][None], window.mask, False, store, window)
        if begin is not None:
            at = (answer.streams[1] - begin[:, None]).clamp(min=0)
            seen.table = self.rotary[at.to(self.rotary.device)]
        return Looking(**vars(seen), memory=memory)

    def memory(
        self,
        ask: Forward,
        begin: Tensor,
        source: Source | None,
        answer: Forward,
        store: KeyValueStore | None,
        encode: Callable[[Forward], Tensor],
    ) -> Memory | None:
        """Encode what the request has of prompts, and see to it that every row finds its own."""
        longest = int(begin.max())
        if longest == 0:
            return None
        device = self.device
        columns = torch.arange(longest, device=begin.device)
        visible = columns < begin[:, None]  # [R, P]
        some = begin > 0
        mask = None if bool(visible.all()) else (visible | ~some[:, None])[:, None, None].to(device)
        if answer.mask is not None and source is not None:  # rows and columns of the request's own mask
            mask = (source.seen | ~source.seen.any(2, keepdim=True))[:, None].to(device)
        weight = None if bool(some.all()) else some[:, None, None].to(device, self.embedding.weight.dtype)
        encoded = None if source is None else encode(source.ask)
        table = self.rotary[None, :longest] if encoded is None else self.rotary[None, : encoded.shape[1]]
        if store is None:
            return Memory(encoded, table, mask, weight, None, None, None)
        assert ask.slot is not None
        write: Window | None = None
        if source is not None:
            assert source.ask.slot is not None
            write = Window(*store.place(source.ask.slot, source.ask.pos), 0, None)
        rows, cells = store.place(ask.slot, columns[None].expand(len(begin), -1))
        return Memory(encoded, table, mask, weight, store, write, Window(rows, cells, longest, None))

    def encode(self, source: Forward) -> Tensor:
        """[R', P] tokens of prompts, each seeing all of its own -> [R', P, D]."""
        sight = see(source, self.rotary, None, False)
        encoded: Tensor = self.encoder_norm(self.run(self.embed(source), sight, blocks=self.encoder))
        return encoded


@dataclass(frozen=True)
class Source:
    """The part of a request that the encoder reads."""

    ask: Forward  # of the rows that have any of it where there is a store, else of all
    seen: Tensor  # [R, Q, P] bool: which of its positions the decoder's queries see by the request's mask; else empty


def split(ask: Forward) -> tuple[Tensor | None, Source | None, Forward]:
    """Where each row's decoder begins [R] (None: there are no prompts), what the encoder reads, the decoder's request.

    Either part has its positions moved together, in their order, and padding after them.
    """
    if ask.prompt is None:
        return None, None, ask
    begin = ask.prompt - 1
    inside = (ask.pos >= 0) & (ask.pos < begin[:, None])
    if not bool(inside.any()):
        return begin, None, ask
    theirs, ours = _columns(inside), _columns((ask.pos >= 0) & ~inside)
    answer = replace(ask, x=ask.x.gather(1, ours[0]), pos=_positions(ask, *ours))
    if ask.cell is not None:
        answer.cell = torch.where(ours[1], ask.cell.gather(1, ours[0]), -1)
    seen = inside[:, :0, None]
    if ask.mask is not None:
        mine = ask.mask.gather(1, ours[0][:, :, None].expand(-1, -1, ask.mask.shape[2]))
        seen = mine.gather(2, theirs[0][:, None].expand(-1, mine.shape[1], -1)) & theirs[1][:, None]
        own = mine.gather(2, ours[0][:, None].expand(-1, mine.shape[1], -1)) & ours[1][:, None]
        answer.mask = own | ~ours[1][:, :, None]  # padding sees something: no NaN
    source = Forward(
        x=ask.x.gather(1, theirs[0]), pos=_positions(ask, *theirs), want=ask.want[:, :0], attend=Attend("full")
    )
    if ask.slot is not None and ask.read is not None:
        some = inside.any(1)
        source.x, source.pos, source.slot = source.x[some], source.pos[some], ask.slot[some]
    return begin, Source(source, seen), answer


def _columns(keep: Tensor) -> tuple[Tensor, Tensor]:
    """The columns marked in ``keep`` [R, Q] at the front of each row, and which of these are real: [R, K] each."""
    count = keep.sum(1)
    width = max(1, int(count.max()))
    order = torch.sort((~keep).to(torch.int8), dim=1, stable=True).indices[:, :width]
    return order, torch.arange(width, device=keep.device) < count[:, None]


def _positions(ask: Forward, columns: Tensor, real: Tensor) -> Tensor:
    return torch.where(real, ask.pos.gather(1, columns), -1)


def check(ask: Forward, shift: int) -> None:
    """Raises ValueError for a request that wants a prediction within a prompt."""
    if ask.prompt is None or ask.want.device.type != "cpu":  # elsewhere looking would make the host wait
        return
    moved = shift if ask.shift is None else ask.shift
    if bool(((ask.want >= 0) & (ask.about - moved < ask.prompt[:, None] - 1)).any()):
        raise ValueError("this network predicts nothing within a prompt")
