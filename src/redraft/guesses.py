"""Self-conditioning: what a network predicted last at positions still free is told to it with its next request."""

from __future__ import annotations

from torch import Tensor

from redraft.types import FREE, Canvas, Forward, Guess, Output


def likeliest(log_p: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` likeliest tokens of each distribution [N, V] and their probabilities, [N, K] each."""
    best, token = log_p.topk(count, -1)
    return token, best.float().exp()


def blank(ids: Tensor, count: int) -> Guess:
    """Nothing was predicted anywhere in the texts ``ids`` [R, L]."""
    token = ids.new_zeros(*ids.shape, count)
    return Guess(token, token.float())


class Memory:
    """The last prediction at each position of a canvas, of ``count`` tokens each, for as long as it stays free.

    A position that was written is forgotten: should it be masked once more, it is to be thought about afresh.
    """

    def __init__(self, canvas: Canvas, count: int) -> None:
        self.guess = blank(canvas.ids, count)

    def of(self, canvas: Canvas, rows: Tensor) -> Guess:
        """What is to be told to ``rows`` [R]."""
        self.guess.weight[rows] *= (canvas.status[rows] == FREE)[:, :, None]
        return Guess(self.guess.token[rows], self.guess.weight[rows])

    def keep(self, ask: Forward, out: Output) -> None:
        """Remember an answer, guidance and constraint included."""
        assert ask.rows is not None
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        at = ask.rows[row], ask.about[row, column]
        token, weight = likeliest(out.log_p, self.guess.token.shape[2])
        self.guess.token[at], self.guess.weight[at] = token.cpu(), weight.cpu()

    def reorder(self, parents: Tensor) -> None:
        """Rows become copies of their parents [B]."""
        self.guess = Guess(self.guess.token[parents], self.guess.weight[parents])
