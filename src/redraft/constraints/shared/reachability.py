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
from redraft.constraints.shared.tables import tables
from redraft.errors import UserError

OPEN = -1  # in place of a token: any token may stand here
_MAX_TABLE = 1 << 26  # entries of alpha for the rows that are computed together
_MAX_ROW = 1 << 28  # entries of alpha for one row
_MAX_ENTRIES = 1 << 24  # entries of a temporary table


@dataclass(frozen=True)
class Reachability:
    """The sets alpha and beta of rows of tokens, with bounds on the length of the text.

    Tables that don't change between forward passes are kept (``tables``), those of open rows for all users of the
    automaton. Contents are compared, so this never changes a result.

    Fields:
        least, most: tokens of text, end-of-text not counted; most -1: no bound.
    """

    automaton: TokenAutomaton
    least: int = 0
    most: int = -1
    _own: _Owner = field(default_factory=lambda: _Owner(), compare=False, repr=False)

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

    def parts(self, rows: int, columns: int) -> list[slice]:
        """Rows that are computed together, so that their tables take some hundred megabytes at most.

        Raises:
            UserError: the tables of a single row would be too large.
        """
        entries = (columns + 1) * (self.automaton.end + 1)
        if entries > _MAX_ROW:
            raise UserError(
                f"The constraint has {self.automaton.end} states, which is too many for {columns} positions.",
                "Give its repetitions smaller bounds, or generate fewer tokens.",
            )
        together = max(1, _MAX_TABLE // entries)
        return [slice(first, min(rows, first + together)) for first in range(0, rows, together)]

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

    def alpha(self, rows: np.ndarray, known: np.ndarray, upto: int, part: int = 0) -> np.ndarray:
        """alpha [R, upto + 1 or more, S + 1] of rows of known tokens [R, n].

        Columns whose preceding tokens are the same as in the previous call for the same rows are not computed again.

        Args:
            part: number of the first of these rows; rows of different parts are kept beside each other.
        """
        kept = tables().find(self._own, part)
        table, column = (None, 0) if kept is None else kept.filled(rows, known)
        if table is None:
            table = np.zeros((len(known), known.shape[1] + 1, self.automaton.end + 1), dtype=bool)
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
        tables().keep(self._own, part, _Alpha(rows, known, max(upto, column), table), table.nbytes)
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
        source, target, begin, into = self._by_source()
        new = np.zeros_like(after)
        if len(source):
            new[:, into] = np.logical_or.reduceat(after[:, target], begin, axis=1)
        new[:, end] = after[:, end]
        if self.may_end(column):
            new[:, :end] |= self.accept & after[:, end:]
        return new

    def tails(self, size: np.ndarray) -> list[np.ndarray]:
        """For each row of sizes [R], beta [size + 1, S + 1] of a row of that size in which every position is open."""
        found = {length: self._tail(length) for length in np.unique(size).tolist()}
        return [found[length] for length in size.tolist()]

    def _tail(self, length: int) -> np.ndarray:
        name = "tail", self.least, self.most, length
        table: np.ndarray | None = tables().find(self.automaton, name)
        if table is None:
            table = np.empty((length + 1, self.automaton.end + 1), dtype=bool)
            table[length] = self._last(length)
            for column in range(length - 1, -1, -1):
                table[column] = self._back_open(table[None, column + 1], column)[0]
            tables().keep(self.automaton, name, table, table.nbytes)
        return table

    def _by_source(self) -> tuple[np.ndarray, ...]:
        """The pairs of states by ascending source: source, target, where each source begins, and which it is."""
        found: tuple[np.ndarray, ...] | None = tables().find(self.automaton, "by source")
        if found is None:
            order = np.argsort(self.automaton.source, kind="stable")
            source, target = self.automaton.source[order], self.automaton.target[order]
            begin = np.flatnonzero(np.diff(source, prepend=-1))
            found = source, target, begin, source[begin]
            tables().keep(self.automaton, "by source", found, sum(table.nbytes for table in found))
        return found

    # ---- both

    def feasible(self, rows: np.ndarray, known: np.ndarray, size: np.ndarray) -> np.ndarray:
        """[R] bool: which rows of known tokens [R, n] and sizes [R] can be completed.

        Raises:
            UserError: the tables would be too large.
        """
        found, final = np.zeros(len(known), dtype=bool), last_known(known)
        for part in self.parts(len(known), known.shape[1]):
            column = final[part] + 1
            alpha = self.alpha(rows[part], known[part], int(column.max()), part.start)
            here = alpha[np.arange(len(column)), column]
            after = np.stack([tail[at] for tail, at in zip(self.tails(size[part]), column, strict=True)])
            found[part] = (here & after).any(1)
        return found

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


class _Owner:
    """Whose tables: see ``tables``."""


@dataclass(frozen=True)
class _Alpha:
    """A table of alpha [R, n + 1, S + 1], and what it was computed for."""

    rows: np.ndarray
    known: np.ndarray
    upto: int  # the last column that is filled
    table: np.ndarray

    def filled(self, rows: np.ndarray, known: np.ndarray) -> tuple[np.ndarray | None, int]:
        """The table and the last column of it that holds for known tokens [R, n]; None if it can't be used."""
        width = known.shape[1]
        if not np.array_equal(rows, self.rows) or width > self.known.shape[1]:
            return None, 0
        differs = (self.known[:, :width] != known).any(0)
        return self.table, min(int(differs.argmax()) if differs.any() else width, self.upto)


def last_known(known: np.ndarray) -> np.ndarray:
    """[R] the last column of each row that is not OPEN, -1 for none."""
    return np.asarray(np.where(known != OPEN, np.arange(known.shape[1]), -1).max(1, initial=-1))
