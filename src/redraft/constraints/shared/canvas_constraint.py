"""Keeping a canvas within a language, for any order of unmasking.

Logits are masked so that each token alone leaves a completion (``reachability``). Tokens that are written at once must
be feasible together: of those that are not, the feasible part with the highest summed probability is kept, found by
dynamic programming over the same states (``joint_writes``). Mündler et al. 2025 (arXiv:2508.10111) do this for
grammars, by intersection.

Columns count from the end of the prompt. R rows, n columns, S + 1 states, K classes of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from redraft.constraints.automata.token_automaton import TokenAutomaton
from redraft.constraints.shared.joint_writes import best_subset
from redraft.constraints.shared.reachability import OPEN, Reachability
from redraft.errors import UserError
from redraft.runtime import upload
from redraft.types import DRAFT, FREE, PAD, Canvas, Request, Step


@dataclass(frozen=True)
class CanvasConstraint:
    """An automaton applied to canvases (``types.Constraint``). Equal constraints share their automaton.

    Fields:
        least, most: tokens of text, end-of-text not counted; most -1: no bound.
    """

    automaton: TokenAutomaton
    eos_id: int
    mask_id: int
    least: int = 0
    most: int = -1
    _reach: Reachability = field(init=False, compare=False, repr=False)
    _classes: _TokenClasses = field(default_factory=lambda: _TokenClasses(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_reach", Reachability(self.automaton, self.least, self.most))

    def start(self, canvas: Canvas) -> None:
        """Check that every row can be completed.

        Raises:
            UserError: some row can't.
        """
        known, size = self._known(canvas, np.arange(len(canvas.ids)))
        for row in np.flatnonzero(~self.possible(canvas).numpy()):
            raise self._unsatisfiable(known[row, : size[row]])

    def possible(self, canvas: Canvas) -> Tensor:
        """[B] bool: which rows can be completed."""
        rows = np.arange(len(canvas.ids))
        return torch.from_numpy(self._reach.feasible(rows, *self._known(canvas, rows)))

    def lengths(self, most: int) -> Tensor:
        """[most] bool: for which lengths 1, 2 ... of an answer, end-of-text counted, there is a text.

        Raises:
            UserError: for no length up to ``most``.
        """
        reachable = self._reach.first()
        found = np.zeros(most, dtype=bool)
        for count in range(most):
            ends = (reachable[:, : self.automaton.end] & self._reach.accept).any()
            found[count] = self._reach.may_end(count) and ends
            reachable = self._reach.step_open(reachable, count, ends=False)
        if not found.any():
            raise self._unsatisfiable(np.full(most, OPEN), closed=True)
        return torch.from_numpy(found)

    def mask(self, canvas: Canvas, request: Request, logits: Tensor) -> Tensor:
        """Set logits [N, V] to -inf, in place, where a token would leave no way to satisfy the constraint.

        The context is the tokens that the request holds. In a causal pass, of the positions after a token only final
        tokens count. If the context itself is infeasible (a rejected draft, or an end-of-text that a drafter assumed),
        only final tokens count, so that each token could be written alone.
        """
        rows = request.rows.numpy()
        row, column = np.nonzero(request.targets.numpy() >= 0)
        at = request.target_positions.numpy()[row, column] - canvas.prompt.numpy()[rows[row]]
        final, size = self._known(canvas, rows, drafts=False)
        shown = self._shown(canvas, request, final)
        behind = final if request.attention.kind == "causal" else shown
        allowed = np.zeros((len(row), len(self.automaton.moves)), dtype=bool)
        for part in self._reach.parts(*shown.shape):
            mine = np.flatnonzero((row >= part.start) & (row < part.stop))
            if not len(mine):
                continue
            where = row[mine] - part.start, at[mine]
            found = self._allowed(rows, shown, behind, size, part, where)
            stuck = ~found.any(1)
            if stuck.any():
                found[stuck] = self._allowed(rows, final, final, size, part, where)[stuck]
                found[~found.any(1)] = True
            allowed[mine] = found
        return self._hide(logits, torch.from_numpy(allowed))

    def _allowed(
        self,
        rows: np.ndarray,
        before: np.ndarray,
        behind: np.ndarray,
        size: np.ndarray,
        part: slice,
        where: tuple[np.ndarray, np.ndarray],
    ) -> np.ndarray:
        """[N, K] bool: the classes of tokens that are allowed at N places of a part of the rows.

        Args:
            before, behind: [R, n] the known tokens before a place, and those behind it. size: [R] sizes of the rows.
            where: row within the part, and column, of each place.
        """
        (row, at), reach = where, self._reach
        first, last = int(at.min()), int(at.max())
        alpha = reach.alpha(rows[part], before[part], last, part.start)
        beta = reach.beta(behind[part], size[part], first + 1, last + 1)
        return reach.allowed(alpha[row, at], beta[row, at - first], at)

    def admit(self, canvas: Canvas, step: Step) -> Step:
        """The part of a step that is feasible together: all of it, or the part with the highest summed probability."""
        if step.parents is not None or not len(step.row):
            return step  # beam search writes one token in each row, drawn from masked logits
        rows, local = np.unique(step.row.numpy(), return_inverse=True)
        old, size = self._known(canvas, rows)
        column = step.pos.numpy() - canvas.prompt.numpy()[step.row.numpy()]
        back = step.status.numpy() == FREE
        new = old.copy()
        new[local, column] = np.where(back, OPEN, step.token.numpy())
        keep = np.ones(len(column), dtype=bool)
        for row in np.flatnonzero(~self._reach.feasible(rows, new, size)):
            changes = np.flatnonzero(local == row)
            writes = changes[~back[changes]]
            base = old[row, : size[row]].copy()
            base[column[changes[back[changes]]]] = OPEN
            token, conf = step.token.numpy()[writes], step.conf.double().numpy()[writes]
            gain = np.exp(np.minimum(conf, 0)) + 1e-9
            keep[writes] = best_subset(self._reach, base, column[writes], token, gain)
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

    def complete(self, ids: Sequence[int]) -> bool:
        """Do these tokens of a text satisfy the constraint, so that no token may follow?

        Then the text has reached its end, with or without an end-of-text token after it.
        """
        a, state = self.automaton, 0
        for token in ids:
            state = int(a.moves[a.class_of[token], state]) if token < len(a.class_of) else -1
            if state < 0:
                return False
        follows = bool((a.moves[2:, state] >= 0).any()) and not (0 <= self.most <= len(ids))
        return bool(a.accept[state]) and self._reach.may_end(len(ids)) and not follows

    def shortest(self) -> int | None:
        """Number of tokens of the shortest text that satisfies the constraint and ``least``; None if there is none."""
        return self._reach.shortest()

    def _known(self, canvas: Canvas, rows: np.ndarray, drafts: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Known tokens [R, n] of rows (OPEN where free) and their sizes [R]. Positions beyond a row's end are OPEN."""
        status, ids, prompt = canvas.status.numpy()[rows], canvas.ids.numpy()[rows], canvas.prompt.numpy()[rows]
        width = status.shape[1]
        size = np.where(status != PAD, np.arange(1, width + 1), 0).max(1) - prompt
        known = np.where(status == PAD, self.eos_id, ids)  # padding inside a row stands between two end-of-text tokens
        known = np.where((status == FREE) | ((status == DRAFT) & (not drafts)), OPEN, known)
        column = np.arange(max(int(size.max()), 0))
        known = np.take_along_axis(known, np.minimum(prompt[:, None] + column, width - 1), 1)
        return np.where(column < size[:, None], known, OPEN), size

    def _shown(self, canvas: Canvas, request: Request, final: np.ndarray) -> np.ndarray:
        """Known tokens [R, n] as a request holds them; positions that it doesn't hold are final or open."""
        pos, x, rows = request.positions.numpy(), request.tokens.numpy(), request.rows.numpy()
        column = pos - canvas.prompt.numpy()[rows][:, None]
        row, index = np.nonzero((pos >= 0) & (column >= 0) & (column < final.shape[1]))
        token, here = x[row, index], (rows[row], pos[row, index])
        noise = (canvas.status.numpy()[here] == FREE) & (canvas.ids.numpy()[here] == token)
        shown, at = final.copy(), (row, column[row, index])
        shown[at] = OPEN
        np.maximum.at(shown, at, np.where(noise | (token == self.mask_id), OPEN, token))
        return shown

    def _hide(self, logits: Tensor, allowed: Tensor) -> Tensor:
        """Set the logits [N, V] of classes that are not allowed [N, K] to -inf, in place."""
        class_of = self._classes.of(self.automaton, logits)
        hidden = upload(~allowed, logits.device)[:, class_of]
        logits.masked_fill_(hidden, -torch.inf)
        nothing = logits.amax(1) == -torch.inf  # the network excludes every allowed token: draw any of them
        if logits.device.type != "cpu" or bool(nothing.any()):  # on a device, asking would make the host wait
            logits.masked_fill_(nothing[:, None] & ~hidden, 0.0)
        return logits

    def _unsatisfiable(self, known: np.ndarray, closed: bool = False) -> UserError:
        """The error for a row of known tokens [n]; ``closed``: its last position is end-of-text."""
        room = len(known) - closed
        if (known != OPEN).any():
            return UserError(
                "The given text leaves no way to satisfy the constraint.", "Change the text or the constraint."
            )
        shortest = self.shortest()
        if shortest is None:
            return UserError(
                "No sequence of tokens of this vocabulary satisfies the constraint.",
                "Remove parts that contradict each other.",
            )
        if shortest > room:
            return UserError(
                f"The constraint needs at least {shortest} tokens, but only {room} may be generated.",
                "Raise --max-new-tokens, or use a weaker constraint.",
            )
        bound = f"at least {self.least}" if self.most < 0 else f"{self.least} to {self.most}"
        return UserError(
            f"No text of {bound} tokens satisfies the constraint in {room} positions.",
            "Widen the bounds of the length, or raise --max-new-tokens.",
        )


@dataclass
class _TokenClasses:
    """The class of each token on the device of the logits, computed once."""

    _class_of: Tensor | None = None

    def of(self, a: TokenAutomaton, logits: Tensor) -> Tensor:
        """[V] the class of each column of ``logits`` [N, V]; columns beyond the vocabulary have no moves."""
        if self._class_of is None or self._class_of.device != logits.device or len(self._class_of) != logits.shape[1]:
            class_of = np.zeros(logits.shape[1], dtype=np.int64)
            class_of[: len(a.class_of)] = a.class_of
            self._class_of = upload(torch.from_numpy(class_of), logits.device)
        return self._class_of
