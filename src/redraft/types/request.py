"""The input of one forward pass, how its output is sampled, and what a cache may skip.

Samplers, objectives, guidance and likelihoods never call a network. They return requests, and the loop (or the
server's engine) runs them:

    Forward    what a network reads
    Request    a Forward of the decoding loop, with a ``Drawing`` (how its answer is sampled) and a ``CacheHint``
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor

from redraft.types.attention import AttentionPattern

E_ = TypeVar("E_", bound="Extra")


@dataclass(frozen=True)
class Extra(ABC):
    """A part of a request that only some networks read.

    A method that needs a new kind of input declares a subclass in its own file. The subclass pads and joins its
    tensors, so that requests of different users can share a forward pass.
    """

    def columns(self, index: Tensor) -> Self:
        """A copy for some of the columns, [q] or [R, q] column numbers. A cache skips the other columns."""
        return self

    @property
    def signature(self) -> Hashable:
        """Requests share a forward pass only if the signatures of their extras are equal."""
        return type(self), tuple(each.name for each in fields(self) if getattr(self, each.name) is None)

    @classmethod
    @abstractmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the rows of several extras, padded on the right to the widest."""


@dataclass(frozen=True)
class CleanStream(Extra):
    """The clean text as a second stream beside the noisy one, in the same pass (BD3-LM, arXiv:2503.09573).

    A noisy position attends to the noisy positions of its own group and to the clean ones of earlier groups. A clean
    position attends to the clean ones that ``attention`` allows, and to no noisy one. An isolated prompt is clean in
    any case: only the noisy stream contains it, and both streams attend to it.
    """

    tokens: Tensor  # [R, C]
    positions: Tensor  # [R, C] positions, the same numbers as in the noisy stream; -1 is padding
    attention: AttentionPattern  # within this stream
    targets: Tensor | None = None  # [R, U] target positions of this stream; their logits follow the noisy stream's

    @property
    def signature(self) -> Hashable:
        return super().signature, self.attention

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        targets = (
            None
            if parts[0].targets is None
            else stack([each.targets for each in parts if each.targets is not None], -1)
        )
        tokens, positions = stack([each.tokens for each in parts], 0), stack([each.positions for each in parts], -1)
        return cls(tokens, positions, parts[0].attention, targets)


