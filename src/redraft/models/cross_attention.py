"""Encoder-decoder: an encoder reads the prompt once, and the decoder attends to it by cross-attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.models import transformer
from redraft.models.parts.attention import Attention, AttentionContext, attention_context
from redraft.models.parts.backbone import gather_targets
from redraft.models.parts.block import Block
from redraft.models.parts.config import NetworkConfig
from redraft.models.parts.edits import EditRates
from redraft.models.parts.flops import ForwardCost, matrix_entries
from redraft.models.parts.mlp import SwiGLU
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import rotary_table
from redraft.models.parts.prompt_attention import DecoderBlock, DecoderContext, EncodedPrompt
from redraft.models.parts.prompt_split import EncoderInput, check_targets, split_request
from redraft.models.parts.readout import Readout
from redraft.models.parts.self_conditioning import SelfConditioningProjection
from redraft.models.parts.store import KeyValueView, Window
from redraft.models.parts.time import Modulation, TimeEmbedding
from redraft.runtime import upload
from redraft.types import CleanStream, Forward, QueryMask

_LEAST = {"vocab_size": 1, "dim": 1, "encoder_layers": 1, "layers": 1, "heads": 1, "kv_heads": 0, "mlp_dim": 0}
_LEAST |= {"max_length": 1}


@dataclass(frozen=True)
class Config(NetworkConfig):
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
    timed: bool = False  # the decoder is conditioned on time; the encoder never is
    shift: int = 0  # the logits of position p are computed at p - shift (autoregressive: 1)
    edits: bool = False  # predicts log-rates of edits instead of tokens (``parts.edits``)
    self_conditioning: bool = False  # self-conditioning: reads the previous prediction (``parts.self_conditioning``)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"model: {name} = {getattr(self, name)} must be at least {least}.")
        if self.dim % self.heads or self.head_width % 2:
            raise UserError(
                f"model: dim = {self.dim} can't be split into {self.heads} heads of even width.", "Change dim or heads."
            )
        if self.edits and not self.tied:
            raise UserError("model: edits need an output projection tied to the embedding.", "Set tied to true.")
        if self.heads % self.key_heads:
            raise UserError(
                f"model: heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}.", "Change one of them."
            )

    @classmethod
    def matching(cls, other: transformer.Config) -> Config:
        """An encoder and a decoder with half of a transformer's layers each, of the same width and number of weights.

        Cross-attention adds 2 D (D + Dkv) + D weights per decoder layer; the MLPs of all layers are narrowed to
        compensate.

        Raises:
            UserError: a transformer with a single layer.
        """
        if other.layers < 2:
            raise UserError("Encoder and decoder need at least one layer each.", "Choose a larger preset.")
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


class CrossAttention(Readout):
    """The transformer of Vaswani et al. 2017 (arXiv:1706.03762) with RoPE, RMSNorm and SwiGLU.

    It works with every family: the request determines the self-attention of the decoder. With a masked decoder it is
    the network of Mask-Predict (Ghazvininejad et al. 2019, arXiv:1904.09324), with a causal one an encoder-decoder
    language model.

    The encoder reads an isolated prompt without its last token, the separator. The separator is the decoder's first
    position, which predicts the first token of an autoregressive answer, or the length of other answers. The keys and
    values of an encoded position, one pair per decoder layer, are stored at this position of the key-value store, so
    that with an exact cache the encoder runs once per sequence. A request without a prompt runs only the decoder.
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
        self.self_conditioning = SelfConditioningProjection(c.dim) if c.self_conditioning else None
        self.time = TimeEmbedding(c.dim) if c.timed else None
        self.final_modulation = Modulation(c.dim, 2) if c.timed else None
        table = rotary_table(c.max_length, c.head_width, c.rope_theta)
        self.register_buffer("rotary", table, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """As ``Transformer``: normal(0, 0.02); outputs of n residual branches are scaled by 1/sqrt(n)."""
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
                    with torch.no_grad():  # gates start at one: an ordinary transformer
                        module.project.bias.view(6, -1)[[2, 5]] = 1.0

    def forward_cost(self) -> ForwardCost:
        """Operations of the decoder; and per prompt position, of the encoder and of the keys of cross-attention."""
        cost, encoders = super().forward_cost(), list(self.encoder)
        cross: list[Any] = [block.cross for block in self.blocks]
        entries = matrix_entries(*encoders, *(part.key_value for part in cross))
        return replace(
            cost,
            position=cost.position + 2 * matrix_entries(*(part for c in cross for part in (c.query, c.out))),
            encoder_position=2 * entries,
            encoder_pair=4 * len(encoders) * self.config.dim,
        )

    def all_blocks(self) -> Iterator[nn.Module]:
        """The blocks of the encoder and of the decoder."""
        return chain(self.encoder, self.blocks)

    def states(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """The last hidden states [N, D] of the target positions.

        Raises:
            ValueError: a target position is within a prompt, which the decoder doesn't run.
        """
        check_targets(request, self.config.shift)
        begin, source, answer = split_request(request, store is not None)
        prompt = None if begin is None else self.encode_prompts(request, begin, source, answer, store, self.encode)
        context = self.decoder_context(answer, begin, store, prompt)
        condition = self.condition(request)
        x = self.run(self.embed(answer), context, condition)
        return self.finish(gather_targets(x, answer, self.config.shift), request, condition)

    def decoder_context(
        self, answer: Forward, begin: Tensor | None, store: KeyValueView | None, prompt: EncodedPrompt | None
    ) -> DecoderContext:
        """Self-attention of the decoder, whose position numbers start at ``begin`` [R], and the encoded prompt."""
        if begin is None or store is None or answer.find(QueryMask) or answer.find(CleanStream):
            context = attention_context(answer, self.rotary, store, False)
        else:
            window = store.window(answer, begin)
            context = AttentionContext(self.rotary[:1][None], window.mask, False, store, window)
        if begin is not None:
            at = (answer.streams[1] - begin[:, None]).clamp(min=0)
            context.table = self.rotary[upload(at, self.rotary.device)]
        return DecoderContext(**vars(context), prompt=prompt)

    def encode_prompts(
        self,
        request: Forward,
        begin: Tensor,
        source: EncoderInput | None,
        answer: Forward,
        store: KeyValueView | None,
        encode: Callable[[Forward], Tensor],
    ) -> EncodedPrompt | None:
        """Encode the prompt positions that the request runs, and prepare cross-attention to the prompts of all rows.

        ``begin`` [R] is the first position of each row's decoder. None if all prompts are empty.
        """
        longest = int(begin.max())
        if longest == 0:
            return None
        device = self.device
        columns = torch.arange(longest, device=begin.device)
        visible = columns < begin[:, None]  # [R, P]
        has_prompt = begin > 0
        mask = None if bool(visible.all()) else upload(visible | ~has_prompt[:, None], device)[:, None, None]
        if answer.find(QueryMask) is not None and source is not None:  # rows and columns of the request's mask
            mask = upload(source.visible | ~source.visible.any(2, keepdim=True), device)[:, None]
        every = bool(has_prompt.all())
        weight = None if every else upload(has_prompt, device)[:, None, None].to(self.embedding.weight.dtype)
        encoded = None if source is None else encode(source.request)
        table = self.rotary[None, :longest] if encoded is None else self.rotary[None, : encoded.shape[1]]
        if store is None:
            return EncodedPrompt(encoded, table, mask, weight, None, None, None)
        write: Window | None = None
        if source is not None:
            slots = store.slots if source.rows is None else store.slots[source.rows]
            write = Window(*store.store.place(slots, source.request.positions), 0, None)
        rows, positions = store.store.place(store.slots, columns[None].expand(len(begin), -1))
        return EncodedPrompt(encoded, table, mask, weight, store, write, Window(rows, positions, longest, None))

    def encode(self, source: Forward) -> Tensor:
        """Run the encoder with full attention on prompts [R', P] -> [R', P, D]."""
        context = attention_context(source, self.rotary, None, False)
        encoded: Tensor = self.encoder_norm(self.run(self.embed(source), context, blocks=self.encoder))
        return encoded
