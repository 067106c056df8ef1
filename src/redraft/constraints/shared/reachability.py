"""Which states of a token automaton a partly known row of tokens can reach, from its beginning and from its end.

A row of n positions is a path of n tokens through the automaton. With some positions known and others open,

    alpha_c = the states that the first c positions can lead to,    beta_c = the states that the last n - c can accept

are sets of states, and a token v can stand at position c iff some s in alpha_c has delta(s, v) in beta_{c+1}.

Columns count from the end of the prompt. R rows, n columns, S + 1 states, E pairs of states, K classes of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from redraft.constraints.automata.token_automaton import TokenAutomaton

OPEN = -1  # in place of a token: any token may stand here
_MAX_CACHED = 1 << 28  # bytes of alpha that are kept between forward passes
_MAX_ENTRIES = 1 << 24  # entries of a temporary table


@dataclass(frozen=True)
class Reachability:
    """The sets alpha and beta of rows of tokens, with bounds on the length of the text.

    Tables that don't change between forward passes are cached. The cache compares contents, so it never changes a
    result.

    Fields:
        least, most: tokens of text, end-of-text not counted; most -1: no bound.
    """

    automaton: TokenAutomaton
    least: int = 0
    most: int = -1
    _cache: _Cache = field(default_factory=lambda: _Cache(), compare=False, repr=False)

    @property
    def accept(self) -> np.ndarray:
        """[S] bool: the states in which a text may end."""
        return self.automaton.accept[: self.automaton.end]

    def first(self) -> np.ndarray:
        """alpha_0 [1, S + 1]: the start state alone."""
        start = np.zeros((1, self.automaton.end + 1), dtype=bool)
        start[0, 0] = True
        return start

    def may_end(self, count: int) -> bool:
        """May a text of ``count`` tokens end?"""
        return self.least <= count and (self.most < 0 or count <= self.most)

    # ---- forwards

    def move(self, token: np.ndarray, state: np.ndarray, column: int) -> np.ndarray:
        """The next state for tokens at a column, -1 for none; ``token`` and ``state`` broadcast."""
        target = self.automaton.moves[self.automaton.class_of[token], state]
        if not self.may_end(column):
            target = np.where((target == self.automaton.end) & (state != self.automaton.end), -1, target)
        return target

    def step_open(self, reach: np.ndarray, column: int, ends: bool = True) -> np.ndarray:
        """The states [R, S + 1] that any token leads to from ``reach`` [R, S + 1]; ``ends``: end-of-text included."""
        a, end = self.automaton, self.automaton.end
        new = np.zeros_like(reach)
        if len(a.source):
            new[:, a.into] = np.logical_or.reduceat(reach[:, a.source], a.begin, axis=1)
        if ends:
            new[:, end] = reach[:, end]
            if self.may_end(column):
                new[:, end] |= (reach[:, :end] & self.accept).any(1)
        return new

    def _step_known(self, reach: np.ndarray, token: np.ndarray, column: int) -> np.ndarray:
        """The states that the given tokens [R] lead to from ``reach``."""
        row, state = np.nonzero(reach)
        target = self.move(token[row], state, column)
        new = np.zeros_like(reach)
        new[row[target >= 0], target[target >= 0]] = True
        return new

    def alpha(self, rows: np.ndarray, known: np.ndarray, upto: int) -> np.ndarray:
        """alpha [R, upto + 1 or more, S + 1] of rows of known tokens [R, n]. ``rows`` identifies them in the cache.

        Columns whose preceding tokens are the same as in the previous call are not computed again.
        """
        table, column = self._cache.recall(rows, known, self.automaton.end + 1)
        if column == 0:
            table[:, 0] = self.first()
        for at in range(column, upto):
            token, now = known[:, at], table[:, at]
            free = token == OPEN
            if free.all():
                table[:, at + 1] = self.step_open(now, at)
            elif not free.any():
                table[:, at + 1] = self._step_known(now, token, at)
            else:
                table[free, at + 1] = self.step_open(now[free], at)
                table[~free, at + 1] = self._step_known(now[~free], token[~free], at)
        self._cache.keep(rows, known, max(upto, column), table)
        return table

    # ---- backwards

    def _last(self, size: int) -> np.ndarray:
        """[S + 1] bool: the states in which a row of this size may stop."""
        good = self.automaton.accept.copy()
        if not self.may_end(size):
            good[: self.automaton.end] = False
        return good

    def beta(self, known: np.ndarray, size: np.ndarray, first: int, last: int) -> np.ndarray:
        """beta [R, last - first + 1, S + 1] at columns first .. last, of rows of known tokens [R, n] and sizes [R]."""
        tails = self.tails(size)
        final = last_known(known)  # after it, only the number of open positions matters
        column = np.arange(first, last + 1)
        found = np.stack([tail[np.minimum(column, len(tail) - 1)] for tail in tails])
        high = int(final.max()) + 1
        if high <= first:
            return found
        now = np.stack([tail[min(high, len(tail) - 1)] for tail in tails])
        for at in range(high - 1, first - 1, -1):
            inside = at <= final
            if inside.any():
                now[inside] = self._back(now[inside], known[inside, at], at)
            if not inside.all():
                now[~inside] = np.stack([tails[row][min(at, len(tails[row]) - 1)] for row in np.flatnonzero(~inside)])
            if at <= last:
                found[:, at - first] = now
        return found

    def _back(self, after: np.ndarray, token: np.ndarray, column: int) -> np.ndarray:
        """The states from which the tokens [R] (any token, if OPEN) lead into ``after``."""
        new = np.zeros_like(after)
        free = token == OPEN
        if free.any():
            new[free] = self._back_open(after[free], column)
        if not free.all():
            rows = np.flatnonzero(~free)
            state = np.arange(self.automaton.end + 1)[None]
            target = self.move(token[rows, None], state, column)
            new[rows] = (target >= 0) & np.take_along_axis(after[rows], np.maximum(target, 0), 1)
        return new

    def _back_open(self, after: np.ndarray, column: int) -> np.ndarray:
        end = self.automaton.end
        source, target, begin, into = self._cache.by_source(self.automaton)
        new = np.zeros_like(after)
        if len(source):
            new[:, into] = np.logical_or.reduceat(after[:, target], begin, axis=1)
        new[:, end] = after[:, end]
        if self.may_end(column):
            new[:, :end] |= self.accept & after[:, end:]
        return new

    def tails(self, size: np.ndarray) -> list[np.ndarray]:
        """For each row of sizes [R], beta [size + 1, S + 1] of a row of that size in which every position is open."""
        found = self._cache.tails
        for length in np.unique(size).tolist():
            if length not in found:
                table = np.empty((length + 1, self.automaton.end + 1), dtype=bool)
                table[length] = self._last(length)
                for column in range(length - 1, -1, -1):
                    table[column] = self._back_open(table[None, column + 1], column)[0]
                found[length] = table
        return [found[length] for length in size.tolist()]

    # ---- both

    def feasible(self, rows: np.ndarray, known: np.ndarray, size: np.ndarray) -> np.ndarray:
        """[R] bool: which rows of known tokens [R, n] and sizes [R] can be completed."""
        final = last_known(known)
        alpha = self.alpha(rows, known, int(final.max()) + 1)
        here = alpha[np.arange(len(known)), final + 1]
        after = np.stack([tail[column] for tail, column in zip(self.tails(size), final + 1, strict=True)])
        return np.asarray((here & after).any(1))

    def allowed(self, before: np.ndarray, after: np.ndarray, column: np.ndarray) -> np.ndarray:
        """[N, K] bool: the classes of tokens that lead from ``before`` [N, S + 1] into ``after`` [N, S + 1]."""
        a = self.automaton
        source, target, begin, kind = a.by_class
        allowed = np.zeros((len(before), len(a.moves)), dtype=bool)
        size = max(1, _MAX_ENTRIES // max(1, len(source)))
        for first in range(0, len(before) if len(source) else 0, size):
            part = slice(first, first + size)
            live = before[part][:, source] & after[part][:, target]
            allowed[part, kind] = np.logical_or.reduceat(live, begin, axis=1)
        may = np.array([self.may_end(count) for count in column.tolist()])
        ends = (before[:, : a.end] & self.accept).any(1) & may
        allowed[:, 1] = (ends | before[:, a.end]) & after[:, a.end]
        return allowed

    def shortest(self) -> int | None:
        """Number of tokens of the shortest text that satisfies the constraint and ``least``; None if there is none."""
        reach, seen = self.first(), self.first()
        for count in range(self.automaton.end + 1):
            if (reach[:, : self.automaton.end] & self.accept).any():
                return max(count, self.least)
            reach = self.step_open(reach, 0, ends=False) & ~seen
            if not reach.any():
                break
            seen |= reach
        return None


@dataclass
class _Cache:
    """Tables that are kept between calls."""

    tails: dict[int, np.ndarray] = field(default_factory=dict)
    _rows: np.ndarray | None = None  # of the last call
    _known: np.ndarray | None = None
    _upto: int = 0
    _table: np.ndarray | None = None
    _by_source: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None

    def recall(self, rows: np.ndarray, known: np.ndarray, states: int) -> tuple[np.ndarray, int]:
        """A table for alpha [R, n + 1, states], and the column up to which it is already filled."""
        if self._table is None or self._known is None or self._rows is None:
            pass
        elif np.array_equal(rows, self._rows) and (width := known.shape[1]) <= self._known.shape[1]:
            differs = (self._known[:, :width] != known).any(0)
            return self._table, min(int(differs.argmax()) if differs.any() else width, self._upto)
        return np.zeros((len(known), known.shape[1] + 1, states), dtype=bool), 0

    def keep(self, rows: np.ndarray, known: np.ndarray, upto: int, table: np.ndarray) -> None:
        """Keep a table that is filled up to a column, unless it is too large."""
        self._rows, self._known, self._upto = rows, known, upto
        self._table = table if table.nbytes <= _MAX_CACHED else None

    def by_source(self, a: TokenAutomaton) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The pairs of states by ascending source: source, target, where each source begins, and which it is."""
        if self._by_source is None:
            order = np.argsort(a.source, kind="stable")
            source, target = a.source[order], a.target[order]
            begin = np.flatnonzero(np.diff(source, prepend=-1))
            self._by_source = source, target, begin, source[begin]
        return self._by_source


def last_known(known: np.ndarray) -> np.ndarray:
    """[R] the last column of each row that is not OPEN, -1 for none."""
    return np.asarray(np.where(known != OPEN, np.arange(known.shape[1]), -1).max(1, initial=-1))
