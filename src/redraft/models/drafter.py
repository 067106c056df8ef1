"""Drafter: a few layers that read the hidden states of an autoregressive transformer and draft a block in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError
from redraft.models import transformer
from redraft.models.parts.attention import Attention, AttentionContext, rotary_positions
from redraft.models.parts.backbone import EVERY, Backbone, gather_targets, shape_of_keys
from redraft.models.parts.config import NetworkConfig
from redraft.models.parts.drafting import Part, PrefixKeys, split
from redraft.models.parts.flops import ForwardCost
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import rotate
from redraft.models.parts.store import KeyValueStore, KeyValueView
from redraft.models.transformer import Transformer
from redraft.runtime import upload
from redraft.types import DraftBlocks, DraftQuery, Forward

_SHALLOW = 8  # layers below which a drafter reads every inner layer of its target


def layers_read(layers: int, count: int = 5) -> tuple[int, ...]:
    """The layers whose outputs a drafter reads, of a target with N = ``layers``: round(1 + j (N - 4) / (count - 1))."""
    if layers < _SHALLOW:
        return tuple(range(1, layers - 1)) or (0,)
    return tuple(round(1 + j * (layers - 4) / (count - 1)) for j in range(count))


@dataclass(frozen=True)
class Config(NetworkConfig):
    """Shape of a ``Drafter``: that of its target, its own layers, and the target's layers whose outputs it reads."""

    target: transformer.Config
    layers: int = 1
    reads: tuple[int, ...] = ()  # (): ``layers_read``

    def __post_init__(self) -> None:
        if not self.reads:
            object.__setattr__(self, "reads", layers_read(self.target.layers))
        if self.layers < 1:
            raise UserError(f"model: layers = {self.layers} must be at least 1.")
        ascending = list(self.reads) == sorted({*self.reads})
        if not ascending or not 0 <= self.reads[0] <= self.reads[-1] < self.target.layers - 1:
            raise UserError(f"model: reads = {list(self.reads)} must be ascending layers of the target, not its last.")
        if self.target.shift != 1 or self.target.timed or self.target.edits or self.target.self_conditioning:
            raise UserError("A drafter's target must be an autoregressive transformer.")

    @property
    def shift(self) -> int:
        """That of the target, which also answers requests."""
        return self.target.shift

    @property
    def vocab_size(self) -> int:
        """That of the target."""
        return self.target.vocab_size

    @property
    def dim(self) -> int:
        """That of the target."""
        return self.target.dim

    @property
    def max_length(self) -> int:
        """That of the target."""
        return self.target.max_length

    def smaller(self, layers: int, vocab_size: int) -> Self:
        """As in the base class. Of the target, only as many layers remain as are read, and the last."""
        count = len(self.reads)
        target = replace(self.target, layers=count + 1, vocab_size=vocab_size)
        return replace(self, target=target, layers=layers, reads=tuple(range(count)))


