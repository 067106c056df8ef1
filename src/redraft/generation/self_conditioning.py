"""Self-conditioning: each request contains the network's last prediction at positions that are still free."""

from __future__ import annotations

from torch import Tensor

from redraft.runtime import download
from redraft.types import FREE, Canvas, Output, Request, SelfConditioning


class PredictionMemory:
    """The last prediction at each free position of a canvas: its ``count`` likeliest tokens.

    The prediction of a position is deleted when its token is written, even if the position is masked again later.
    """

    def __init__(self, canvas: Canvas, count: int) -> None:
        self.last = SelfConditioning.blank(canvas.ids, count)

    def of(self, canvas: Canvas, rows: Tensor) -> SelfConditioning:
        """The last predictions of ``rows`` [R], with weight 0 at positions that are not free."""
        self.last.weight[rows] *= (canvas.status[rows] == FREE)[:, :, None]
        return SelfConditioning(self.last.token[rows], self.last.weight[rows])

    def keep(self, request: Request, output: Output) -> None:
        """Store the predictions of an answer, after guidance and constraint."""
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        at = request.rows[row], request.target_positions[row, column]
        token, weight = SelfConditioning.likeliest(output.log_p, self.last.token.shape[2])
        self.last.token[at], self.last.weight[at] = download(token, weight)

    def reorder(self, parents: Tensor) -> None:
        """Copy rows from their parents [B]."""
        self.last = SelfConditioning(self.last.token[parents], self.last.weight[parents])
