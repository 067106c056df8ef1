"""Decisions: which of its labels belongs into each slot of a text, with probabilities.

For a text x, a slot s with labels l of n_l tokens, and the other slots z, the probability of a label is the softmax of
its score over the labels of the slot:

    one_pass     score(l) = sum_j log p(l_j | x, n_l masks in s, masks in z) + e(n_l)
    chain        the same; the most certain slot is decided first, and z holds the labels of the slots decided before
                 autoregressive models: score(l) = log p(l and the text up to the next slot | text and labels before it)
    likelihood   p(l) = sum over the labels of z of p(l, z | x), from the likelihood of every combination

``one_pass`` is a pseudo-likelihood: the tokens of a label, and the slots, are predicted independently of each other. It
takes one forward pass of a masked model for all slots and labels. e(n) is the evidence for n tokens in the slot, and
only needed where the labels of a slot differ in length:

    e(n) = sum over the two given tokens i on each side of log p(x_i | x, these tokens and n tokens in s masked)
           + log p(n)

Its first part is that of infilling (``holes``): the text after the slot fits only at the right distance. Its rows are
part of the same pass. log p(n) is that of the answer's length by the length head, summed over the lengths of the other
slots; it takes another pass, and is 0 for a model without a length head.

``likelihood`` is the chain rule. For autoregressive models it is exact, over the text from the first slot on. For
masked models it is exact from left to right (DUEL, arXiv:2603.01367), with one pass for each token: of the slots, or
of all text from the first slot on where the lengths of labels differ. For other families it is the bound on the
likelihood of the whole text.

``by`` divides log p of a label by its tokens or bytes. ``calibrate`` subtracts the score in a text whose fields are
empty, which removes the model's preference for some labels (Zhao et al. 2021, arXiv:2102.09690; Holtzman et al. 2021,
arXiv:2104.08315).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from redraft.errors import UserError
from redraft.generation import joint
from redraft.generation.holes import go_on
from redraft.generation.prompts import check_mask
from redraft.generation.slot_scores import slot_scores
from redraft.generation.slots import Labels, Row, Scores, SlotTemplate, SlotText, State, softmax
from redraft.settings import DecisionSettings

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
    """The different numbers of tokens of the labels of all slots, twice: with and without the text around them."""
    return [size for own in text.ids for size in {len(ids) for ids in own}] * 2


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
    score = partial(slot_scores, model, settings=settings, checkpoint=checkpoint)
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
    scorer = slot_scores if joint.fills_masks(model) else joint.next_slot_scores
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