class Drafter(Backbone):
    """DFlash's network (arXiv:2602.06036): the target's hidden states enter the keys and values of every own layer.

    The outputs of some layers of the target are concatenated, c = RMSNorm(W [x_1 ; x_2 ; ...]). Each own layer has the
    target's shape, queries from its input h, and K = [W_k c ; W_k h], V = [W_v c ; W_v h], where c stands at the
    positions of its tokens. There is no mask: a block sees all of the text before it, and itself. Its input is the
    target's embedding of the last token of the text, followed by masks (one learned vector). The target's last norm and
    output projection, both frozen, make logits of it, with no shift: mask i predicts token i.

    Requests without a ``DraftQuery`` go to the target. If there is a store, they leave the keys and values of c there,
    in layers after the target's, so that drafting runs its block only. The target is not one of this network's modules:
    its weights are neither trained nor stored with it.
    """

    target: Transformer

    def __init__(self, config: Config) -> None:
        super().__init__()
        c, self.config = config.target, config
        self.read = nn.Linear(len(config.reads) * c.dim, c.dim, bias=False)
        self.read_norm = RMSNorm(c.dim, c.norm_eps)
        own = replace(c, experts=None, window=0)
        self.blocks = nn.ModuleList(transformer.block(own, c.layers + number) for number in range(config.layers))
        self.mask = nn.Parameter(torch.zeros(c.dim))
        self.initialise()
        self.attach(Transformer(c))

    def initialise(self) -> None:
        """As ``Transformer``: normal(0, 0.02); outputs of residual branches are scaled by 1/sqrt(2 layers)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
        nn.init.normal_(self.mask, std=0.02)
        for block in self._each():
            for last in (block.attention.out.weight, block.mlp.down.weight):
                nn.init.normal_(last, std=0.02 / (2 * self.config.layers) ** 0.5)

    def attach(self, companion: Backbone) -> None:
        """Set the network that it drafts for, of the shape ``config.target``.

        Raises:
            ValueError: another shape.
        """
        if companion.config != self.config.target:
            raise ValueError("the target has another shape")
        self.__dict__["target"] = companion.requires_grad_(False).eval()  # a module's attribute would be a part of it

    @property
    def companion(self) -> Backbone:
        """The target."""
        return self.target

    @property
    def embedding(self) -> nn.Embedding:  # type: ignore[override] # the target's
        """The target's embedding."""
        return self.target.embedding

    @property
    def parameter_count(self) -> int:
        """Number of weights, the target's included."""
        return super().parameter_count + self.target.parameter_count

    def _apply(self, function: Any, recurse: bool = True) -> Self:
        self.target._apply(function, recurse)
        return super()._apply(function, recurse)

    def _each(self) -> Iterator[Any]:
        return iter(self.blocks)

    def forward_cost(self) -> ForwardCost:
        """That of the target. A drafted position costs less; it is counted as one of the target's."""
        return self.target.forward_cost()

    def store(self, slots: int, positions: int) -> KeyValueStore:
        """A key-value store for the target's layers and, after them, its own."""
        shapes = [shape_of_keys(block.attention) for block in (*self.target.blocks, *self.blocks)]
        return KeyValueStore(shapes, slots, positions, self.device, self.embedding.weight.dtype)

    def states(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """The last hidden states [N, D] of the target positions."""
        blocks, draft = request.find(DraftBlocks), request.find(DraftQuery)
        if blocks is not None:
            return self._training_states(request, blocks)
        if draft is None:
            return self._text_states(request, store)
        assert draft.draft_from is not None
        text, block = split(request, draft.draft_from, store, self.store)
        if text is not None:
            self._read_text(text.request, text.view)
        return self._draft_states(block)

    def project(self, states: Tensor, request: Forward, part: slice = EVERY) -> Tensor:
        """Hidden states [n, D] -> logits [n, V], by the target's projection."""
        return self.target.project(states, request, part)

    # ---- the target, and what is read from it

    def _text_states(self, request: Forward, store: KeyValueView | None) -> Tensor:
        if store is None:
            return self.target.states(request)
        x = self._read_text(request, store)
        return self.target.finish(gather_targets(x, request, self.config.shift), request, None)

    def _read_text(self, request: Forward, view: KeyValueView) -> Tensor:
        """Run the target -> its last hidden states [R, Q, D], and store its keys and values and those of c."""
        t, context = self.target, self.target.context(request, view)
        read, x, begin = self._hidden(request, context)
        x = t.run(x, context, None, t.blocks[begin:])
        assert context.window is not None
        for block in self._each():
            view.store.put(block.attention.layer, context.window, _text_pair(block.attention, read, context.table))
        return x

    def _hidden(self, request: Forward, context: AttentionContext) -> tuple[Tensor, Tensor, int]:
        """c [R, Q, D]; the hidden states [R, Q, D] after the last layer that is read; and the number of the next."""
        t, x, begin, found = self.target, self.target.marked(self.target.embed(request), request), 0, list[Tensor]()
        with torch.no_grad():
            for layer in self.config.reads:
                x = t.run(x, context, None, t.blocks[begin : layer + 1])
                found.append(x)
                begin = layer + 1
        return self.read_norm(self.read(torch.cat(found, -1)).to(x.dtype)), x, begin

    # ---- blocks

    def _draft_states(self, part: Part) -> Tensor:
        request = part.request
        masks = upload(torch.arange(request.tokens.shape[1]) > 0, self.device)[None, :, None]
        first = F.embedding(upload(request.tokens[:, :1], self.device), self.embedding.weight)
        x = self.target.marked(torch.where(masks, self.mask, first), request)
        x = self.run(x, self.target.context(request, part.view))
        return self.target.finish(gather_targets(x, request, self.config.shift), request, None)

    def _training_states(self, request: Forward, blocks: DraftBlocks) -> Tensor:
        """States of the masks of all blocks; a block sees c before its anchor, and itself."""
        plain = replace(request, extra=())
        context = self.target.context(plain)
        read, _, _ = self._hidden(plain, context)
        anchors = blocks.anchors
        position = anchors[:, :, None] + torch.arange(blocks.size)
        position = position.clamp(max=self.config.max_length - 1).masked_fill(anchors[:, :, None] < 0, -1)
        drafts = replace(plain, positions=position.flatten(1))
        tokens = upload(request.tokens.gather(1, anchors.clamp(min=0)), self.device)
        x = self.mask.expand(*position.shape, -1).clone()
        x[:, :, 0] = F.embedding(tokens, self.embedding.weight).to(x.dtype)
        x = self.target.marked(x.flatten(1, 2), drafts)
        restart = self.config.target.restart
        table = self.target.rotary[upload(rotary_positions(drafts, restart), self.device)]
        pairs = [_text_pair(block.attention, read, context.table) for block in self._each()]
        prefix: Any = PrefixKeys(pairs, self.config.target.layers)
        mask = upload(_block_mask(request.positions, anchors, blocks.size), self.device)
        x = self.run(x, AttentionContext(table, mask, False, prefix, prefix))
        real = (request.targets >= 0).view(*anchors.shape, blocks.size - 1)
        row, block, number = upload(real.nonzero().T.contiguous(), self.device)
        return self.target.norm(x.unflatten(1, anchors.shape[1:] + (blocks.size,))[row, block, number + 1])


def _text_pair(attention: Attention, read: Tensor, table: Tensor) -> Tensor:
    """Keys and values [2, R, Hk, Q, Dh] of c [R, Q, D], at the positions of ``table``."""
    begin = attention.heads * attention.head_dim
    bias = None if attention.qkv.bias is None else attention.qkv.bias[begin:]
    pair = F.linear(read, attention.qkv.weight[begin:], bias).unflatten(-1, (2, attention.kv_heads, -1))
    key, value = pair.unbind(2)
    if attention.k_norm is not None:
        key = attention.k_norm(key)
    return torch.stack([rotate(key, table), value]).transpose(2, 3)


def _block_mask(positions: Tensor, anchors: Tensor, size: int) -> Tensor:
    """[R, 1, A size, L + A size] bool: a block attends to the text before its anchor and to itself.

    Args:
        positions: [R, L] of the text. anchors: [R, A]; -1 is none, and attends to its own block.
    """
    text = (positions[:, None] < anchors[:, :, None]) & (positions >= 0)[:, None]
    own = torch.eye(anchors.shape[1], dtype=torch.bool).repeat_interleave(size, 0).repeat_interleave(size, 1)
    return torch.cat([text.repeat_interleave(size, 1), own.expand(len(anchors), -1, -1)], 2)[:, None]
