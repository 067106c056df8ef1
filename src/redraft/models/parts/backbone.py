"""The base class of networks: blocks, device, key-value store, and gathering the hidden states of target positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError
from redraft.models.parts.added_tokens import AddedTokens
from redraft.models.parts.attention import Attention, AttentionContext
from redraft.models.parts.checkpointing import Checkpointing, checkpointed
from redraft.models.parts.flops import ForwardCost, matrix_entries
from redraft.models.parts.packed import linear, packed_in
from redraft.models.parts.store import KeyValueStore, KeyValueView
from redraft.models.parts.time import Modulation
from redraft.registry import Registered
from redraft.runtime import upload
from redraft.types import CleanStream, Forward, QueryMask, StateQuery

EVERY = slice(None)  # all target positions of a request


class Backbone(Registered, nn.Module):
    """A stack of ``blocks`` between an ``embedding`` and an output projection; ``config`` has its shape and its shift.

    ``network(request)`` returns flat logits [N, V] of the target positions. Other positions are not projected onto the
    vocabulary. It is ``project(states(request))``; whoever needs few of the logits at a time calls these two.
    """

    config: Any
    embedding: nn.Embedding
    head: nn.Linear | None  # the output projection; None: tied to the embedding
    blocks: nn.ModuleList

    needs_prompt = False  # only for models of pairs whose prompt is isolated
    answers_states = False  # requests may have a ``StateQuery``
    isolates_prompts = True  # it can read an isolated prompt

    def __init__(self) -> None:
        super().__init__()
        self.activation_checkpointing: Checkpointing = "none"
        self.stream: torch.dtype | None = None  # type of the hidden states; None: that of the weights
        self.head = None
        self.added: AddedTokens | None = None  # tokens whose vectors are trained beside an adapter

    def forward(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """Flat logits [N, V] in the order of ``request.targets >= 0``."""
        return self.project(self.states(request, store), request)

    def states(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """The last hidden states [N, D] of the target positions."""
        raise NotImplementedError

    def project(self, states: Tensor, request: Forward, part: slice = EVERY) -> Tensor:
        """Logits [n, V] from the hidden states [n, D] of a ``part`` of the target positions, each row by itself."""
        raise NotImplementedError

    def projects(self, request: Forward) -> bool:
        """Is the answer to a request ``project(states(request))``?"""
        return True

    @property
    def head_weight(self) -> Tensor | None:
        """The output projection [V, D]; None: it is tied to the embeddings."""
        return None if self.head is None else self.head.weight

    @property
    def companion(self) -> Backbone | None:
        """A frozen network that runs within this one, and whose weights are stored elsewhere; None: there is none."""
        return None

    def attach(self, companion: Backbone) -> None:
        """Set the ``companion``.

        Raises:
            ValueError: this network has none.
        """
        raise ValueError(f"A '{self.name}' network runs no other network.")

    def expected(self, log_p: Tensor) -> Tensor:
        """The mean embedding of each distribution [N, V] -> [N, D]."""
        weight = self.embedding.weight
        return log_p.exp().to(weight.dtype) @ weight

    def enable_self_conditioning(self, enabled: bool) -> None:
        """Add or remove the input for previous predictions.

        Raises:
            UserError: this network can't read any.
        """
        raise UserError("This network doesn't support self-conditioning.", "Leave out self_condition.")

    @property
    def logit_width(self) -> int:
        """Numbers that a target position is projected onto: V."""
        return len(self.embedding.weight)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.embedding.weight.dtype

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.parameters()) + sum(matrix.numel() for matrix in packed_in(self))

    def forward_cost(self) -> ForwardCost:
        """Operations of a forward pass per unit of work, computed from the shapes of the weights."""
        attention: list[Any] = [block.attention for block in self.blocks]
        mlps: list[Any] = [block.mlp for block in self.blocks]
        modulations = [module for module in self.modules() if isinstance(module, Modulation)]
        return ForwardCost(
            position=2 * matrix_entries(*attention, *mlps),
            pair=sum(4 * part.heads * part.head_dim for part in attention),
            prediction=2 * self.embedding.weight.numel(),  # the output projection has the same shape
            timed_row=2 * matrix_entries(*modulations) if self.config.timed else 0,
        )

    def all_blocks(self) -> Iterator[nn.Module]:
        """``blocks``, and the blocks of other stacks such as an encoder."""
        return iter(self.blocks)

    def set_dropout(self, rate: float) -> None:
        """Set the dropout rate of every residual branch; it applies in training mode only."""
        for block in self.all_blocks():
            block.dropout = rate  # type: ignore[assignment]

    def store(self, slots: int, positions: int) -> KeyValueStore:
        """A key-value store for this network."""
        shapes = [shape_of_keys(block.attention) for block in self.blocks]
        return KeyValueStore(shapes, slots, positions, self.device, self.stream or self.embedding.weight.dtype)

    def embed(self, request: Forward) -> Tensor:
        """Embeddings [R, Q, D] of the tokens of a request, of both streams if there are two."""
        tokens = upload(request.streams[0], self.device)
        x = self.widened(F.embedding(tokens, self.embedding.weight))
        return x if self.added is None else self.added.embedded(x, tokens)

    def onto_vocabulary(self, states: Tensor, bias: Tensor | None = None) -> Tensor:
        """Hidden states [n, D] -> logits [n, V], by the output projection or, if it is tied, by the embeddings.

        Args:
            bias: [V], if it is not that of the output projection.
        """
        own = bias if bias is not None or self.head is None else self.head.bias
        logits = linear(states, self.embedding.weight if self.head is None else self.head.weight, own)
        return logits if self.added is None else self.added.projected(logits, states)

    def widened(self, x: Tensor) -> Tensor:
        """Embeddings [...] in the type of the hidden states."""
        return x if self.stream is None else x.to(self.stream)

    def run(
        self,
        x: Tensor,
        context: AttentionContext,
        condition: Tensor | None = None,
        blocks: nn.ModuleList | None = None,
        seen: list[Tensor] | None = None,
    ) -> Tensor:
        """Run hidden states [R, Q, D] through ``blocks`` (None: the network's own) -> [R, Q, D].

        Args:
            seen: receives the input of each block.
        """
        for block in self.blocks if blocks is None else blocks:
            if seen is not None:
                seen.append(x)
            if self.training:
                x = checkpointed(self.activation_checkpointing, block, x, context, condition)
            else:
                x = block(x, context, condition)
        return x

    def with_states(self, last: Tensor, seen: list[Tensor] | None, request: Forward) -> Tensor:
        """The last hidden states [N, D], and after them those that a request asks for -> [N, D + k D].

        Args:
            seen: [R, Q, D] the input of each block; None, if the request asks for none.
        """
        query = request.find(StateQuery)
        if query is None or seen is None:
            return last
        layers = [round(depth * len(self.blocks)) for depth in query.depths]
        found = [last if at == len(seen) else gather_targets(seen[at], request, self.config.shift) for at in layers]
        return torch.cat([last, *found], -1)

    def beside_states(self, states: Tensor, request: Forward, logits: Callable[[Tensor], Tensor]) -> Tensor:
        """The answer [n, V], [n, V + k D] or [n, k D] from what ``with_states`` returned, by a function ``logits``."""
        query = request.find(StateQuery)
        if query is None:
            return logits(states)
        width = self.embedding.weight.shape[1]
        last, asked = states[:, :width], states[:, width:]
        return asked if query.only else torch.cat([logits(last), asked], -1)


def shape_of_keys(attention: Any) -> tuple[int, int]:
    """Heads of keys and values of a layer, and their width."""
    assert isinstance(attention, Attention)
    return attention.kv_heads, attention.head_dim


def gather_targets(x: Tensor, request: Forward, shift: int) -> Tensor:
    """Select the hidden states that predict the target positions: [R, Q, D] -> [N, D]."""
    if request.targets.shape == (1, 1) and request.positions.shape[1] == 1:
        return x[:, 0]
    queries = request.find(QueryMask)
    pos = request.positions if queries is None or queries.query_ids is None else queries.query_ids
    length = int(pos.max()) + 1
    index = torch.zeros(len(pos), length + 1, dtype=torch.int64, device=pos.device)
    row, query = _locate(index, pos, 0, request.targets, request.shift(shift))
    clean = request.find(CleanStream)
    if clean is not None and clean.targets is not None:  # positions in both streams are read from the clean one
        more = _locate(index, clean.positions, request.positions.shape[1], clean.targets, shift)
        row, query = torch.cat([row, more[0]]), torch.cat([query, more[1]])
    at = upload(torch.stack([row, query]), x.device)
    return x[at[0], at[1]]


def _locate(index: Tensor, pos: Tensor, begin: int, targets: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Write the columns ``begin``, ``begin`` + 1 ... of positions ``pos`` [R, K] into ``index`` [R, length + 1].

    Returns the rows and columns [N] that predict the positions ``targets`` [R, W].
    """
    length = index.shape[1] - 1
    columns = torch.arange(begin, begin + pos.shape[1], device=pos.device).expand_as(pos)
    index.scatter_(1, torch.where(pos < 0, length, pos), columns)
    row, column = (targets >= 0).nonzero(as_tuple=True)
    return row, index[row, (targets[row, column] - shift).clamp(0, length)]
