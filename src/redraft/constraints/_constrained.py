"""Keeping a canvas within a language, whatever the order in which it is written.

An answer of n positions is a path of n tokens through an automaton. With some positions written and others open,

    alpha_c = the states that the first c positions can lead to,    beta_c = the states that the last n - c can accept

are sets, and a token v may be written at position c iff some s in alpha_c has delta(s, v) in beta_{c+1}. Several
tokens written at once must be feasible *together*: of those that are not, the likeliest feasible part is kept, found by
dynamic programming over the same states. (Mündler et al. 2025, arXiv:2508.10111, do this for
grammars, by intersection.)

Columns count from the end of the prompt. R rows, n columns, S + 1 states, E pairs of states, K classes of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from redraft.constraints._tokens import TokenAutomaton
from redraft.errors import UserError
from redraft.types import DRAFT, FREE, PAD, Canvas, Forward, Step

OPEN = -1  # in place of a token: any may stand here
_MOST_REMEMBERED = 1 << 28  # bytes of alpha kept between passes
_AT_ONCE = 1 << 24  # cells of a temporary table


@dataclass(frozen=True)
class Constrained:
    """An automaton at work on canvases (``types.Constraint``). Equal ones share their automaton.

    Fields:
        least, most: tokens of text, end-of-text not counted; most -1: no bound.
    """

    automaton: TokenAutomaton
    eos_id: int
    mask_id: int
    least: int = 0
    most: int = -1
    _memory: _Memory = field(default_factory=lambda: _Memory(), compare=False, repr=False)

    # ---- what the loop asks

    def start(self, canvas: Canvas) -> None:
        """Raises UserError if some row can't be completed."""
        known, size = self._canvas(canvas, np.arange(len(canvas.ids)))
        for row in np.flatnonzero(~self.possible(canvas).numpy()):
            raise self._unsatisfiable(known[row, : size[row]])

    def possible(self, canvas: Canvas) -> Tensor:
        """[B] bool: which rows can be completed."""
        rows = np.arange(len(canvas.ids))
        return torch.from_numpy(self._feasible(rows, *self._canvas(canvas, rows)))

    def lengths(self, most: int) -> Tensor:
        """[most] bool: which lengths 1, 2 ... of an answer, its end-of-text counted, some text has exactly.

        Raises:
            UserError: no length up to ``most``.
        """
        reach = self._first()
        found = np.zeros(most, dtype=bool)
        for count in range(most):
            found[count] = self._may_end(count) and (reach[:, : self.automaton.end] & self._accept).any()
            reach = self._free(reach, count, ends=False)
        if not found.any():
            raise self._unsatisfiable(np.full(most, OPEN), closed=True)
        return torch.from_numpy(found)

    def mask(self, canvas: Canvas, ask: Forward, logits: Tensor) -> Tensor:
        """Logits [N, V] with -inf where a token would leave no way to satisfy the constraint; changed in place.

        The context is what the request shows: a causal pass sees nothing of what comes after, where only tokens that
        are final count. Where the context itself is infeasible (a rejected draft, an end that a drafter supposes),
        what is final counts alone, so that every token could be written by itself.
        """
        assert ask.rows is not None
        rows = ask.rows.numpy()
        row, column = np.nonzero(ask.want.numpy() >= 0)
        at = ask.about.numpy()[row, column] - canvas.prompt.numpy()[rows[row]]
        final, size = self._canvas(canvas, rows, drafts=False)
        shown = self._shown(canvas, ask, final)
        before = self._alpha(rows, shown, int(at.max()))
        after = self._beta(final if ask.attend.kind == "causal" else shown, size, int(at.min()) + 1, int(at.max()) + 1)
        allowed = self._classes(before[row, at], after[row, at - int(at.min())], at)
        stuck = ~allowed.any(1)
        if stuck.any():
            before = self._alpha(rows, final, int(at.max()))
            after = self._beta(final, size, int(at.min()) + 1, int(at.max()) + 1)
            alone = self._classes(before[row, at], after[row, at - int(at.min())], at)
            allowed[stuck] = alone[stuck]
            allowed[~allowed.any(1)] = True
        return self._hide(logits, torch.from_numpy(allowed))

    def admit(self, canvas: Canvas, step: Step) -> Step:
        """The part of a step that is feasible together: all of it, or the likeliest part (by summed probability)."""
        if step.parents is not None or not len(step.row):
            return step  # beams write one token a row, drawn from what ``mask`` left
        rows, local = np.unique(step.row.numpy(), return_inverse=True)
        old, size = self._canvas(canvas, rows)
        column = step.pos.numpy() - canvas.prompt.numpy()[step.row.numpy()]
        back = step.status.numpy() == FREE
        new = old.copy()
        new[local, column] = np.where(back, OPEN, step.token.numpy())
        keep = np.ones(len(column), dtype=bool)
        for row in np.flatnonzero(~self._feasible(rows, new, size)):
            ops = np.flatnonzero(local == row)
            writes = ops[~back[ops]]
            base = old[row, : size[row]].copy()
            base[column[ops[back[ops]]]] = OPEN
            token, conf = step.token.numpy()[writes], step.conf.double().numpy()[writes]
            keep[writes] = self._best_part(base, column[writes], token, np.exp(np.minimum(conf, 0)) + 1e-9)
        if keep.all():
            return step
        kept = torch.from_numpy(np.flatnonzero(keep))
        return replace(
            step,
            row=step.row[kept],
            pos=step.pos[kept],
            token=step.token[kept],
            status=step.status[kept],
            conf=step.conf[kept],
        )

    # ---- rows as known tokens

    def _canvas(self, canvas: Canvas, rows: np.ndarray, drafts: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Known tokens [R, n] of rows (OPEN where free) and their sizes [R]; what lies beyond a row's end is OPEN."""
        status, ids, prompt = canvas.status.numpy()[rows], canvas.ids.numpy()[rows], canvas.prompt.numpy()[rows]
        width = status.shape[1]
        size = np.where(status != PAD, np.arange(1, width + 1), 0).max(1) - prompt
        known = np.where(status == PAD, self.eos_id, ids)  # padding inside a row stands between two ends of text
        known = np.where((status == FREE) | ((status == DRAFT) & (not drafts)), OPEN, known)
        column = np.arange(max(int(size.max()), 0))
        known = np.take_along_axis(known, np.minimum(prompt[:, None] + column, width - 1), 1)
        return np.where(column < size[:, None], known, OPEN), size

    def _shown(self, canvas: Canvas, ask: Forward, final: np.ndarray) -> np.ndarray:
        """Known tokens [R, n] as a request shows them: what it does not hold is final or open."""
        assert ask.rows is not None
        pos, x, rows = ask.pos.numpy(), ask.x.numpy(), ask.rows.numpy()
        column = pos - canvas.prompt.numpy()[rows][:, None]
        row, place = np.nonzero((pos >= 0) & (column >= 0) & (column < final.shape[1]))
        token, here = x[row, place], (rows[row], pos[row, place])
        noise = (canvas.status.numpy()[here] == FREE) & (canvas.ids.numpy()[here] == token)
        shown, at = final.copy(), (row, column[row, place])
        shown[at] = OPEN
        np.maximum.at(shown, at, np.where(noise | (token == self.mask_id), OPEN, token))
        return shown

    # ---- dynamic programming, forwards and backwards

    @property
    def _accept(self) -> np.ndarray:
        return self.automaton.accept[: self.automaton.end]

    def _first(self) -> np.ndarray:
        start = np.zeros((1, self.automaton.end + 1), dtype=bool)
        start[0, 0] = True
        return start

    def _may_end(self, count: int) -> bool:
        """May a text of so many tokens end?"""
        return self.least <= count and (self.most < 0 or count <= self.most)

    def _last(self, size: int) -> np.ndarray:
        """[S + 1] bool: the states in which a row of this size may stop."""
        good = self.automaton.accept.copy()
        if not self._may_end(size):
            good[: self.automaton.end] = False
        return good

    def _free(self, reach: np.ndarray, column: int, ends: bool = True) -> np.ndarray:
        """Where any token leads from the states ``reach`` [R, S + 1]."""
        a, end = self.automaton, self.automaton.end
        new = np.zeros_like(reach)
        if len(a.source):
            new[:, a.into] = np.logical_or.reduceat(reach[:, a.source], a.begin, axis=1)
        if ends:
            new[:, end] = reach[:, end]
            if self._may_end(column):
                new[:, end] |= (reach[:, :end] & self._accept).any(1)
        return new

    def _by(self, reach: np.ndarray, token: np.ndarray, column: int) -> np.ndarray:
        """Where the given tokens [R] lead from ``reach``."""
        row, state = np.nonzero(reach)
        target = self._move(token[row], state, column)
        new = np.zeros_like(reach)
        new[row[target >= 0], target[target >= 0]] = True
        return new

    def _move(self, token: np.ndarray, state: np.ndarray, column: int) -> np.ndarray:
        target = self.automaton.moves[self.automaton.of[token], state]
        if not self._may_end(column):
            target = np.where((target == self.automaton.end) & (state != self.automaton.end), -1, target)
        return target

    def _alpha(self, rows: np.ndarray, known: np.ndarray, upto: int) -> np.ndarray:
        """alpha [R, upto + 1 or more, S + 1]; columns whose past is as it was the last time are not computed again."""
        table, column = self._memory.recall(rows, known, self.automaton.end + 1)
        if column == 0:
            table[:, 0] = self._first()
        for at in range(column, upto):
            token, now = known[:, at], table[:, at]
            free = token == OPEN
            if free.all():
                table[:, at + 1] = self._free(now, at)
            elif not free.any():
                table[:, at + 1] = self._by(now, token, at)
            else:
                table[free, at + 1] = self._free(now[free], at)
                table[~free, at + 1] = self._by(now[~free], token[~free], at)
        self._memory.keep(rows, known, max(upto, column), table)
        return table

    def _beta(self, known: np.ndarray, size: np.ndarray, first: int, last: int) -> np.ndarray:
        """beta at columns first .. last, [R, last - first + 1, S + 1]."""
        tails = self._tails(size)
        final = _last_known(known)  # beyond it, only the number of open positions counts
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
        """From which states the tokens [R] (or any, where OPEN) lead into ``after``."""
        new = np.zeros_like(after)
        free = token == OPEN
        if free.any():
            new[free] = self._back_free(after[free], column)
        if not free.all():
            rows = np.flatnonzero(~free)
            state = np.arange(self.automaton.end + 1)[None]
            target = self._move(token[rows, None], state, column)
            new[rows] = (target >= 0) & np.take_along_axis(after[rows], np.maximum(target, 0), 1)
        return new

    def _back_free(self, after: np.ndarray, column: int) -> np.ndarray:
        end = self.automaton.end
        source, target, begin, into = self._memory.backwards(self.automaton)
        new = np.zeros_like(after)
        if len(source):
            new[:, into] = np.logical_or.reduceat(after[:, target], begin, axis=1)
        new[:, end] = after[:, end]
        if self._may_end(column):
            new[:, :end] |= self._accept & after[:, end:]
        return new

    def _tails(self, size: np.ndarray) -> list[np.ndarray]:
        """Per row, beta [size + 1, S + 1] of a row of its size in which all is open."""
        found = self._memory.tails
        for length in np.unique(size).tolist():
            if length not in found:
                table = np.empty((length + 1, self.automaton.end + 1), dtype=bool)
                table[length] = self._last(length)
                for column in range(length - 1, -1, -1):
                    table[column] = self._back_free(table[None, column + 1], column)[0]
                found[length] = table
        return [found[length] for length in size.tolist()]

    def _feasible(self, rows: np.ndarray, known: np.ndarray, size: np.ndarray) -> np.ndarray:
        """[R] bool: can these rows be completed?"""
        final = _last_known(known)
        alpha = self._alpha(rows, known, int(final.max()) + 1)
        here = alpha[np.arange(len(known)), final + 1]
        after = np.stack([tail[column] for tail, column in zip(self._tails(size), final + 1, strict=True)])
        return np.asarray((here & after).any(1))

    # ---- masking

    def _classes(self, before: np.ndarray, after: np.ndarray, column: np.ndarray) -> np.ndarray:
        """[N, K] bool: the classes of tokens that lead from ``before`` [N, S + 1] into ``after``."""
        a = self.automaton
        source, target, begin, kind = a.by_class
        allowed = np.zeros((len(before), len(a.moves)), dtype=bool)
        size = max(1, _AT_ONCE // max(1, len(source)))
        for first in range(0, len(before) if len(source) else 0, size):
            part = slice(first, first + size)
            live = before[part][:, source] & after[part][:, target]
            allowed[part, kind] = np.logical_or.reduceat(live, begin, axis=1)
        may = np.array([self._may_end(count) for count in column.tolist()])
        closing = (before[:, : a.end] & self._accept).any(1) & may
        allowed[:, 1] = (closing | before[:, a.end]) & after[:, a.end]
        return allowed

    def _hide(self, logits: Tensor, allowed: Tensor) -> Tensor:
        of = self._memory.classes(self.automaton, logits)
        hidden = ~allowed.to(logits.device)[:, of]
        logits.masked_fill_(hidden, -torch.inf)
        nothing = logits.amax(1) == -torch.inf  # the network excludes all that is allowed: take any of it
        if bool(nothing.any()):
            logits[nothing] = torch.zeros_like(logits[nothing]).masked_fill_(hidden[nothing], -torch.inf)
        return logits

    # ---- choosing among ops

    def _best_part(self, known: np.ndarray, column: np.ndarray, token: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """Which of some writes to keep so that the row can be completed and the kept gains sum highest.

        The value of a state is the highest sum with which it is reached; a write left out leaves ``known`` as it is.
        """
        a, end = self.automaton, self.automaton.end
        high = max(int(_last_known(known[None])[0]), int(column.max())) + 1
        op = np.full(high, -1)
        op[column] = np.arange(len(column))
        value = np.full((high + 1, end + 1), -np.inf)
        value[0, 0] = 0.0
        for at in range(high):
            value[at + 1] = self._values(value[at], int(known[at]), at)
            if op[at] >= 0:
                kept = self._values(value[at], int(token[op[at]]), at) + gain[op[at]]
                value[at + 1] = np.maximum(value[at + 1], kept)
        tail = self._tails(np.array([len(known)]))[0][high]
        state = int(np.where(tail, value[high], -np.inf).argmax())
        keep = np.zeros(len(column), dtype=bool)
        if not tail[state] or value[high, state] == -np.inf:
            return keep
        every = np.arange(end + 1)
        for at in range(high - 1, -1, -1):
            target, now = value[at + 1, state], value[at]
            if op[at] >= 0:
                moved = self._move(np.array(int(token[op[at]])), every, at) == state
                came = np.flatnonzero(moved & (now + gain[op[at]] == target))
                if len(came):
                    keep[op[at]], state = True, int(came[0])
                    continue
            if known[at] != OPEN:
                moved = self._move(np.array(known[at]), every, at) == state
                state = int(np.flatnonzero(moved & (now == target))[0])
            elif state == end:
                may = np.append(self._accept & self._may_end(at), True)
                state = int(np.flatnonzero(may & (now == target))[0])
            else:
                came = a.source[a.target == state]
                state = int(came[now[came] == target][0])
        return keep

    def _values(self, value: np.ndarray, token: int, column: int) -> np.ndarray:
        """The best value of each state [S + 1] after one more token (any, where OPEN)."""
        a, end = self.automaton, self.automaton.end
        new = np.full_like(value, -np.inf)
        if token != OPEN:
            target = self._move(np.array(token), np.arange(end + 1), column)
            np.maximum.at(new, target[target >= 0], value[target >= 0])
            return new
        if len(a.source):
            new[a.into] = np.maximum.reduceat(value[a.source], a.begin)
        new[end] = value[end]
        if self._may_end(column):
            new[end] = max(float(value[end]), float(np.where(self._accept, value[:end], -np.inf).max()))
        return new

    # ---- when there is no way

    def _unsatisfiable(self, known: np.ndarray, closed: bool = False) -> UserError:
        room = len(known) - closed
        if (known != OPEN).any():
            return UserError(
                "the text that is given leaves no way to satisfy the constraint.", "Change the one or the other."
            )
        shortest = self.shortest()
        if shortest is None:
            return UserError(
                "this vocabulary has no text that satisfies the constraint.", "Check it for parts that contradict."
            )
        if shortest > room:
            return UserError(
                f"the constraint needs at least {shortest} tokens, but only {room} may be written.",
                "Raise --max-new-tokens, or ask for less.",
            )
        bound = f"at least {self.least}" if self.most < 0 else f"{self.least} to {self.most}"
        return UserError(
            f"no text of {bound} tokens satisfies the constraint in {room} positions.", "Widen the length."
        )

    def shortest(self) -> int | None:
        """Tokens of the shortest text that satisfies the constraint, length bounds aside; None: there is none."""
        reach, seen = self._first(), self._first()
        for count in range(self.automaton.end + 1):
            if (reach[:, : self.automaton.end] & self._accept).any():
                return max(count, self.least)
            reach = self._free(reach, 0, ends=False) & ~seen
            if not reach.any():
                break
            seen |= reach
        return None


@dataclass
class _Memory:
    """What is computed once, or not again: content decides, so it is never wrong, only useful or not."""

    tails: dict[int, np.ndarray] = field(default_factory=dict)
    _rows: np.ndarray | None = None  # of the last call
    _known: np.ndarray | None = None
    _upto: int = 0
    _table: np.ndarray | None = None
    _backwards: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None = None
    _classes: Tensor | None = None

    def recall(self, rows: np.ndarray, known: np.ndarray, states: int) -> tuple[np.ndarray, int]:
        """A table of alpha [R, n + 1, states], and the column up to which it holds already."""
        if self._table is None or self._known is None or self._rows is None:
            pass
        elif np.array_equal(rows, self._rows) and (width := known.shape[1]) <= self._known.shape[1]:
            differs = (self._known[:, :width] != known).any(0)
            return self._table, min(int(differs.argmax()) if differs.any() else width, self._upto)
        return np.zeros((len(known), known.shape[1] + 1, states), dtype=bool), 0

    def keep(self, rows: np.ndarray, known: np.ndarray, upto: int, table: np.ndarray) -> None:
        """Remember a table that holds up to a column."""
        self._rows, self._known, self._upto = rows, known, upto
        self._table = table if table.nbytes <= _MOST_REMEMBERED else None

    def backwards(self, a: TokenAutomaton) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The pairs of states by rising source: source, target, where each source begins, which it is."""
        if self._backwards is None:
            order = np.argsort(a.source, kind="stable")
            source, target = a.source[order], a.target[order]
            begin = np.flatnonzero(np.diff(source, prepend=-1))
            self._backwards = source, target, begin, source[begin]
        return self._backwards

    def classes(self, a: TokenAutomaton, logits: Tensor) -> Tensor:
        """Class of each column of logits, on their device; columns beyond the vocabulary lead nowhere."""
        if self._classes is None or self._classes.device != logits.device or len(self._classes) != logits.shape[1]:
            of = np.zeros(logits.shape[1], dtype=np.int64)
            of[: len(a.of)] = a.of
            self._classes = torch.from_numpy(of).to(logits.device)
        return self._classes


def _last_known(known: np.ndarray) -> np.ndarray:
    """[R] the last column that is not OPEN, -1 for none."""
    return np.asarray(np.where(known != OPEN, np.arange(known.shape[1]), -1).max(1, initial=-1))
