"""Choosing which of several simultaneous writes to keep, so that together they satisfy a constraint."""

from __future__ import annotations

import numpy as np

from redraft.constraints.shared.reachability import OPEN, Reachability, last_known


def best_subset(
    reach: Reachability, known: np.ndarray, column: np.ndarray, token: np.ndarray, gain: np.ndarray
) -> np.ndarray:
    """Which writes to keep so that the row can be completed and the sum of their gains is highest (Viterbi).

    The value of a state is the highest sum with which it is reached; a write that is left out leaves ``known`` as it
    is.

    Args:
        known: [n] tokens of the row, OPEN where free.
        column, token, gain: [W] position, token and gain of each write.
    Returns:
        [W] bool; all False if no choice makes the row feasible.
    """
    end = reach.automaton.end
    high = max(int(last_known(known[None])[0]), int(column.max())) + 1
    write = np.full(high, -1)
    write[column] = np.arange(len(column))
    value = np.full((high + 1, end + 1), -np.inf)
    value[0, 0] = 0.0
    for at in range(high):
        value[at + 1] = _step(reach, value[at], int(known[at]), at)
        if write[at] >= 0:
            kept = _step(reach, value[at], int(token[write[at]]), at) + gain[write[at]]
            value[at + 1] = np.maximum(value[at + 1], kept)
    tail = reach.tails(np.array([len(known)]))[0][high]
    state = int(np.where(tail, value[high], -np.inf).argmax())
    keep = np.zeros(len(column), dtype=bool)
    if not tail[state] or value[high, state] == -np.inf:
        return keep
    for at in range(high - 1, -1, -1):
        if write[at] >= 0:
            one = write[at]
            before = _predecessor(reach, value[at] + gain[one], value[at + 1, state], int(token[one]), state, at)
            if before is not None:
                keep[one], state = True, before
                continue
        found = _predecessor(reach, value[at], value[at + 1, state], int(known[at]), state, at)
        assert found is not None
        state = found
    return keep


def _step(reach: Reachability, value: np.ndarray, token: int, column: int) -> np.ndarray:
    """The best value of each state [S + 1] after one more token (any token, if OPEN)."""
    a, end = reach.automaton, reach.automaton.end
    new = np.full_like(value, -np.inf)
    if token != OPEN:
        target = reach.move(np.array(token), np.arange(end + 1), column)
        np.maximum.at(new, target[target >= 0], value[target >= 0])
        return new
    if len(a.source):
        new[a.into] = np.maximum.reduceat(value[a.source], a.begin)
    new[end] = value[end]
    if reach.may_end(column):
        new[end] = max(float(value[end]), float(np.where(reach.accept, value[:end], -np.inf).max()))
    return new


def _predecessor(
    reach: Reachability, value: np.ndarray, target: float, token: int, state: int, column: int
) -> int | None:
    """The first state from which ``token`` (any token, if OPEN) leads to ``state`` with value ``target``, if any."""
    a, end = reach.automaton, reach.automaton.end
    if token != OPEN:
        moved = reach.move(np.array(token), np.arange(end + 1), column) == state
        came = np.flatnonzero(moved & (value == target))
    elif state == end:
        may = np.append(reach.accept & reach.may_end(column), True)
        came = np.flatnonzero(may & (value == target))
    else:
        came = a.source[a.target == state]
        came = came[value[came] == target]
    return int(came[0]) if len(came) else None
