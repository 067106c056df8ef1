"""The scores of the labels of masked slots, from one forward pass: ``decide`` gives the equation.

A label enters by its number of masks. Each number of masks of a slot has a row, in which the other slots have the
number of masks that most of their labels have. Where the labels of a slot differ in length, a second row of each number
shows whether the given text around the slot belongs there: its next tokens are masked, too (as in ``holes``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from redraft.generation.first_pass import parts, predictions, run_passes
from redraft.generation.holes import NEIGHBOURS, fixed_size_spec, length_scores
from redraft.generation.slots import Scores, State
from redraft.runtime import download, upload
from redraft.settings import DecisionSettings
from redraft.types import Request

if TYPE_CHECKING:
    from redraft.model import Model

Key = tuple[int, int, int]  # a state, a slot of it, and a number of tokens


@dataclass(frozen=True)
class _Span:
    """Tokens to score, at positions of a row."""

    row: int
    positions: Sequence[int]
    tokens: Sequence[int]


@dataclass
class _Rows:
    """The rows of a pass, and where the labels and the text around them are scored."""

    rows: list[list[int | None]] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)  # the state of each row
    begins: dict[Key, tuple[int, int]] = field(default_factory=dict)  # row and first position of labels of this size
    around: dict[Key, _Span] = field(default_factory=dict)  # the given tokens next to a slot, masked

    def add(self, row: list[int | None], state: int) -> int:
        """Add a row; its number."""
        self.rows.append(row)
        self.owner.append(state)
        return len(self.rows) - 1


def slot_scores(
    model: Model, states: Sequence[State], settings: DecisionSettings, checkpoint: Callable[[], None]
) -> tuple[list[Scores], list[int]]:
    """The score of each label of the slots that are not decided (others: no labels), and the passes of each text.

    Args:
        checkpoint: called before forward passes; it may raise an exception.
    """
    made = _rows(states)
    lengths = _length_log_p(model, states, checkpoint)
    spans: list[_Span] = []
    labels: list[tuple[Key, int]] = []  # of each span that is a label: what it is, and its number
    for key, (row, begin) in made.begins.items():
        for label, ids in enumerate(states[key[0]].text.ids[key[1]]):
            if len(ids) == key[2]:
                labels.append((key, label))
                spans.append(_Span(row, range(begin, begin + len(ids)), ids))
    values, nfe = _log_p(model, states, made, [*spans, *made.around.values()], checkpoint)
    evidence = dict(zip(made.around, values[len(spans) :], strict=True))
    found: list[Scores] = [
        [[0.0] * len(own) if slot not in state.decided else [] for slot, own in enumerate(state.text.ids)]
        for state in states
    ]
    for (key, label), value in zip(labels, values, strict=False):
        state, slot, _ = key
        unit = states[state].text.unit(slot, label, settings.by)
        found[state][slot][label] = value / unit + evidence.get(key, 0.0) + lengths.get(key, 0.0)
    return found, [passes + bool(lengths) for passes in nfe]


def _rows(states: Sequence[State]) -> _Rows:
    """The rows in which all labels can be scored."""
    made = _Rows()
    for number, (text, decided) in enumerate((state.text, state.decided) for state in states):
        usual = [len(own[decided[slot]]) if slot in decided else _usual(own) for slot, own in enumerate(text.ids)]
        known: dict[tuple[int, ...], int] = {}
        for slot, own in enumerate(text.ids):
            counts = sorted({len(ids) for ids in own}) if slot not in decided else []
            for count in counts:
                sizes = (*usual[:slot], count, *usual[slot + 1 :])
                row = text.row(sizes, decided)
                if sizes not in known:
                    known[sizes] = made.add(row, number)
                begin, end = text.layout.spans(sizes)[slot]
                made.begins[number, slot, count] = known[sizes], begin
                near = [*range(begin - NEIGHBOURS, begin), *range(end, end + NEIGHBOURS)]
                given = range(len(text.layout.head), len(row) - len(text.layout.tail))
                near = [at for at in near if at in given and row[at] is not None]
                if len(counts) > 1 and near:
                    tokens = [token for at in near if (token := row[at]) is not None]
                    masked = [None if at in near else token for at, token in enumerate(row)]
                    made.around[number, slot, count] = _Span(made.add(masked, number), near, tokens)
    return made


def _usual(ids: Sequence[Sequence[int]]) -> int:
    """The number of tokens that most labels have, the least of several."""
    counts = Counter(map(len, ids))
    return min(counts, key=lambda size: (-counts[size], size))


def _length_log_p(model: Model, states: Sequence[State], checkpoint: Callable[[], None]) -> dict[Key, float]:
    """log p(n) of each number of tokens of each slot by the length head, for slots whose labels differ in length.

    The head predicts the length of the whole answer. The lengths of the other slots are summed out, with equal weights
    of their labels.
    """
    differing = [
        [slot for slot, own in enumerate(state.text.ids) if slot not in state.decided and len({*map(len, own)}) > 1]
        for state in states
    ]
    if not model.spec.network.length_head or not any(differing):
        return {}
    checkpoint()
    heads = [state.text.layout.head for state in states]
    largest = [state.text.layout.row([max(map(len, own)) for own in state.text.ids]) for state in states]
    log_p = length_scores(model, heads, max(map(len, largest)))
    assert log_p is not None
    found: dict[Key, float] = {}
    for number, (state, slots) in enumerate(zip(states, differing, strict=True)):
        ids, decided = state.text.ids, state.decided
        given = len(state.text.layout.row([0] * len(ids)))
        shares = [Counter([len(own[decided[s]])] if s in decided else map(len, own)) for s, own in enumerate(ids)]
        for slot in slots:
            others = _sums([share for other, share in enumerate(shares) if other != slot])
            for count in shares[slot]:
                terms = [log_p[number][given + count + rest] + math.log(share) for rest, share in others.items()]
                highest = max(terms)
                if highest > -math.inf:
                    highest += math.log(math.fsum(math.exp(term - highest) for term in terms))
                found[number, slot, count] = highest
    return found


def _sums(shares: Sequence[Counter[int]]) -> dict[int, float]:
    """The distribution of the sum of independent numbers."""
    found = {0: 1.0}
    for share in shares:
        added: dict[int, float] = {}
        for sum_, p in found.items():
            for count, weight in share.items():
                added[sum_ + count] = added.get(sum_ + count, 0.0) + p * weight / share.total()
        found = added
    return found


def _log_p(
    model: Model, states: Sequence[State], made: _Rows, spans: Sequence[_Span], checkpoint: Callable[[], None]
) -> tuple[list[float], list[int]]:
    """The sum of the log-probabilities of the tokens of each span, and the passes of each state."""
    network, spec = model.inference_network(), fixed_size_spec(model)
    heads = [len(states[number].text.layout.head) for number in made.owner]
    values, nfe = [0.0] * len(spans), [0] * len(states)
    for part in parts(made.rows, made.owner):
        passes = predictions([made.rows[i] for i in part], [heads[i] for i in part], spec)
        request, log_p = run_passes(passes, network, checkpoint)
        own = [number for number, span in enumerate(spans) if span.row in part]
        places = [(spans[number].row - part.start, at) for number in own for at in spans[number].positions]
        found = iter(_at(request, log_p, places, [token for number in own for token in spans[number].tokens]))
        for number in own:
            values[number] = math.fsum(next(found) for _ in spans[number].tokens)
        for number in {made.owner[i] for i in part}:
            nfe[number] += 1
    return values, nfe


def _at(request: Request, log_p: Tensor, places: Sequence[tuple[int, int]], tokens: Sequence[int]) -> list[float]:
    """The log-probability of each token at its place, a row and a position, from ``log_p`` [N, V]."""
    row, column = (request.targets >= 0).nonzero(as_tuple=True)
    flat = {place: i for i, place in enumerate(zip(row.tolist(), request.targets[row, column].tolist(), strict=True))}
    index = upload(torch.tensor([flat[place] for place in places]), log_p.device)
    (values,) = download(log_p[index, upload(torch.tensor(list(tokens)), log_p.device)])
    return [float(value) for value in values.double()]