@dataclass(frozen=True)
class VectorQuery(Extra):
    """Vectors of continuous diffusion that replace the tokens at some positions. Where a position is ``noisy``, the
    network reads its vector and ignores its token. Three kinds of request:

    - ``predict``: from noisy vectors, [N, V] logits or [N, Z] numbers (see ``Continuous.tokens``).
    - ``encode``: the clean vectors [N, Z] of the target positions. Such a request has no vectors.
    - ``decode``: the logits [N, V] of the target text positions, from (nearly) clean vectors.

    In predictions and decoding, position p + k of a row with prompt length p holds its k-th vector.
    """

    kind: Literal["predict", "encode", "decode"]
    vectors: Tensor | None = None  # [R, Q, Z]
    noisy: Tensor | None = None  # [R, Q] bool
    previous: Tensor | None = None  # [R, Q, Z] the previous prediction: self-conditioning (arXiv:2208.04202)

    def columns(self, index: Tensor) -> Self:
        """A copy for some of the columns, [q] or [R, q]."""

        def select(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[torch.arange(len(part))[:, None], index]

        return replace(self, vectors=select(self.vectors), noisy=select(self.noisy), previous=select(self.previous))

    @property
    def signature(self) -> Hashable:
        return super().signature, self.kind

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        joined = {}
        for name in ("vectors", "noisy", "previous"):
            tensors = [getattr(each, name) for each in parts]
            joined[name] = None if tensors[0] is None else stack(tensors, 0)
        return cls(parts[0].kind, **joined)


@dataclass(frozen=True)
class SelfConditioning(Extra):
    """The previous prediction at each position of a sequence, for token networks (arXiv:2208.04202).

    P: all positions of the sequence, also those that a request does not run; K: the likeliest tokens.
    """

    token: Tensor  # [R, P, K]
    weight: Tensor  # [R, P, K] their probabilities; 0 where nothing was predicted

    @classmethod
    def blank(cls, ids: Tensor, count: int) -> Self:
        """No prediction anywhere in the sequences ``ids`` [R, P], with room for ``count`` tokens."""
        token = ids.new_zeros(*ids.shape, count)
        return cls(token, token.float())

    @staticmethod
    def likeliest(log_p: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` likeliest tokens of each distribution [N, V] and their probabilities, [N, K] each."""
        best, token = log_p.topk(count, -1)
        return token, best.float().exp()

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls(stack([each.token for each in parts], 0), stack([each.weight for each in parts], 0))


@dataclass(frozen=True)
class QueryMask(Extra):
    """Queries with an explicit attention mask. Several queries may share a position. Runs without a cache.

    With ``query_ids``, ``Forward.targets`` refers to queries by these ids instead of by position.
    """

    mask: Tensor  # [R, Q, Q] bool: query i attends to query j
    query_ids: Tensor | None = None  # [R, Q] id of each query in ``targets``, -1 is padding; None: its position

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Padding attends to itself, because a softmax over no keys is not a number."""
        width = max(each.mask.shape[1] for each in parts)
        mask = torch.eye(width, dtype=torch.bool).repeat(sum(len(each.mask) for each in parts), 1, 1)
        row = 0
        for each in parts:
            mask[row : row + len(each.mask), : each.mask.shape[1], : each.mask.shape[1]] = each.mask
            row += len(each.mask)
        ids = [each.query_ids for each in parts if each.query_ids is not None]
        return cls(mask, stack(ids, -1) if ids else None)


@dataclass(frozen=True)
class DraftQuery(Extra):
    """Requests predictions at another shift than the network's own, to draft tokens after a sequence.

    From ``draft_from`` on, positions are drafts after causal text: one attention group, or with the attention ``block``
    one for each block, counted from there.
    """

    shift: int  # the logits of position p are at p - shift
    draft_from: Tensor | None = None  # [R]

    @property
    def signature(self) -> Hashable:
        return super().signature, self.shift

    def begins(self, positions: Tensor, attention: AttentionPattern) -> Tensor:
        """The first position of the group of each draft in ``positions`` [R, K], and other positions -> [R, K]."""
        if self.draft_from is None:
            return positions
        first = self.draft_from[:, None]
        if attention.kind != "block":
            return torch.minimum(positions, first)
        block = first + (positions - first).div(attention.block, rounding_mode="floor") * attention.block
        return torch.where(positions < first, positions, block)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        starts = [each.draft_from for each in parts if each.draft_from is not None]
        return cls(parts[0].shift, torch.cat(starts) if starts else None)


@dataclass(frozen=True)
class DraftBlocks(Extra):
    """Blocks of drafts behind many positions of a clean text at once, to train a drafter (arXiv:2602.06036).

    A block is the token at an anchor and ``size`` - 1 masks after it. It sees the network's reading of the text before
    the anchor, and itself. ``Forward.targets`` [R, A (size - 1)] lists the positions of the masks, block after block.
    """

    anchors: Tensor  # [R, A] positions; -1 is none
    size: int  # positions of a block

    @property
    def signature(self) -> Hashable:
        return super().signature, self.size

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls(stack([each.anchors for each in parts], -1), parts[0].size)


@dataclass(frozen=True)
class StateQuery(Extra):
    """Requests the hidden states of target positions beside their logits, to compare networks (arXiv:2605.06885).

    A depth is a share of the blocks: 0 is the input of the first block, 1 the output of the last norm. With k depths
    the answer is [N, V + k D], or [N, k D] with ``only``. The hidden state of a target is the one that predicts it.
    """

    depths: tuple[float, ...]
    only: bool = False  # without logits

    @property
    def signature(self) -> Hashable:
        return type(self), self.depths, self.only

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return parts[0]


@dataclass
class Forward:
    """A request for one forward pass: what a network reads, and nothing else."""

    tokens: Tensor  # [R, Q] token ids
    positions: Tensor  # [R, Q] positions; -1 is padding
    targets: Tensor  # [R, W] positions whose distribution is requested; -1 is none
    attention: AttentionPattern
    prompt: Tensor | None = None  # [R] prompt lengths, if the prompt must not attend to the answer
    time: Tensor | None = None  # [R] noise time, for networks conditioned on it
    network: str = "main"  # name of the loop's network that runs it
    extra: tuple[Extra, ...] = ()  # at most one of each type

    def find(self, kind: type[E_]) -> E_ | None:
        """The extra of a type, or None."""
        for each in self.extra:
            if isinstance(each, kind):
                return each
        return None

    def with_extra(self, *extras: Extra) -> Self:
        """A copy with these extras; they replace extras of the same types."""
        kinds = {type(each) for each in extras}
        kept = tuple(each for each in self.extra if type(each) not in kinds)
        return replace(self, extra=(*kept, *extras))

    def group(self, positions: Tensor) -> Tensor:
        """Attention group of ``positions`` [R, K] -> [R, K]; see ``AttentionPattern``."""
        draft = self.find(DraftQuery)
        if draft is None or draft.draft_from is None:
            return self.attention.group(positions, self.prompt)
        begins = draft.begins(positions, self.attention)
        return begins if self.attention.kind == "block" else self.attention.group(begins, self.prompt)

    def shift(self, own: int) -> int:
        """The logits of position p are at p - shift; ``own`` is the network's shift."""
        draft = self.find(DraftQuery)
        return own if draft is None else draft.shift

    @property
    def uncached(self) -> bool:
        """It runs without a key-value store, because its queries have an explicit mask."""
        return self.find(QueryMask) is not None

    @property
    def target_positions(self) -> Tensor:
        """[R, W] sequence positions of ``targets``: equal to ``targets``, unless a ``QueryMask`` has query ids."""
        query = self.find(QueryMask)
        if query is None or query.query_ids is None:
            return self.targets
        shift = self.shift(0)
        same = query.query_ids[:, None, :] == (self.targets - shift)[:, :, None]
        positions = self.positions.gather(1, same.to(torch.int8).argmax(2)) + shift
        return torch.where(same.any(2) & (self.targets >= 0), positions, self.targets)

    @property
    def target_lists(self) -> tuple[Tensor, ...]:
        """[R, W] target positions of each stream, in the order of the logits: the noisy stream, then the clean one."""
        clean = self.find(CleanStream)
        return (self.targets,) if clean is None or clean.targets is None else (self.targets, clean.targets)

    @property
    def streams(self) -> tuple[Tensor, Tensor]:
        """Tokens and positions of both streams, the noisy one first, [R, Q + C] each."""
        clean = self.find(CleanStream)
        if clean is None:
            return self.tokens, self.positions
        return torch.cat([self.tokens, clean.tokens], 1), torch.cat([self.positions, clean.positions], 1)


@dataclass
class Drawing:
    """How the loop samples from the answer to a request. No network reads it."""

    rows: Tensor  # [R] canvas rows
    noise_step: Tensor | None = None  # [R] noise step in the key of the samples; None: the row's step, set by the loop
    disallowed: Tensor | None = None  # [R, K] ids that may not be sampled, besides the forbidden ones; -1 is none
    kind: Literal["token", "length"] = "token"  # length: the answer is a distribution of output length
    gumbel: bool = False  # sampled by ``runtime.gumbel_max``; else by ``runtime.inverse_cdf``
    heat: Tensor | None = None  # [R] factor of the rows' temperatures, from a sampler with a schedule; None: 1


@dataclass
class CacheHint:
    """What a cache policy reads and sets. No network reads it."""

    branch: int = 0  # index of the cache: guidance runs each row twice, with a cache for each
    kv_slot: Tensor | None = None  # [R] slot in the key-value store; set by the loop
    visible_below: Tensor | None = None  # [R] positions below it are read from the store; set by the policy
    active_region: Tensor | None = None  # [R, 2] first position that the sampler works on, and one past the last
    bypass: bool = False  # runs without a store, because several rows have the same slot


@dataclass(kw_only=True)
class Request(Forward):
    """A forward pass in the decoding loop."""

    drawing: Drawing
    cache: CacheHint = field(default_factory=CacheHint)

    @property
    def rows(self) -> Tensor:
        """[R] canvas rows."""
        return self.drawing.rows

    @property
    def uncached(self) -> bool:
        """It runs without a key-value store."""
        return self.cache.bypass or super().uncached

    @property
    def predicts_length(self) -> bool:
        """The answer is a distribution of output length, not of tokens."""
        return self.drawing.kind == "length"

    def with_drawing(self, **changes: Any) -> Self:
        """A copy with other fields of ``drawing``."""
        return replace(self, drawing=replace(self.drawing, **changes))

    def with_cache(self, **changes: Any) -> Self:
        """A copy with other fields of ``cache``."""
        return replace(self, cache=replace(self.cache, **changes))


@dataclass
class Output:
    """The answer to a ``Request``: predictions at the target positions."""

    log_p: Tensor  # [N, V] log-probabilities, -inf for forbidden tokens; row by row over targets >= 0
    token: Tensor  # [R, W] the sampled token, -1 where there was no target
    conf: Tensor  # [R, W] log-probability of the sampled token at temperature 1, -inf where there was no target
    log_z: Tensor | None = None  # [N] log sum of exp(logits) over the tokens that may be sampled; if ``Spec.scores``
    vector: Tensor | None = None  # [N, Z] the predicted clean vectors, or v; for continuous diffusion


def stack(parts: Sequence[Tensor], fill: float) -> Tensor:
    """Concatenate tensors [R, w, ...] along rows, padded on the right with ``fill`` -> [sum R, max w, ...]."""
    width = parts[0].shape[1]
    if all(part.shape[1] == width for part in parts):
        return torch.cat(list(parts))
    width = max(part.shape[1] for part in parts)
    rows = sum(len(part) for part in parts)
    result = parts[0].new_full((rows, width, *parts[0].shape[2:]), fill)
    row = 0
    for part in parts:
        result[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return result
