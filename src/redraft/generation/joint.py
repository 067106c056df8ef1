"""The likelihood of every combination of labels in the slots of a text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from redraft import likelihood
from redraft.errors import UserError
from redraft.generation.first_pass import parts
from redraft.generation.holes import fixed_size_spec
from redraft.generation.slots import Scores, SlotText, State, length_log_p, softmax
from redraft.samplers.confidence import Confidence
from redraft.settings import DecisionSettings
from redraft.types import Batch

if TYPE_CHECKING:
    from redraft.model import Model

_MOST = 1024  # combinations of labels of one text


def fills_masks(model: Model) -> bool:
    """Does the model predict masked slots, given the text on both sides?"""
    return model.spec.masks and not model.spec.edits and model.spec.network.attention.kind == "full"


def is_exact(model: Model) -> bool:
    """Is the likelihood known exactly, from left to right?"""
    return model.spec.family.schedule is None


@dataclass(frozen=True)
class _Candidate:
    """A text with a label in each slot, or its beginning up to a slot."""

    text: int  # number of the text
    head: int  # length of its prompt
    row: list[int]
    slots: list[tuple[int, int]]  # of the labels to score: first position of each, and one past its last
    unit: int  # the score is divided by it


def combinations(text: SlotText) -> list[tuple[int, ...]]:
    """Every combination of labels, as numbers.

    Raises:
        UserError: there are too many.
    """
    count = math.prod(map(len, text.ids))
    if count > _MOST:
        raise UserError(
            f"The slots have {count:,} combinations of labels; by likelihood at most {_MOST:,} are scored.",
            "Decide fewer slots at once, or use method 'chain'.",
        )
    return list(itertools.product(*(range(len(own)) for own in text.ids)))


def marginals(
    model: Model,
    texts: Sequence[SlotText],
    empty: SlotText | None,
    settings: DecisionSettings,
    checkpoint: Callable[[], None],
) -> tuple[list[Scores], list[int]]:
    """The probability of each label of each slot (see ``decide``), and the passes of each text.

    Args:
        empty: the text whose scores are subtracted; None: nothing is.
        checkpoint: called before forward passes; it may raise an exception.
    Raises:
        UserError: too many combinations, or the network's predictions are not numbers.
    """
    every = [*texts, *([] if empty is None else [empty])]
    candidates = [one for number, text in enumerate(every) for one in _candidates(text, number, settings.by)]
    if is_exact(model):
        log_p, passes = _causal(model, candidates, settings, checkpoint)
    elif fills_masks(model):
        log_p, passes = _masked(model, every, candidates, checkpoint)
    else:
        log_p, passes = _bounded(model, candidates, settings, checkpoint)
    scores: list[list[float]] = [[] for _ in every]
    for candidate, own in zip(candidates, log_p, strict=True):
        scores[candidate.text].append(own / candidate.unit)
    if empty is not None:
        scores = [[a - b for a, b in zip(own, scores[-1], strict=True)] for own in scores[:-1]]
    found = [_summed(text, softmax(own)) for text, own in zip(texts, scores, strict=True)]
    return found, [passes[number] for number in range(len(texts))]


def _summed(text: SlotText, p: Sequence[float]) -> Scores:
    """The probability of each label of each slot, from that of each combination."""
    found = [[0.0] * len(own) for own in text.ids]
    for combination, one in zip(combinations(text), p, strict=True):
        for slot, label in enumerate(combination):
            found[slot][label] += one
    return found


def _candidates(text: SlotText, number: int, by: str) -> list[_Candidate]:
    found = []
    for combination in combinations(text):
        sizes = [len(own[label]) for own, label in zip(text.ids, combination, strict=True)]
        row = [token for token in text.row(sizes, dict(enumerate(combination))) if token is not None]
        unit = 1 if by == "sum" else sum(text.unit(slot, label, by) for slot, label in enumerate(combination))
        found.append(_Candidate(number, len(text.layout.head), row, text.layout.spans(sizes), unit))
    return found


def next_slot_scores(
    model: Model, states: Sequence[State], settings: DecisionSettings, checkpoint: Callable[[], None]
) -> tuple[list[Scores], list[int]]:
    """Of an autoregressive model, the score of each label of the first slot that is not decided (others: no labels),
    from the likelihood of the label and the text up to the next slot; and the passes of each text.

    Args:
        checkpoint: called before forward passes; it may raise an exception.
    """
    candidates: list[_Candidate] = []
    found: list[Scores] = []
    for number, (text, decided) in enumerate((state.text, state.decided) for state in states):
        slot = next(each for each in range(len(text.ids)) if each not in decided)
        for label in range(len(text.ids[slot])):
            known = {**decided, slot: label}
            sizes = [len(own[known.get(each, 0)]) for each, own in enumerate(text.ids)]
            spans, row = text.layout.spans(sizes), text.row(sizes, known)
            end = spans[slot + 1][0] if slot + 1 < len(spans) else len(row)
            ids, unit = [token for token in row[:end] if token is not None], text.unit(slot, label, settings.by)
            candidates.append(_Candidate(number, len(text.layout.head), ids, [spans[slot]], unit))
        found.append([[] for _ in text.ids])
    log_p, passes = _causal(model, candidates, settings, checkpoint)
    for candidate, own in zip(candidates, log_p, strict=True):
        text, decided = states[candidate.text].text, states[candidate.text].decided
        slot = next(each for each in range(len(text.ids)) if each not in decided)
        found[candidate.text][slot].append(own / candidate.unit)
    return found, [passes[number] for number in range(len(states))]


def _batch(candidates: Sequence[_Candidate], pad_id: int, slots_only: bool) -> Batch:
    """Rows whose targets are their slots, or everything from the first slot on."""
    width = max(len(one.row) for one in candidates)
    target = torch.zeros(len(candidates), width, dtype=torch.bool)
    for number, one in enumerate(candidates):
        for begin, end in one.slots if slots_only else [(one.slots[0][0], len(one.row))]:
            target[number, begin:end] = True
    return Batch(
        ids=torch.tensor([[*one.row, *[pad_id] * (width - len(one.row))] for one in candidates]),
        target=target,
        valid=torch.arange(width) < torch.tensor([[len(one.row)] for one in candidates]),
        prompt=torch.tensor([one.head for one in candidates]) if all(one.head for one in candidates) else None,
        bytes=torch.zeros(len(candidates), dtype=torch.int64),
    )


def _causal(
    model: Model, candidates: Sequence[_Candidate], settings: DecisionSettings, checkpoint: Callable[[], None]
) -> tuple[list[float], dict[int, int]]:
    """The exact log p of everything from the first slot on, and the passes of each text."""
    log_p: list[float] = []
    passes: dict[int, int] = {}
    for part in parts([one.row for one in candidates], [one.text for one in candidates]):
        checkpoint()
        own = candidates[part.start : part.stop]
        batch = _batch(own, model.spec.tokens.pad_id, slots_only=False)
        found = likelihood.bound(
            model.network, [batch], model.family.objective(), model.spec, settings.samples, settings.seed
        )
        log_p += [-nats for nats in found.rows]
        for number in {one.text for one in own}:
            passes[number] = passes.get(number, 0) + 1
    return log_p, passes


def _masked(
    model: Model, texts: Sequence[SlotText], candidates: Sequence[_Candidate], checkpoint: Callable[[], None]
) -> tuple[list[float], dict[int, int]]:
    """log p of the labels from left to right, each token given the text and those before it.

    Where lengths differ, the given text after a slot has another place, and counts: then it is log p of everything from
    the first slot on, without the end that is always given, plus that of the length.
    """
    spec = fixed_size_spec(model).with_network(length_head=False)  # the targets are not the whole answer
    rows, owner = [one.row for one in candidates], [one.text for one in candidates]
    same = all(len({len(ids) for ids in own}) == 1 for text in texts for own in text.ids)
    lengths = None if same else length_log_p(model, texts, rows, owner, checkpoint)
    log_p = [0.0] * len(rows) if lengths is None else lengths
    passes = dict.fromkeys(owner, int(lengths is not None))
    tail = len(texts[0].layout.tail)
    for part in parts(rows, owner):
        checkpoint()
        own = candidates[part.start : part.stop]
        batch = _batch(own, spec.tokens.pad_id, slots_only=same)
        for number, one in enumerate(own):
            batch.target[number, len(one.row) - tail :] = False
        tokens = batch.target.sum(1).tolist()
        sampler = Confidence(steps=max(tokens), order="left")
        found = likelihood.sampler_likelihood(model.inference_network(), [batch], sampler, spec)
        for at, nats in zip(part, found.rows, strict=True):
            log_p[at] -= nats
        for number in {one.text for one in own}:
            passes[number] += max(size for one, size in zip(own, tokens, strict=True) if one.text == number)
    return log_p, passes


def _bounded(
    model: Model, candidates: Sequence[_Candidate], settings: DecisionSettings, checkpoint: Callable[[], None]
) -> tuple[list[float], dict[int, int]]:
    """Minus the bound on -log p of the whole text, and the noise samples of each text."""
    log_p: list[float] = []
    passes: dict[int, int] = {}
    objective = model.family.objective()
    for one in candidates:
        checkpoint()
        found = likelihood.score(
            model.network,
            one.row[: one.head],
            one.row[one.head :],
            objective,
            model.spec,
            settings.samples,
            settings.seed,
        )
        log_p.append(-found.nats)
        passes[one.text] = passes.get(one.text, 0) + found.samples
    return log_p, passes
