"""Several devices: what each of them holds, and what they send to each other.

DDP     each device holds everything. Gradients are summed by a ring: each device sends and receives
        2 (n - 1) / n of their bytes.
FSDP2   each device holds 1/n of weights, gradients and optimizer state (ZeRO-3, Rajbhandari et al. 2020,
        arXiv:1910.02054). The weights of a block are gathered before its forward pass and again before its backward
        pass, and its gradients are reduced and scattered: (n - 1) / n of their bytes each time.
"""

from __future__ import annotations

from dataclasses import dataclass

from redraft.planning.twin import Outline

KINDS = ("ddp", "fsdp")
_AHEAD = 2  # blocks whose weights are gathered at a time: the one that computes, and the next


@dataclass(frozen=True)
class Parallel:
    """How ``workers`` devices train one model.

    With FSDP2 and products in bfloat16, blocks are gathered in bfloat16, and their products need no copies of weights.
    All else is gathered in the type in which it is held.
    """

    workers: int = 1
    kind: str = "ddp"
    local: int = 0  # of the devices, those of this machine; 0: all

    @property
    def shards(self) -> bool:
        """Does each device hold a part of the weights only?"""
        return self.kind == "fsdp" and self.workers > 1

    @property
    def on_this_machine(self) -> int:
        """How many of the devices are this machine's."""
        return self.local or self.workers

    def share(self, size: float) -> int:
        """Of what all devices hold together, the part of one of them, in the unit of ``size``."""
        return int(-(-size // self.workers) if self.shards else size)

    def gathered(self, run: Outline) -> int:
        """Bytes of weights and gradients that are whole for a moment: two blocks, and what is outside of blocks."""
        if not self.shards:
            return 0
        block, rest = run.stacked / run.shape.layers, run.parameters - run.stacked
        learns = run.trained / max(run.parameters, 1)
        return int((_AHEAD * block * _block_bytes(run) + rest * _bytes_each(run)) * (1 + learns))

    def sent(self, run: Outline) -> dict[str, float]:
        """Bytes that each device sends for one update, by what they are for. Gradients are float32."""
        if self.workers == 1:
            return {}
        part, gradients = (self.workers - 1) / self.workers, 4.0 * run.trained
        if not self.shards:
            return {"all-reduce": 2 * part * gradients}
        twice, once = 2 * run.stacked * _block_bytes(run), (run.parameters - run.stacked) * _bytes_each(run)
        # what is outside of blocks stays until the backward pass
        return {"all-gather": part * (twice + once), "reduce-scatter": part * gradients}


def _bytes_each(run: Outline) -> float:
    """Bytes of a weight in the type in which it is held."""
    return (4.0 * run.trained + run.dtype.itemsize * run.frozen) / max(run.parameters, 1)


def _block_bytes(run: Outline) -> float:
    """Bytes of a weight of a block that is gathered."""
    return float(run.compute.itemsize) if run.bfloat16 else _bytes_each(run)


ALONE = Parallel()
