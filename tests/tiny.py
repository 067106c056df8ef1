"""Tiny real things for the tests: a vocabulary, a distribution small enough to enumerate, and networks that know it.

Legend of shapes: ``redraft.types``; S is the number of texts of a ``Language``, M the length of its longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft import registry
from redraft.models.parts.store import KeyValueStore, KeyValueView
from redraft.objectives.base import Objective
from redraft.types import Batch, CleanStream, DraftQuery, Extra, Forward, Network, QueryMask, Request, Spec, TokenIds
from redraft.types.spec import FamilyFacts, NetworkFacts


@dataclass(frozen=True)
class Vocabulary:
    """What families read of a tokenizer: the five specials, in the order of our own tokenizers, and letters."""

    vocab_size: int = 8
    pad_id: int = 0
    eos_id: int = 1
    bos_id: int = 2
    mask_id: int = 3
    sep_id: int = 4
    stop_ids: tuple[int, ...] = ()

    @property
    def markers(self) -> tuple[int, ...]:
        return (self.pad_id, self.bos_id, self.mask_id, self.sep_id)

    @property
    def letters(self) -> range:
        return range(5, self.vocab_size)

    def with_special_tokens(self, extras: Sequence[str]) -> Vocabulary:
        return Extended(self.vocab_size + 2) if extras else self


@dataclass(frozen=True)
class Extended(Vocabulary):
    """With two special tokens more, for texts that grow and shrink; they come last."""

    @property
    def expand_id(self) -> int:
        return self.vocab_size - 2

    @property
    def delete_id(self) -> int:
        return self.vocab_size - 1

    @property
    def markers(self) -> tuple[int, ...]:
        return (*super().markers, self.expand_id, self.delete_id)

    def with_special_tokens(self, extras: Sequence[str]) -> Vocabulary:
        return self


VOCABULARY = Vocabulary()


def families() -> list[str]:
    """Every family, and as ``sedd-uniform`` those that can do with uniform noise too.

    Families of continuous diffusion keep laws of their own (``test_continuous``): what they ask about are vectors.
    """
    names = registry.names("families")
    found = [n for n in names if registry.find("families", n)().spec(VOCABULARY).family.continuous is None]
    both = [name for name in found if "process" in registry.find("families", name).__dataclass_fields__]
    return [*found, *(f"{name}-uniform" for name in both)]


def described(name: str) -> dict[str, Any]:
    """``sedd-uniform`` -> the table of that family."""
    base, _, process = name.partition("-")
    return {"name": base, **({"process": process} if process else {})}


def family(name: str, paired: bool = True, **fields: Any) -> tuple[Spec, Objective]:
    """Spec and objective of a family over ``VOCABULARY``; ``paired``: prompt -> answer rather than plain text.

    Blocks have two positions, so that the short texts of the tests have several.
    """
    table = {**described(name), **fields}
    kind = registry.find("families", table.pop("name"))
    written = kind.__dataclass_fields__.get("block")  # 0 where a family writes in blocks only if told to
    built = kind(**({"block": 2} if written is not None and written.default else {}) | table)
    spec = built.spec(VOCABULARY)
    return spec if paired else spec.with_network(prompt_encoder=False, length_head=False), built.objective()


def knowing_family(name: str, paired: bool = True) -> tuple[Spec, Objective]:
    """A family for an oracle: under uniform noise, true conditionals depend on the time."""
    spec, objective = family(name, paired)
    return family(name, paired, timed=True) if _noise(spec) == "uniform" else (spec, objective)


def pairs(rows: list[tuple[list[int], list[int]]], length: int = 0) -> Batch:
    """(prompt, target) rows of ids -> a padded batch, as the loader makes it. ``length`` 0: the longest row."""
    length = length or max(len(prompt) + len(target) for prompt, target in rows)
    column = torch.arange(length)
    start = torch.tensor([len(prompt) for prompt, _ in rows])
    end = torch.tensor([len(prompt) + len(target) for prompt, target in rows])
    padded = [[*p, *t, *[VOCABULARY.pad_id] * (length - len(p) - len(t))] for p, t in rows]
    return Batch(
        ids=torch.tensor(padded),
        target=(column >= start[:, None]) & (column < end[:, None]),
        valid=column < end[:, None],
        prompt=start,
        bytes=end - start,
    )


def changed(spec: Spec, **changes: Any) -> Spec:
    """A copy of a spec with other facts, each in the group that it belongs to."""

    def of(group: type) -> dict[str, Any]:
        return {each.name: changes.pop(each.name) for each in fields(group) if each.name in changes}

    found = spec.with_tokens(**of(TokenIds)).with_network(**of(NetworkFacts)).with_family(**of(FamilyFacts))
    assert not changes, f"no group has {', '.join(changes)}"
    return found


def without(request: Forward, kind: type[Extra]) -> Forward:
    """A request without its extra of a type."""
    return replace(request, extra=tuple(each for each in request.extra if not isinstance(each, kind)))


def cached(network: Any, request: Request, store: KeyValueStore) -> Tensor:
    """Logits [N, V] of a narrowed request, with a store; its tokens are not recorded yet."""
    slots, below = request.cache.kv_slot, request.cache.visible_below
    assert slots is not None and below is not None
    logits: Tensor = network(request, KeyValueView(store, slots, below))
    return logits


@dataclass
class Language:
    """A distribution over a few texts (lists of ids, end-of-text included where there is one)."""

    texts: list[list[int]]
    p: Tensor  # [S] float64

    @classmethod
    def of_one_length(cls, letters: list[int], length: int, seed: int = 0) -> Language:
        """Every string of ``length`` letters, with random probabilities: no independence anywhere."""
        grid = torch.cartesian_prod(*[torch.tensor(letters)] * length).view(-1, length)
        return cls(grid.tolist(), _random_probabilities(len(grid), seed))

    @classmethod
    def ended(cls, letters: list[int], longest: int, seed: int = 0) -> Language:
        """Every string of 1 to ``longest`` letters, each closed by an end-of-text, with random probabilities."""
        parts = [cls.of_one_length(letters, n).texts for n in range(1, longest + 1)]
        texts = [[*text, VOCABULARY.eos_id] for part in parts for text in part]
        return cls(texts, _random_probabilities(len(texts), seed))

    @cached_property
    def stop_ids(self) -> bool:
        """Does every text end in end-of-text? Then nothing but end-of-texts follow it."""
        return all(text[-1] == VOCABULARY.eos_id for text in self.texts)

    @cached_property
    def table(self) -> Tensor:
        """[S, M] ids, -1 behind the end."""
        longest = max(map(len, self.texts))
        return torch.tensor([[*text, *[-1] * (longest - len(text))] for text in self.texts])

    def nll(self, text: list[int]) -> float:
        """Exact -log p(text) in nats."""
        return -float(self.p[self.texts.index(text)].log())


def _random_probabilities(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64).mul(1.5).softmax(0)


@dataclass
class OracleNetwork:
    """Answers every request with the true conditionals of a language, given the tokens that the request lets it see.

    All rows have prompts of ``start`` tokens. At the last of them it predicts the length. Where everything is seen
    (attention ``full``) so is the extent of the canvas, hence the length. Beyond the end of a text that stop_ids in
    end-of-text stand more of them. It keeps no cache: run it without one.

    Under uniform noise any token of the answer may be noise: it predicts each from all others (leave-one-out), given
    the time. For models of scores it answers with scores. Nothing is known of a block of random tokens after text.
    """

    language: Language
    spec: Spec
    start: int

    def expected(self, log_p: Tensor) -> Tensor:
        """It does not look at vectors, so that any will do."""
        assert self.spec.family.continuous is not None
        return log_p.new_zeros(len(log_p), self.spec.family.continuous.width)

    def __call__(self, request: Forward, store: object = None) -> Tensor:
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        want, pos, x = request.targets[row, column], request.positions[row], request.tokens[row]  # [N], [N, Q], [N, Q]
        group, shift = request.group(request.positions)[row], request.shift(self.spec.network.shift)
        own, clean = request.find(QueryMask), request.find(CleanStream)
        name = pos if own is None or own.query_ids is None else own.query_ids[row]
        at = (name == want[:, None] - shift).nonzero()[:, 1]
        want = pos.gather(1, at[:, None])[:, 0] + shift
        mine = group.gather(1, at[:, None])
        if clean is not None:  # earlier groups are read from the clean stream
            text = torch.zeros(len(x), int(max(pos.max(), clean.positions.max())) + 1, dtype=x.dtype)
            text.scatter_(1, clean.positions[row].clamp(min=0), clean.tokens[row])
            x = torch.where(group < mine, text.gather(1, pos.clamp(min=0)), x)
        sees = group <= mine if own is None else own.mask[row, at]
        seen = (pos >= self.start) & sees
        table, lengths = self.language.table, (self.language.table >= 0).sum(1)
        if self.language.stop_ids:
            more = max(0, int(pos.max()) + 1 - self.start - table.shape[1])
            table = F.pad(table, (0, more), value=-1)
            table = torch.where(table < 0, VOCABULARY.eos_id, table)
        says = table[:, (pos - self.start).clamp(0, table.shape[1] - 1)]  # [S, N, Q]
        if _noise(self.spec) == "uniform":
            assert self.spec.family.schedule is not None and request.time is not None
            alpha = self.spec.family.schedule.alpha(request.time.double())[row, None]  # [N, 1]
            letters = self.spec.tokens.vocab_size - len(self.spec.tokens.forbidden)
            others = seen & (torch.arange(pos.shape[1]) != at[:, None])
            chance = torch.where(says == x, alpha + (1 - alpha) / letters, (1 - alpha) / letters)
            weight = torch.where(others, chance, 1.0).prod(-1)
        else:
            known = seen & (x != self.spec.tokens.mask_id)
            if request.find(DraftQuery) is not None and _noise(self.spec.family.drafter or self.spec) == "uniform":
                known &= group < mine  # noise of an unknown level
            weight = ((says == x) | ~known).all(-1).double()
        if request.attention.kind == "full":
            extent = seen.sum(1)
            weight = weight * ((lengths[:, None] == extent) | (extent == 0))
        weight = weight * self.language.p[:, None]  # [S, N]

        outcome = table[:, (want - self.start).clamp(0, table.shape[1] - 1)]  # [S, N]
        outcome = torch.where(want == self.start - 1, lengths[:, None], outcome)
        p = torch.zeros(len(want), self.spec.tokens.vocab_size + 1, dtype=torch.float64)
        p.scatter_add_(1, torch.where(outcome < 0, self.spec.tokens.vocab_size, outcome).T, weight.T.contiguous())
        p = p[:, :-1]  # the last column gathered the texts that had already ended
        p = p / p.sum(1, keepdim=True).clamp(min=1e-300)
        token = (want >= self.start)[:, None]
        if self.spec.scores and _noise(self.spec) == "uniform":
            p = torch.where(token, alpha * p + (1 - alpha) / letters, p)
        logits = p.clamp(min=1e-30).log()  # impossible text: uniform
        if self.spec.scores and _noise(self.spec) == "absorbing":
            logits = logits + token * math.log(self.spec.tokens.vocab_size - len(self.spec.tokens.forbidden))
        return logits.float()


@dataclass
class ArbitraryNetwork:
    """Random conditionals for every pattern of visible tokens: a model that agrees with no joint distribution."""

    spec: Spec
    length: int
    seed: int = 0
    start: int = 0

    @cached_property
    def logits(self) -> Tensor:
        v, n = self.spec.tokens.vocab_size, self.length
        return torch.randn(v**n, n, v, generator=torch.Generator().manual_seed(self.seed)) * 1.5

    def __call__(self, request: Forward, store: object = None) -> Tensor:
        place = self.spec.tokens.vocab_size ** torch.arange(self.length)
        pattern = (request.tokens[:, self.start : self.start + self.length] * place).sum(1)
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        return self.logits[pattern[row], request.targets[row, column] - self.start]


def _noise(spec: Spec) -> str | None:
    """Name of the family's noise process."""
    return None if spec.family.process is None else spec.family.process.name


def log_probabilities(network: Network, spec: Spec, x: Tensor, start: int = 0) -> Tensor:
    """What a bidirectional network predicts at every position of rows ``x`` [R, L] from ``start`` on, forbidden
    tokens removed -> [R, L - start, V] float64."""
    pos = torch.arange(x.shape[1]).expand(x.shape)
    request = Forward(tokens=x, positions=pos, targets=pos[:, start:], attention=spec.network.attention)
    logits = network(request).double().view(x.shape[0], x.shape[1] - start, -1).clone()
    logits[..., sorted({*spec.tokens.forbidden, spec.tokens.mask_id})] = -torch.inf
    return logits.log_softmax(-1)
