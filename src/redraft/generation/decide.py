"""Decisions: which of its labels belongs into each slot of a text, with probabilities.

For a text x, a slot s with labels l of n_l tokens, and the other slots z, the probability of a label is the softmax of
its score over the labels of the slot:

    one_pass     score(l) = log p(n_l) + sum_j log p(l_j | x, n_l masks in s, masks in z)
    chain        the same; the most certain slot is decided first, and z holds the labels of the slots decided before
                 autoregressive models: score(l) = log p(l and the text up to the next slot | text and labels before it)
    likelihood   p(l) = sum over the labels of z of p(l, z | x), from the likelihood of every combination

``one_pass`` is a pseudo-likelihood: the tokens of a label, and the slots, are predicted independently of each other. It
takes one forward pass of a masked model for all slots and labels. A label enters by its number of masks, so that each
number has one row of the pass; the other slots then have the number of masks that most of their labels have. log p(n_l)
is that of the row's length by the length head. It takes another pass, and only if labels differ in length; it is 0 for
a model without a length head.

``likelihood`` is the chain rule. For autoregressive models it is exact, over the text from the first slot on. For
masked models it is that of the slots from left to right (DUEL, arXiv:2603.01367), with one pass for each token. For
other families it is the bound on the likelihood of the whole text.

``by`` divides a score by the tokens or bytes of the labels. ``calibrate`` subtracts the score in a text whose fields
are empty, which removes the model's preference for some labels (Zhao et al. 2021, arXiv:2102.09690; Holtzman et al.
2021, arXiv:2104.08315).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.generation import joint
from redraft.generation.first_pass import parts, predictions, run_passes
from redraft.generation.holes import fixed_size_spec, go_on
from redraft.generation.prompts import check_mask
from redraft.generation.slots import Labels, Row, Scores, SlotTemplate, SlotText, State, length_log_p, softmax
from redraft.runtime import download, upload
from redraft.settings import DecisionSettings
from redraft.types import Request

if TYPE_CHECKING:
    from redraft.model import Model

Scorer = Callable[[Sequence[State]], tuple[list[Scores], list[int]]]  # scores of undecided slots, and passes
_GROUP_ROWS = 4096  # rows that are prepared together


@dataclass(frozen=True)
class Decision:
    """The labels of one text."""

    text: str  # with the labels in its slots
    labels: Mapping[str, str]  # the most probable label of each slot
    probabilities: Mapping[str, Mapping[str, float]]  # of each label of each slot; they sum to 1 in a slot
    nfe: int  # forward passes that the text took part in; where a bound is estimated, noise samples


def decide(
    model: Model,
    text: str,
    labels: Labels,
    rows: Sequence[Row],
    prompt: str,
    settings: DecisionSettings,
    checkpoint: Callable[[], None] = go_on,
    where: Sequence[str] = (),
) -> list[Decision]:
    """See ``Model.decide``.

    Args:
        checkpoint: called before forward passes; it may raise an exception.
        where: the origin of each row, for errors.
    Raises:
        UserError: as ``SlotTemplate``; or this model can't use the method.
    """
    check_mask(model)
    template = SlotTemplate.of(model, text, labels, prompt)
    texts = [template.text(row, place) for row, place in zip(rows, where or [""] * len(rows), strict=True)]
    empty = template.empty() if settings.calibrate else None
    method = _method(model, settings)
    found: list[Decision] = []
    for group in _groups(texts, joint.combinations if method == "likelihood" else _row_counts):
        run = {"likelihood": joint.marginals, "chain": _chain, "one_pass": _one_pass}[method]
        p, nfe = run(model, group, empty, settings, checkpoint)
        found += [_decision(one, own, passes) for one, own, passes in zip(group, p, nfe, strict=True)]
    return found


def _groups(texts: Sequence[SlotText], rows: Callable[[SlotText], Sequence[Any]]) -> Iterator[list[SlotText]]:
    """Consecutive texts that together have about ``_GROUP_ROWS`` rows to run, which bounds the memory."""
    group: list[SlotText] = []
    size = 0
    for text in texts:
        own = len(rows(text))
        if group and size + own > _GROUP_ROWS:
            yield group
            group, size = [], 0
        group.append(text)
        size += own
    if group:
        yield group


def _row_counts(text: SlotText) -> list[int]:
    """The different numbers of tokens of the labels of all slots."""
    return [size for own in text.ids for size in {len(ids) for ids in own}]


def _method(model: Model, settings: DecisionSettings) -> str:
    """The method that the settings ask for.

    Raises:
        UserError: the model can't use it.
    """
    if settings.method == "auto":
        return "one_pass" if joint.fills_masks(model) else "likelihood"
    if settings.method == "one_pass" and not joint.fills_masks(model):
        reason = "by 'one_pass': it needs masks, and attention to the text after a slot"
    elif settings.method == "chain" and not (joint.fills_masks(model) or joint.is_exact(model)):
        reason = "by 'chain': its likelihood is only known as a bound"
    else:
        return settings.method
    raise UserError(f"A model of family '{model.family_name}' can't decide {reason}.", "Use method 'likelihood'.")


def _decision(text: SlotText, probabilities: Scores, nfe: int) -> Decision:
    names, labels = text.template.names, text.template.labels
    best = [labels[name][p.index(max(p))] for name, p in zip(names, probabilities, strict=True)]
    by_label = [dict(zip(labels[name], p, strict=True)) for name, p in zip(names, probabilities, strict=True)]
    return Decision(
        text.filled(best), dict(zip(names, best, strict=True)), dict(zip(names, by_label, strict=True)), nfe
    )


# ---- one pass


def _one_pass(
    model: Model,
    texts: Sequence[SlotText],
    empty: SlotText | None,
    settings: DecisionSettings,
    checkpoint: Callable[[], None],
) -> tuple[list[Scores], list[int]]:
    """The probabilities of the labels of each text, and its passes."""
    score = partial(_slot_scores, model, settings=settings, checkpoint=checkpoint)
    scores, nfe = _calibrated(score, [State(text, {}) for text in texts], empty)
    return [[softmax(own) for own in slots] for slots in scores], nfe


def _chain(
    model: Model,
    texts: Sequence[SlotText],
    empty: SlotText | None,
    settings: DecisionSettings,
    checkpoint: Callable[[], None],
) -> tuple[list[Scores], list[int]]:
    """The probabilities of the labels of each text, and its passes: of the slots that are scored, the most certain one
    is decided, then the next one given it."""
    scorer = _slot_scores if joint.fills_masks(model) else joint.next_slot_scores
    score = partial(scorer, model, settings=settings, checkpoint=checkpoint)
    count = len(texts[0].template.names)
    decided: list[dict[int, int]] = [{} for _ in texts]
    found: list[Scores] = [[[] for _ in range(count)] for _ in texts]
    nfe = [0] * len(texts)
    for _ in range(count):
        states = [State(text, dict(known)) for text, known in zip(texts, decided, strict=True)]
        scores, passes = _calibrated(score, states, empty)
        for number, own in enumerate(scores):
            p = {slot: softmax(own[slot]) for slot in range(count) if own[slot]}
            slot = max(p, key=lambda each: max(p[each]))
            found[number][slot] = p[slot]
            decided[number][slot] = p[slot].index(max(p[slot]))
            nfe[number] += passes[number]
    return found, nfe


def _calibrated(score: Scorer, states: Sequence[State], empty: SlotText | None) -> tuple[list[Scores], list[int]]:
    """The scores of texts, minus those of the empty text with the same decided labels. Its rows share the passes."""
    if empty is None:
        return score(states)
    keys = [tuple(sorted(state.decided.items())) for state in states]
    twins = {key: len(states) + number for number, key in enumerate(dict.fromkeys(keys))}
    scores, nfe = score([*states, *(State(empty, dict(key)) for key in twins)])
    found = [
        [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(own, scores[twins[key]], strict=True)]
        for own, key in zip(scores, keys, strict=False)
    ]
    return found, nfe[: len(states)]


@dataclass(frozen=True)
class _Place:
    """Where a label of a slot is scored: all as numbers."""

    state: int
    slot: int
    label: int
    row: int
    begin: int  # first position


def _slot_scores(
    model: Model, states: Sequence[State], settings: DecisionSettings, checkpoint: Callable[[], None]
) -> tuple[list[Scores], list[int]]:
    """The score of each label of the slots that are not decided (others: no labels), and the passes of each text."""
    rows, owner, places = _rows(states)
    texts = [state.text for state in states]
    lengths = length_log_p(model, texts, rows, owner, checkpoint)
    nfe = [int(lengths is not None)] * len(states)
    found: list[Scores] = [
        [[0.0] * len(own) if slot not in state.decided else [] for slot, own in enumerate(state.text.ids)]
        for state in states
    ]
    network, spec, heads = model.inference_network(), fixed_size_spec(model), [len(text.layout.head) for text in texts]
    for part in parts(rows):
        passes = predictions([rows[i] for i in part], [heads[owner[i]] for i in part], spec)
        request, log_p = run_passes(passes, network, checkpoint)
        own = [place for place in places if place.row in part]
        tokens = [texts[place.state].ids[place.slot][place.label] for place in own]
        values = iter(_at(request, log_p, [(one.row - part.start, one.begin) for one in own], tokens))
        for place, ids in zip(own, tokens, strict=True):
            score = math.fsum(next(values) for _ in ids) + (0.0 if lengths is None else lengths[place.row])
            unit = texts[place.state].unit(place.slot, place.label, settings.by)
            found[place.state][place.slot][place.label] = score / unit
        for number in {owner[i] for i in part}:
            nfe[number] += 1
    return found, nfe


def _rows(states: Sequence[State]) -> tuple[list[list[int | None]], list[int], list[_Place]]:
    """The rows in which all labels can be scored, the state of each row, and where each label is scored."""
    rows: list[list[int | None]] = []
    owner: list[int] = []
    places: list[_Place] = []
    for number, (text, decided) in enumerate((state.text, state.decided) for state in states):
        usual = [len(own[decided[slot]]) if slot in decided else _usual(own) for slot, own in enumerate(text.ids)]
        known: dict[tuple[int, ...], int] = {}
        for slot, own in enumerate(text.ids):
            for label, ids in enumerate(own if slot not in decided else ()):
                sizes = (*usual[:slot], len(ids), *usual[slot + 1 :])
                if sizes not in known:
                    known[sizes] = len(rows)
                    rows.append(text.row(sizes, decided))
                    owner.append(number)
                places.append(_Place(number, slot, label, known[sizes], text.layout.spans(sizes)[slot][0]))
    return rows, owner, places


def _at(
    request: Request, log_p: Tensor, begins: Sequence[tuple[int, int]], tokens: Sequence[Sequence[int]]
) -> list[float]:
    """The log-probabilities of ``tokens``, which begin at a row and position each, from ``log_p`` [N, V]."""
    row, column = (request.targets >= 0).nonzero(as_tuple=True)
    flat = {place: i for i, place in enumerate(zip(row.tolist(), request.targets[row, column].tolist(), strict=True))}
    index = [
        (flat[number, begin + offset], token)
        for (number, begin), ids in zip(begins, tokens, strict=True)
        for offset, token in enumerate(ids)
    ]
    where = upload(torch.tensor(index), log_p.device)
    (values,) = download(log_p[where[:, 0], where[:, 1]])
    return [float(value) for value in values.double()]


def _usual(ids: Sequence[Sequence[int]]) -> int:
    """The number of tokens that most labels have, the least of several."""
    counts = Counter(map(len, ids))
    return min(counts, key=lambda size: (-counts[size], size))
